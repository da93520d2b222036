"""The process of a task, from its assignment to its outcome."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from google.rpc import error_details_pb2

from noronha.v1 import dataset_pb2, model_version_pb2, tasks_pb2
from tests.waiting import until

from .conftest import notebook_of
from .standing_mesh import StandingMesh

pytestmark = pytest.mark.timeout(120)

TRAINING = tasks_pb2.Assignment.TRAINING
REPLICA = tasks_pb2.Assignment.REPLICA


@pytest.fixture
def mesh():
    with tempfile.TemporaryDirectory(prefix="nha-t-", dir="/tmp") as folder:
        made = StandingMesh(Path(folder))
        made.come()
        yield made
        made.go()


@pytest.fixture
def start(mesh, tmp_path):
    """Returns a function that writes a notebook and starts a task on it; ends every task afterwards and looks for leftovers."""
    running = []

    def begin(kind, *cells, name="note.ipynb", environment=None, missing=False, **fields):
        folder = tmp_path / f"task-{len(running)}"
        file = mesh.prepare(folder, sys.executable)
        if not missing:
            (folder / "app" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "app" / name).write_text(json.dumps(notebook_of(*cells)))
        mesh.assign(kind, name, **fields)
        purpose = "nha-train" if kind == TRAINING else "nha-depl"
        platform_log = os.open(folder / "platform.log", os.O_WRONLY | os.O_CREAT)
        process = subprocess.Popen(
            [sys.executable, "-m", "noronha.tools.task", "--assignment", str(file)],
            env={**os.environ, "CONTAINER_PURPOSE": purpose, "NHA_MONGO__PSWD": "canary", **(environment or {})},
            stdout=platform_log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        os.close(platform_log)
        process.folder = folder
        running.append(process)
        return process

    yield begin
    for process in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            for one in [*family, psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait(10)


def finished(process, seconds=60):
    """Waits for a task's end and returns its exit code; its runtime folder must be gone, and so must its children."""
    code = process.wait(seconds)
    assert list(process.folder.glob("nha-run-*")) == []
    said = (process.folder / "platform.log").read_text()
    assert "Traceback" not in said, said
    return code


def reason(mesh):
    info = error_details_pb2.ErrorInfo()
    mesh.outcome.error.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


def kept(mesh):
    """Returns the text of the executed notebook that the task uploaded."""
    assert mesh.outcome.upload == "u1"
    return mesh.blobs[mesh.outcome.executed_notebook.digest].decode()


def test_a_training_goes_all_the_way(mesh, start):
    data = mesh.put("measures.csv", b"1,2,3,4\n")
    dataset = dataset_pb2.Dataset(
        name="models/iris-clf/datasets/iris-data-v0",
        revision=1,
        stored=True,
        files=[data],
        details_json='{"date": "x"}',
    )
    process = start(
        TRAINING,
        ("gamma = 0.1; kernel = 'linear'", "parameters"),
        "from noronha.tools.publish import Publisher\n"
        "from noronha.tools.shortcuts import *\n"
        "import os, sys\n"
        "print('purpose', get_purpose(), os.getcwd(), dataset_meta().details, train_meta().name)\n"
        "print('read', open(data_path('measures.csv')).read(), data_path('measures.csv'))\n"
        "open(tmp_path('clf.pkl'), 'w').write('model')\n"
        "made = Publisher()(details={'params': {'gamma': gamma, 'kernel': kernel}, 'metrics': {'score': 0.9}})\n"
        "print('published', made.name, made.model.name, made.revision, made.details['metrics'])\n"
        "print('grpc in the kernel:', 'grpc' in sys.modules, 'canary' in str(os.environ))",
        params_json='{"gamma": 0.001, "kernel": "poly"}', datasets=[dataset],
    )  # fmt: skip
    assert finished(process) == 0
    log = mesh.log.decode()
    folder = process.folder
    assert f"purpose nha-train {folder}/app {{'date': 'x'}} experiment-v1" in log
    assert f"read 1,2,3,4\n {folder}/data/iris-clf.iris-data-v0/measures.csv" in log
    assert "published experiment-v1 iris-clf 1 {'score': 0.9}" in log
    assert "grpc in the kernel: False False" in log
    assert mesh.outcome.outcome == tasks_pb2.ReportOutcomeRequest.SUCCEEDED and not mesh.outcome.HasField("error")
    assert mesh.published == ["models/iris-clf/versions/experiment-v1@1"]
    version = mesh.versions["models/iris-clf/versions/experiment-v1"][0]
    assert version.dataset == "models/iris-clf/datasets/iris-data-v0@1"
    assert version.training == "projects/botanics/trainings/experiment-v1"
    assert json.loads(version.details_json)["params"] == {"gamma": 0.001, "kernel": "poly"}
    assert [each.path for each in version.files] == ["clf.pkl"]
    assert "published experiment-v1" in kept(mesh) and mesh.outcome.executed_notebook.path == "note.ipynb"
    assert mesh.progress[-1] == 1.0 and mesh.progress == sorted(mesh.progress)
    assert {token for name, token in mesh.calls} == {f"Bearer {mesh.token}"}
    assert mesh.token not in log and mesh.token not in kept(mesh)


@pytest.mark.parametrize(
    "cells, expected, words",
    [
        (["print('before')", "raise ValueError('no')"], "CELL_RAISED", "Cell 2 raised ValueError: no."),
        (["import os; os._exit(0)"], "KERNEL_DIED", "exited with code 0"),
        (None, "NOTEBOOK_NOT_FOUND", "note.ipynb"),
    ],
)
def test_a_training_that_fails_says_why(mesh, start, cells, expected, words):
    process = start(TRAINING, *(cells or []), missing=cells is None)
    assert finished(process) == 1
    assert mesh.outcome.outcome == tasks_pb2.ReportOutcomeRequest.FAILED
    got, metadata = reason(mesh)
    assert got == expected and words in mesh.outcome.error.message
    if expected == "CELL_RAISED":
        assert (
            metadata["name"] == "ValueError" and metadata["cell"] == "2" and "raise ValueError" in metadata["traceback"]
        )
        assert "before" in kept(mesh)
    else:
        assert f"{expected}: {mesh.outcome.error.message}" in mesh.log.decode()


def test_an_asset_that_cannot_be_had_fails_before_anything_runs(mesh, start):
    dataset = dataset_pb2.Dataset(name="models/iris-clf/datasets/d1", revision=1, stored=False)
    process = start(TRAINING, "open('ran', 'w')", datasets=[dataset])
    assert finished(process) == 1
    assert reason(mesh)[0] == "ASSET_UNAVAILABLE" and "not stored" in mesh.outcome.error.message
    assert "ASSET_UNAVAILABLE: dataset iris-clf:d1 could not be fetched: " in mesh.log.decode()
    assert "models/" not in mesh.log.decode()
    assert not (process.folder / "app" / "ran").exists()


def test_parameters_without_a_tagged_cell_are_told_as_a_warning(mesh, start):
    assert finished(start(TRAINING, "print(gamma)", params_json='{"gamma": 2}')) == 0
    assert len(mesh.warnings) == 1 and "tagged 'parameters'" in mesh.warnings[0]


def test_a_cancelled_training_ends_as_cancelled(mesh, start):
    process = start(TRAINING, "print('begun')\nimport time\nwhile True: time.sleep(0.1)")
    until(lambda: b"begun" in mesh.log)
    command = tasks_pb2.Command()
    command.cancel.grace.FromSeconds(3)
    mesh.commands.put(command)
    assert finished(process) == 1
    assert mesh.outcome.outcome == tasks_pb2.ReportOutcomeRequest.CANCELLED
    assert "begun" in kept(mesh)


def test_a_signal_ends_a_training_as_cancelled(mesh, start):
    process = start(TRAINING, "print('begun')\nimport time\nwhile True: time.sleep(0.1)")
    until(lambda: b"begun" in mesh.log)
    process.send_signal(signal.SIGTERM)
    assert finished(process) == 1
    assert mesh.outcome.outcome == tasks_pb2.ReportOutcomeRequest.CANCELLED


def test_output_made_while_the_mesh_was_away_arrives_in_order_and_so_does_the_outcome(mesh, start):
    process = start(
        TRAINING,
        "import os, time\nprint('line 0')\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
        "for n in range(1, 20001): print('line', n)\n_ = open('done', 'w')",
    )
    until(lambda: b"line 0" in mesh.log)
    mesh.go()
    (process.folder / "app" / "go").touch()
    until((process.folder / "app" / "done").exists)
    time.sleep(0.5)
    assert process.poll() is None
    mesh.come()
    assert finished(process) == 0
    assert mesh.log.decode().split() == " ".join(f"line {n}" for n in range(20001)).split()
    assert mesh.outcome.outcome == tasks_pb2.ReportOutcomeRequest.SUCCEEDED


def test_publishing_waits_for_a_mesh_that_is_away(mesh, start):
    process = start(
        TRAINING,
        "import os, time\nprint('begun')\nwhile not os.path.exists('go'): time.sleep(0.02)\n"
        "from noronha.tools.publish import Publisher\nfrom noronha.tools.shortcuts import tmp_path\n"
        "_ = open(tmp_path('clf.pkl'), 'w').write('model')\n_ = open('asking', 'w')\nPublisher()()",
    )
    until(lambda: b"begun" in mesh.log)
    mesh.go()
    (process.folder / "app" / "go").touch()
    until((process.folder / "app" / "asking").exists)
    away = time.monotonic() + 4  # longer than gRPC itself asks again
    until(lambda: process.poll() is not None or time.monotonic() > away)
    assert process.poll() is None
    mesh.come()
    assert finished(process) == 0
    assert mesh.published == ["models/iris-clf/versions/experiment-v1@1"]
    assert mesh.log.count(b"does not answer; trying again for 5 minutes") == 1, "the notebook's log says why it stood"


def test_a_task_that_the_mesh_has_given_up_ends_by_itself(mesh, start):
    process = start(TRAINING, "import time\nwhile True:\n  print('x')\n  time.sleep(0.1)")
    until(lambda: b"x" in mesh.log)
    mesh.ended = True
    assert finished(process) == 1
    assert mesh.outcome is None


def test_details_and_names_that_cannot_be_are_refused_in_the_notebook(mesh, start):
    process = start(
        TRAINING,
        "from noronha.tools.publish import Publisher\n"
        "from noronha.tools.errors import NhaDataError, ResolutionError\n"
        "from noronha.tools.shortcuts import *\n"
        "from noronha.rpc.errors import NoronhaError, NotFound\n"
        "def refused(kind, call, *arguments, **named):\n"
        "    try: call(*arguments, **named)\n"
        "    except kind as error: print('refused:', type(error).__name__, error)\n"
        "    else: print('TAKEN', arguments, named)\n"
        "p = Publisher()\n"
        "refused(NhaDataError, p, details={'metrics': {'score': float('nan')}})\n"
        "refused(NoronhaError, p)\n"
        "refused(ResolutionError, p, uses_pretrained=True)\n"
        "refused(ResolutionError, data_path, 'x')\n"
        "refused(ResolutionError, model_path, 'x', version='v1')\n"
        "refused(NotFound, require_movers, 'nobody-has')\n"
        "refused(FileNotFoundError, lambda: open(tmp_path('none')))\n"
        "print('ignored', dataset_meta(ignore=True).details)",
    )
    assert finished(process) == 0
    log = mesh.log.decode()
    assert "TAKEN" not in log and log.count("refused:") == 7
    assert "details.metrics.score is nan" in log
    assert "clf.pkl" in log and "Found" not in log.split("ignored")[0].split("refused: ResolutionError")[2]
    assert "ignored {}" in log


def test_names_outside_the_grammar_are_refused_in_the_notebook(mesh, start):
    process = start(
        TRAINING,
        "from noronha.tools.publish import Publisher\n"
        "from noronha.tools.shortcuts import *\n"
        "from noronha.rpc.errors import InvalidArgument\n"
        "open(tmp_path('clf.pkl'), 'w').write('x')\n"
        "publish, asked = Publisher(), 0\n"
        "for name in ('a_b', '-a', 'a--b', 'a b', 'x:y', '../../x', 'a' * 65, '\uff41', 'a\\n'):\n"
        "    for call in (require_movers, require_dataset, lambda name: publish(version_name=name),\n"
        "                 lambda name: publish(model_name=name)):\n"
        "        try: call(name)\n"
        "        except InvalidArgument as error: asked += error.reason == 'BAD_NAME'\n"
        "        else: print('TAKEN', ascii(name))\n"
        "print('refused', asked)",
    )
    assert finished(process) == 0
    assert "refused 36" in mesh.log.decode(), mesh.log.decode()
    assert not mesh.versions and "TAKEN" not in mesh.log.decode()


def version(mesh, name, revision, content):
    record = model_version_pb2.ModelVersion(
        name=f"models/iris-clf/versions/{name}", revision=revision, stored=True,
        files=[mesh.put("clf.pkl", content)], details_json='{"n": 1}',
    )  # fmt: skip
    record.create_time.FromSeconds(1700000000)
    mesh.versions.setdefault(record.name, []).append(record)
    return record


def call(mesh, method, path, body=None):
    beat = next(each for each in reversed(mesh.heartbeats) if each.ready)
    connection = http.client.HTTPConnection(beat.host, beat.port, timeout=30)
    try:
        connection.request(method, path, body=body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_replica_serves_tells_where_and_drains(mesh, start):
    process = start(
        REPLICA,
        "from noronha.tools.shortcuts import model_path, movers_meta\n"
        "from noronha.tools.serving import OnlinePredict\n"
        "import time\n"
        "model = open(model_path('clf.pkl')).read()\n"
        "def predict(body):\n"
        "    print('asked', body)\n"
        "    if body == 'slow': time.sleep(1)\n"
        "    return model + ' ' + body\n"
        "OnlinePredict(predict_func=predict)()",
        model_versions=[version(mesh, "v1", 1, b"one"), version(mesh, "v10", 1, b"ten")][:1],
    )
    until(lambda: any(each.ready for each in mesh.heartbeats))
    status, answer = call(mesh, "POST", "/predict", "x")
    assert status == 200 and json.loads(answer)["result"] == "one x"
    (told,) = json.loads(answer)["metadata"]["model_version"]
    assert told.startswith("iris-clf:v1:2023-11-1")
    until(lambda: b"asked x" in mesh.log)
    got = []
    slow = threading.Thread(target=lambda: got.append(call(mesh, "POST", "/predict", "slow")))
    slow.start()
    until(lambda: b"asked slow" in mesh.log)
    command = tasks_pb2.Command()
    command.shutdown.grace.FromSeconds(20)
    mesh.commands.put(command)
    slow.join(30)
    assert got[0][0] == 200
    assert finished(process) == 0
    assert mesh.outcome.outcome == tasks_pb2.ReportOutcomeRequest.SUCCEEDED


def test_a_lazy_replica_fetches_versions_and_takes_up_updates(mesh, start):
    version(mesh, "v1", 1, b"first")
    process = start(
        REPLICA,
        "from noronha.tools.serving import LazyModelServer\n"
        "def load(path, meta): return open(path + '/clf.pkl').read()\n"
        "def predict(body, model, meta): return [model, meta.name, meta.revision]\n"
        "LazyModelServer(predict, load, model_name='iris-clf')()",
    )
    until(lambda: any(each.ready for each in mesh.heartbeats))

    def ask(name):
        status, answer = call(mesh, "POST", f"/predict?model_version={name}", "x")
        return status, json.loads(answer).get("result")

    assert ask("v1") == (200, ["first", "v1", 1])
    assert ask("nobody-has")[0] == 404
    for name in ("a_b", "-a", "a--b", "a%20b", "x:y", "..%2F..%2Fx", "a" * 65, "%EF%BD%81", "a%0A", ""):
        assert ask(name)[0] == 400, name
        assert call(mesh, "POST", f"/update?model_version={name}", "")[0] == 400, name
    version(mesh, "v1", 2, b"second")
    assert ask("v1") == (200, ["first", "v1", 1])
    command = tasks_pb2.Command()
    command.update.model_version = "models/iris-clf/versions/v1@2"
    mesh.commands.put(command)
    until(lambda: ask("v1") == (200, ["second", "v1", 2]))
    assert call(mesh, "GET", "/health")[0] == 200
    process.send_signal(signal.SIGTERM)
    assert finished(process) == 0


def test_a_replica_that_never_serves_fails(mesh, start):
    assert finished(start(REPLICA, "print('nothing')")) == 1
    assert reason(mesh)[0] == "NOT_SERVING"


def test_two_tasks_that_write_the_same_temporary_name_do_not_meet(mesh, start):
    cells = [
        "import tempfile, time, os\nfrom noronha.tools.shortcuts import tmp_path\n"
        "path = os.path.join(tempfile.gettempdir(), 'same')\nassert path == tmp_path('same')\n"
        "open(path, 'w').write(str(os.getpid())); time.sleep(1)\nassert open(path).read() == str(os.getpid())"
    ]
    first, second = start(TRAINING, *cells), start(TRAINING, *cells)
    assert (finished(first), finished(second)) == (0, 0)
