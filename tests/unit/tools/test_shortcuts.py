"""Paths and records that a notebook finds, exactly the ones it means."""

import copy
import json
import pickle
import subprocess
import sys

import pytest

from noronha.rpc.errors import FailedPrecondition, NoronhaError, NotFound
from noronha.tools import shortcuts
from noronha.tools.channel import Listener, ask
from noronha.tools.errors import NhaDataError, OutsideTaskError, PrettyError, ResolutionError, ServingError
from noronha.tools.publish import Publisher
from noronha.tools.views import View


@pytest.fixture
def outside(monkeypatch, tmp_path):
    """No task: only folders, as in a container made by hand."""
    for name in ("NORONHA_TASK_DIR", "CONTAINER_PURPOSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LOCAL_MODEL_DIR", str(tmp_path / "model"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    return tmp_path


@pytest.fixture
def inside(monkeypatch, tmp_path):
    """A task's folder; the function returned mounts an asset in it."""
    folder = tmp_path / "run"
    (folder / "meta").mkdir(parents=True)
    (folder / "task.json").write_text(
        json.dumps({"project": "botanics", "models": ["m1"], "folders": {"tmp": "/private/tmp"}})
    )
    monkeypatch.setenv("NORONHA_TASK_DIR", str(folder))
    monkeypatch.setenv("CONTAINER_PURPOSE", "nha-train")

    def mount(kind, model, name, revision=1, suffix="", **more):
        path = f"/{'data' if kind == 'ds' else 'model'}/{model}.{name}{suffix}"
        record = {"_id": f"{model}:{name}", "name": name, "model": {"_id": model, "name": model}, "revision": revision,
                  "path": path, **more}  # fmt: skip
        (folder / "meta" / f"{kind}.{model}.{name}{suffix}.json").write_text(json.dumps(record))

    mount.folder = folder
    return mount


def test_one_mounted_asset_needs_no_name(inside):
    inside("ds", "m1", "d1")
    inside("mv", "m1", "v1")
    assert shortcuts.data_path("f.csv") == "/data/m1.d1/f.csv"
    assert shortcuts.model_path("clf.pkl") == "/model/m1.v1/clf.pkl"
    assert shortcuts.data_path() == "/data/m1.d1/"
    assert shortcuts.tmp_path("x") == "/private/tmp/x"
    assert shortcuts.get_purpose() == "nha-train"


def test_names_match_exactly(inside):
    for name in ("v1", "v10", "v1.0", "1v1"):
        inside("mv", "m1", name)
    inside("mv", "m1-b", "v1")
    assert shortcuts.model_path("f", model="m1", version="v1") == "/model/m1.v1/f"
    assert shortcuts.model_path("f", version="v10") == "/model/m1.v10/f"
    assert shortcuts.model_path("f", model="m1-b") == "/model/m1-b.v1/f"
    with pytest.raises(ResolutionError, match=r"No options found"):
        shortcuts.model_path("f", version="v.0")
    with pytest.raises(
        ResolutionError,
        match=r"'\*:v1' under directory /model. Found 2 options: .'m1-b.v1', 'm1.v1'.",
    ):
        shortcuts.model_path("f", version="v1")
    with pytest.raises(ResolutionError, match="Found 5 options"):
        shortcuts.model_path("f")


def test_a_revision_can_be_meant(inside):
    inside("mv", "m1", "v1", revision=1)
    inside("mv", "m1", "v1", revision=2, suffix="@2")
    assert shortcuts.model_path("f", version="v1@2") == "/model/m1.v1@2/f"
    assert shortcuts.model_path("f", version="v1@1") == "/model/m1.v1/f"
    with pytest.raises(ResolutionError):
        shortcuts.model_path("f", version="v1@3")


def test_folders_without_records_are_found_by_their_whole_names(outside):
    for name in ("m1.v1", "m1.v10", "m2.v1"):
        (outside / "model" / name).mkdir(parents=True)
    assert shortcuts.model_path("f", "m1", "v1") == str(outside / "model" / "m1.v1" / "f")
    assert shortcuts.model_path("f", version="v10") == str(outside / "model" / "m1.v10" / "f")
    with pytest.raises(ResolutionError, match="Found 2 options"):
        shortcuts.model_path("f", model="m1")
    with pytest.raises(ResolutionError, match="No options found"):
        shortcuts.data_path("f")
    assert shortcuts.tmp_path("f") == str(outside / "tmp" / "f")
    assert shortcuts.get_purpose() is None


def test_records_are_read_only_views(inside):
    inside("mv", "m1", "v1", details={"metrics": {"acc": 0.9}}, train={"name": "t1", "details": {"params": {"a": 1}}}, ds=None,
           modified="2026-01-02 03:04:05")  # fmt: skip
    meta = shortcuts.movers_meta()
    assert (meta.name, meta.model.name, meta.details["metrics"]["acc"], meta.train.details["params"]) == (
        "v1",
        "m1",
        0.9,
        {"a": 1},
    )
    assert meta.ds is None and meta.no_such_field is None
    assert str(meta) == "m1:v1" and meta.show() == "m1:v1:2026-01-02 03:04:05"
    meta.details["metrics"] = "changed in my copy"
    assert meta.details["metrics"] == {"acc": 0.9}
    with pytest.raises(AttributeError, match="read-only"):
        meta.name = "v2"
    assert copy.deepcopy(meta) == pickle.loads(pickle.dumps(meta)) == meta
    assert shortcuts.dataset_meta(ignore=True).details == {}
    with pytest.raises(ResolutionError):
        shortcuts.dataset_meta()
    with pytest.raises(FileNotFoundError):
        shortcuts.train_meta()


def test_a_version_tells_the_training_it_came_from_as_it_was(inside):
    from noronha.tools import documents
    from noronha.v1 import dataset_pb2, model_version_pb2, training_pb2

    record = model_version_pb2.ModelVersion(
        name="models/m1/versions/v1",
        training_snapshot=training_pb2.Training(
            name="projects/p/trainings/t", notebook="notebooks/train.ipynb", params_json='{"gamma": {"low": 0.1}}',
            details_json='{"note": "x"}',
        ),
        dataset_snapshot=dataset_pb2.Dataset(name="models/m1/datasets/d", revision=3, details_json='{"rows": 150}'),
    )  # fmt: skip
    document = documents.model_version(record)
    inside("mv", "m1", "v1", **{key: document[key] for key in ("train", "ds")})
    meta = shortcuts.movers_meta()
    train = meta.train
    assert (train.name, train.notebook, train.params) == ("t", "notebooks/train.ipynb", {"gamma": {"low": 0.1}})
    assert train.details == {"note": "x", "params": {"gamma": {"low": 0.1}}} and train.proj.name == "p"
    train.params["gamma"]["low"] = "changed in my copy"
    assert train.params["gamma"] == {"low": 0.1}
    assert f"{train}" == "p:t" and repr(train) == "<Training: p:t>"
    assert (meta.ds.revision, meta.ds.details) == (3, {"rows": 150})


def test_what_is_here_is_not_fetched_again(inside):
    inside("ds", "m1", "d1")
    assert shortcuts.require_dataset("d1") == "/data/m1.d1"


def test_outside_a_task_the_toolkit_says_so(outside):
    for call in (Publisher, lambda: shortcuts.require_movers("v1", "m1"), lambda: shortcuts.require_dataset("d", "m1")):
        with pytest.raises(OutsideTaskError, match="nha train new"):
            call()


def test_several_models_need_naming(inside):
    (inside.folder / "task.json").write_text(json.dumps({"project": "p", "models": ["m1", "m2"]}))
    with pytest.raises(ResolutionError, match=r"\['m1', 'm2'\].*specify which model you are publishing"):
        Publisher()()


def test_questions_are_answered_and_errors_arrive_as_what_they_are(inside):
    def refuse(asked):
        raise FailedPrecondition("file clf.pkl is not in /tmp", reason="MISSING_FILE", file="clf.pkl")

    def miss(asked):
        raise NotFound("models/m/datasets/d does not exist in models/m", name="models/m")

    defects = []
    handlers = {"echo": lambda asked: asked, "refuse": refuse, "miss": miss, "break": lambda asked: 1 / 0}
    listener = Listener(inside.folder, handlers, defects.append)
    try:
        assert ask("echo", what="test", text="naïve\n", number=2**70) == {"text": "naïve\n", "number": 2**70}
        with pytest.raises(FailedPrecondition) as caught:
            ask("refuse", what="test")
        assert caught.value.reason == "MISSING_FILE" and caught.value.metadata == {"file": "clf.pkl"}
        with pytest.raises(NotFound, match=r"^dataset m:d does not exist in model m$") as caught:
            ask("miss", what="test")
        assert caught.value.metadata == {"name": "models/m"}
        with pytest.raises(NoronhaError, match="ZeroDivisionError"):
            ask("break", what="test")
        assert len(defects) == 1
        with pytest.raises(NoronhaError, match="build the project again"):
            ask("nobody knows", what="test")
    finally:
        listener.close()
    with pytest.raises(NoronhaError, match="does not answer"):
        ask("echo", what="test")


def test_errors_of_old_keep_their_family():
    for kind in (NhaDataError, ResolutionError, ServingError):
        assert issubclass(kind, PrettyError) and issubclass(kind, NoronhaError)
        assert str(kind("what is wrong")) == "what is wrong"


def test_importing_the_toolkit_is_light():
    code = (
        "import sys\n"
        "import noronha.tools.shortcuts, noronha.tools.publish, noronha.tools.serving\n"
        "heavy = ('grpc', 'google.protobuf', 'gunicorn', 'flask', 'numpy', 'papermill', 'zmq', 'asyncio', 'requests')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_every_public_name_is_there_and_says_what_it_is():
    import noronha.tools

    for name in noronha.tools.__all__:
        assert getattr(noronha.tools, name).__doc__.strip(), name
    with pytest.raises(AttributeError):
        getattr(noronha.tools, "nothing_like_that")  # noqa: B009


def test_a_view_of_nothing_is_empty():
    assert View({}).pk == "" and list(View({})) == [] and "x" not in View({})
