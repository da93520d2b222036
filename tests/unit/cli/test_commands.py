"""The shape of the command: help everywhere, a fresh reference, a light start, one line for each error."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import click
import grpc
import pytest
import yaml

from noronha.cli import background, documents, failures, main, output, publishing, reference, wording
from noronha.cli.target import Target
from noronha.rpc.errors import Unknown, to_status
from noronha.v1 import mesh_pb2, mesh_pb2_grpc, metadata_pb2_grpc, project_pb2

ROOT = Path(__file__).resolve().parents[3]


def _tree(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command]]:
    yield context.command_path, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _tree(inner, click.Context(inner, info_name=name, parent=context))


def commands() -> list[tuple[str, click.Command]]:
    return list(_tree(main.root, click.Context(main.root, info_name="nha")))


@pytest.mark.parametrize("path,command", commands(), ids=[path for path, _ in commands()])
def test_every_command_and_option_has_help(path: str, command: click.Command) -> None:
    assert command.help and command.help.strip(), f"{path} has no help"
    silent = [each.name for each in command.params if isinstance(each, click.Option) and not each.help]
    assert silent == [], f"options of {path} without help"
    assert all(isinstance(each, click.Option) for each in command.params), f"{path} takes bare arguments"


@pytest.mark.parametrize("path,command", commands(), ids=[path for path, _ in commands()])
def test_every_command_takes_output_and_no_option_twice(path: str, command: click.Command) -> None:
    names = [name for each in command.params for name in each.opts]
    assert len(names) == len(set(names)), f"{path} has an option twice"
    if not isinstance(command, click.Group):
        assert "-o" in names and "--output" in names


def test_the_subjects_lines_are_their_own() -> None:
    for name, line in main.SUBJECTS.items():
        subject = main.root.get_command(click.Context(main.root), name)
        assert subject is not None and subject.help == line


def test_the_reference_is_fresh() -> None:
    written = (ROOT / "cli" / "README.md").read_text(encoding="utf-8")
    assert written == reference.write().rstrip() + "\n", "run: python -m noronha.cli.reference > cli/README.md"


def _imported(*arguments: str) -> set[str]:
    code = (
        "import sys; from noronha.cli.main import main; code = main(sys.argv[1:]); "
        "sys.stdout.flush(); print(*sorted(sys.modules), file=sys.stderr); sys.exit(code)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return set(answer.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("train", "new", "--help"), ("mesh", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    heavy = {
        "grpc", "google.protobuf", "yaml", "asyncio", "rich", "noronha.rpc.settings", "noronha.client.connection",
    }  # fmt: skip
    assert _imported(*arguments) & heavy == set()


def test_help_loads_no_subject() -> None:
    assert not [name for name in _imported("--help") if name.startswith("noronha.cli.subjects.")]


def nha(*arguments: str, home: Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    return subprocess.run(
        [sys.executable, "-m", "noronha.cli.main", *arguments], capture_output=True, text=True, timeout=60, check=False,
        cwd=cwd or home, stdin=subprocess.DEVNULL, env={**kept, "HOME": str(home), **environment},
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _stopped(tmp_path: Path) -> Iterator[None]:
    """Leaves no mesh behind where a command that should have been refused has started one."""
    yield
    if (tmp_path / ".nha" / "mesh").exists():
        nha("mesh", "down", "--stop-tasks", home=tmp_path)


@pytest.mark.parametrize(
    "arguments,part",
    [
        (("nonsense",), "nonsense"),
        (("model", "nonsense"), "nonsense"),
        (("model", "new"), "--name"),
        (("model", "new", "--name", "m", "--model-file", "{"), "not JSON"),
        (("model", "new", "--name", "m", "--model-file", '{"name": "a", "size": 1}'), "size"),
        (
            ("model", "new", "--name", "m", "--model-file", '{"name": "a", "max_mb": "1"}'),
            'max_mb must be a whole number, not "1"',
        ),
        (("model", "new", "--name", "m", "--model-file", '{"max_mb": 1}'), "name"),
        (("train", "new", "--nb", "n", "--params", "[1]"), "not a JSON object"),
        (("train", "new", "--nb", "n", "--params", '{"a": NaN}'), "NaN"),
        (("train", "new", "--nb", "n", "--params", '{"a": 1, "a": 2}'), "twice"),
        (("train", "new", "--nb", "n", "--params", '{"a": ' * 5000 + "1" + "}" * 5000), "more than 64 levels"),
        (("train", "new", "--nb", "n", "-e", "A"), "KEY=VALUE"),
        (("train", "new", "--nb", "n", "-e", "A=1", "-e", "A=2"), "twice"),
        (("train", "new", "--nb", "n", "-m", "/a"), "SOURCE:TARGET"),
        (("train", "new", "--nb", "n", "-m", "/a:/b:rx"), "SOURCE:TARGET"),
        (("train", "new", "--nb", "n", "--ds", "iris"), "model:name"),
        (("train", "new", "--nb", "n", "--rp", "huge"), "huge"),
        (("depl", "new", "--port", "0"), "0"),
        (("depl", "new", "--port", "65536"), "65536"),
        (("proj", "build", "--from-here", "--from-git"), "--from-git"),
        (("model", "update", "--name", "m"), "nothing to update"),
        (("model", "list", "--limit", "0"), "0"),
        (("movers", "list", "--proj", "p"), "--train"),
        (("-o", "xml", "version"), "xml"),
        (("trian", "new"), "no such command 'trian'; did you mean 'train'? See 'nha --help'"),
        (("model", "lst"), "no such command 'lst'; did you mean 'list'? See 'nha model --help'"),
        (("zzzz",), "no such command 'zzzz'; see 'nha --help'"),
        (("depl", "new", "--port", "22x"), "'22x' is not a valid whole number"),
        (("train", "notebook", "--name", "x", "--path", "/nope/x.ipynb"), "there is no folder /nope"),
        (("model", "new", "--name", "a_b"), "--name 'a_b' must be letters and digits"),
        (("proj", "new", "--name", "a_b"), "--name 'a_b' must be letters and digits"),
        (("train", "new", "--name", "a_b", "--nb", "n"), "--name 'a_b' must be letters and digits"),
        (("train", "info", "--name", "x", "--proj", "a/b"), "--proj 'a/b' must be letters and digits"),
        (("bvers", "info", "--tag", "-x"), "--tag '-x' must be"),
        (("ds", "info", "--model", "m", "--name", "d@0"), "--name 'd@0' has no revision like that"),
    ],
    ids=lambda value: " ".join(value)[:80] if isinstance(value, tuple) else "",
)
def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    """Before any mesh is started, so nothing can have changed."""
    answer = nha(*arguments, home=tmp_path)
    lines = answer.stderr.strip().splitlines()
    assert answer.returncode == 2, answer
    assert len(lines) == 1 and lines[0].startswith("Error: ") and part in lines[0] and lines[0].endswith("]"), lines
    assert answer.stdout == "" and not (tmp_path / ".nha").exists()


def test_an_unknown_setting_is_one_line_that_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "nha.yaml").write_text("ruoter: {port: 1}\n")
    answer = nha("model", "list", home=tmp_path)
    assert answer.returncode == 2 and "router" in answer.stderr and "[BAD_SETTING]" in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("port", "why"), [("banana", "a whole number, not 'banana'"), ("70000", "1 to 65535, not 70000")])
def test_a_setting_that_cannot_be_is_said_by_its_key(tmp_path: Path, port: str, why: str) -> None:
    """And not by the option of some command that is called alike."""
    (tmp_path / "nha.yaml").write_text(f"router: {{port: {port}}}\n")
    answer = nha("model", "list", home=tmp_path)
    assert (answer.returncode, answer.stderr) == (2, f"Error: setting router.port must be {why} [BAD_SETTING]\n")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "nha.yaml").write_text("ruoter: {port: 1}\n")
    assert "Traceback" in nha("-d", "model", "list", home=tmp_path).stderr


def test_version_is_shown_for_people_and_machines(tmp_path: Path) -> None:
    assert nha("version", home=tmp_path).stdout.startswith("Noronha Dataops v")
    assert nha("version", "-o", "json", home=tmp_path).stdout.startswith('{"version": "')
    assert nha("-o", "json", "version", home=tmp_path).stdout.startswith('{"version": "')
    assert nha("version", "-o", "table", home=tmp_path).stdout.startswith("VERSION\n")


@pytest.mark.parametrize(
    "given,kept",
    [
        (["-b", "model", "list"], ["model", "list"]),
        (["-bs", "model", "list", "-b"], ["-s", "model", "list", "-b"]),
        (["-sbl", "WARN", "-p", "proj", "list"], ["-sl", "WARN", "-p", "proj", "list"]),
        (["-l", "-b", "x"], ["-l", "-b", "x"]),
        (["--background", "--skip-questions", "train"], ["--skip-questions", "train"]),
        (["-ojson", "-b", "train"], ["-ojson", "train"]),
    ],
)
def test_the_flag_for_background_is_taken_out(given: list[str], kept: list[str]) -> None:
    assert background.without_background(given) == kept


def test_background_returns_at_once_and_logs_to_the_file(tmp_path: Path) -> None:
    answer = nha("-b", "version", home=tmp_path)
    log = tmp_path / ".nha" / "logs" / "noronha.log"
    assert answer.returncode == 0 and str(log) in answer.stdout
    import time

    deadline = time.monotonic() + 30
    while "Noronha Dataops v" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_text_leaves_out_what_is_empty_but_nothing_that_a_user_wrote() -> None:
    details = {"params": {"a": None, "b": [1, None, ""], "c": {}}}
    document = {"name": "t", "desc": "", "ds": [], "labels": {}, "env_vars": {"EMPTY": ""}, "details": details}
    shown = output.to_text(document)
    assert yaml.safe_load(shown) == {"name": "t", "env_vars": {"EMPTY": ""}, "details": details}


@pytest.mark.parametrize("given", [("note",), ("isle", "list"), ("tchest", "new", "--help")])
def test_what_this_version_does_not_have_is_said(tmp_path: Path, given: tuple[str, ...]) -> None:
    answer = nha(*given, home=tmp_path)
    assert answer.returncode == 5 and answer.stdout == ""
    assert answer.stderr.startswith("Error: this version of Noronha has no ") and "[NOT_IMPLEMENTED]" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["status", "up", "down"])
def test_an_address_where_nobody_answers_is_named_with_where_it_was_set(tmp_path: Path, command: str) -> None:
    with socket.socket() as taken:  # bound and never listening, so nobody else can come to answer there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        by_variable = nha("mesh", command, home=tmp_path, NHA_MESH__ADDRESS=address)
        (tmp_path / "nha.yaml").write_text(f"mesh: {{address: '{address}'}}\n")
        by_file = nha("mesh", command, home=tmp_path)
    for answer, origin in ((by_variable, "NHA_MESH__ADDRESS"), (by_file, str(tmp_path / "nha.yaml"))):
        assert answer.returncode == 7 and len(answer.stderr.splitlines()) == 1, answer
        assert (
            f"no mesh answers at {address}: " in answer.stderr and f"mesh.address, set in {origin}, " in answer.stderr
        )
        assert "start one there, set it to another server of the mesh, or unset it" in answer.stderr
        assert "nha mesh status" not in answer.stderr


class _Metadata(metadata_pb2_grpc.MetadataServicer):
    def GetProject(self, request: Any, context: Any) -> project_pb2.Project:
        return project_pb2.Project(name=request.name)


class _Mesh(mesh_pb2_grpc.MeshServicer):
    builder = ""

    def GetInfo(self, request: Any, context: Any) -> mesh_pb2.MeshInfo:
        return mesh_pb2.MeshInfo(services=[{"name": "metadata"}, {"name": "builder", "address": self.builder}])


def test_a_server_elsewhere_that_does_not_answer_is_named_itself(tmp_path: Path) -> None:
    mesh = _Mesh()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    metadata_pb2_grpc.add_MetadataServicer_to_server(_Metadata(), server)
    mesh_pb2_grpc.add_MeshServicer_to_server(mesh, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            mesh.builder = f"127.0.0.1:{taken.getsockname()[1]}"
            answer = nha("bvers", "rm", "--proj", "p", "--tag", "t", home=tmp_path, NHA_MESH__ADDRESS=address)
    finally:
        server.stop(None).wait()
    assert answer.returncode == 7 and f"a server of the mesh, at {mesh.builder}, does not answer" in answer.stderr


def test_a_removal_that_was_cut_off_says_that_it_can_be_repeated(tmp_path: Path) -> None:
    """The mesh is another process, which dies as soon as it is asked to remove."""
    dying = """if True:
        import os, sys
        from concurrent import futures
        import grpc
        from noronha.rpc.release import own_version
        from noronha.v1 import mesh_pb2, mesh_pb2_grpc, metadata_pb2_grpc, project_pb2, runner_pb2_grpc

        class Mesh(mesh_pb2_grpc.MeshServicer):
            def GetInfo(self, request, context):
                return mesh_pb2.MeshInfo(version=own_version())

        class Metadata(metadata_pb2_grpc.MetadataServicer):
            def GetProject(self, request, context):
                return project_pb2.Project(name=request.name)

        class Runner(runner_pb2_grpc.RunnerServicer):
            def DeleteDeployment(self, request, context):
                os._exit(1)

        server = grpc.server(futures.ThreadPoolExecutor(2))
        mesh_pb2_grpc.add_MeshServicer_to_server(Mesh(), server)
        metadata_pb2_grpc.add_MetadataServicer_to_server(Metadata(), server)
        runner_pb2_grpc.add_RunnerServicer_to_server(Runner(), server)
        server.add_insecure_port(f"unix:{sys.argv[1]}")
        server.start()
        print("up", flush=True)
        server.wait_for_termination()
    """
    folder = tmp_path / ".nha" / "mesh"
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", dying, str(folder / "mesh.sock")], stdout=subprocess.PIPE) as mesh:
        try:
            assert mesh.stdout is not None and mesh.stdout.readline() == b"up\n"
            answer = nha("depl", "rm", "--proj", "p", "--name", "d", home=tmp_path)
        finally:
            mesh.kill()
    lines = answer.stderr.splitlines()
    assert answer.returncode == 7 and len(lines) == 1, answer
    assert "does not answer" in lines[0] and lines[0].endswith("run it again [UNAVAILABLE]")


def test_an_address_that_is_none_is_refused(tmp_path: Path) -> None:
    answer = nha("mesh", "status", home=tmp_path, NHA_MESH__ADDRESS="garbage")
    assert answer.returncode == 2 and "must be host:port" in answer.stderr and "[BAD_SETTING]" in answer.stderr


def test_calls_are_shown_at_debug_alone(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        shown = nha("-l", "DEBUG", "mesh", "status", home=tmp_path, NHA_MESH__ADDRESS=address).stderr.splitlines()
        silent = nha("mesh", "status", home=tmp_path, NHA_MESH__ADDRESS=address).stderr.splitlines()
    assert re.fullmatch(r"Mesh/GetInfo UNAVAILABLE [0-9.]+ ms", shown[0]) and len(shown) == 2 and len(silent) == 1


def test_every_exit_code_is_explained_and_every_explanation_is_of_one(tmp_path: Path) -> None:
    from noronha.client.work import WorkCancelled, WorkFailed
    from noronha.rpc import errors

    codes = {failures.exit_code(each("x")) for each in (*errors.BY_CODE.values(), WorkCancelled, WorkFailed)}
    codes |= {0, failures.DECLINED, failures.USAGE, failures.DISK_FULL, failures.UNEXPECTED, failures.INTERRUPTED}
    assert codes == failures.MEANINGS.keys()
    assert "cancelled" in failures.MEANINGS[failures.exit_code(WorkCancelled("x"))]
    assert "failed" in failures.MEANINGS[failures.exit_code(WorkFailed("x"))]
    shown = " ".join(nha("--help", home=tmp_path).stdout.split())
    for code, meaning in failures.MEANINGS.items():
        assert f"{code} {meaning}" in shown, "nha --help explains them too"


def test_what_is_said_during_a_transfer_does_not_run_into_its_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    target = Target()
    target.voice = output.Voice()
    with publishing.progress(target) as show:
        assert show is not None
        show("send", 3_000_000, 3_000_000)
        target.voice.info("Store does not answer")
    target.voice.info("done")
    wiped = "\r\x1b[K"
    assert capsys.readouterr().err == f"{wiped}Uploading 3 of 3 MB{wiped}Store does not answer\n{wiped}done\n"


def test_a_table_has_few_columns_and_each_is_a_field_of_its_document() -> None:
    from noronha.v1 import (
        build_pb2,
        dataset_pb2,
        deployment_pb2,
        model_pb2,
        model_version_pb2,
        project_pb2,
        training_pb2,
    )

    records = [
        model_pb2.Model(name="models/m"), project_pb2.Project(name="projects/p"),
        build_pb2.Build(name="projects/p/builds/b"), dataset_pb2.Dataset(name="models/m/datasets/d"),
        model_version_pb2.ModelVersion(name="models/m/versions/v"),
        training_pb2.Training(name="projects/p/trainings/t"), deployment_pb2.Deployment(name="projects/p/deployments/d"),
    ]  # fmt: skip
    assert {documents.kind_of(each) for each in records} == documents.COLUMNS.keys()
    for record in records:
        columns = documents.COLUMNS[documents.kind_of(record)]
        assert 3 <= len(columns) <= 8
        output.table([documents.of(record)], columns)  # raises where a column is no field


def test_a_table_shows_no_lists_of_records_and_no_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"name": "d", "task": {"state": "READY"}, "error": "a whole sentence"}], ("name", "task.state"))
    output.table([{"name": "d", "revisions": [{"revision": 1}]}])
    assert capsys.readouterr().out == "NAME  STATE\nd     READY\nNAME\nd\n"


def test_sentences_that_records_keep_name_things_as_people_do() -> None:
    from noronha.v1 import deployment_pb2, replica_pb2, training_pb2

    said = "projects/p/deployments/d was not updated: projects/p is busy, see models/clf.pkl"
    words = "deployment p:d was not updated: project p is busy, see models/clf.pkl"
    training = training_pb2.Training(name="projects/p/trainings/t", warnings=[said])
    training.status.error.message = said
    document = documents.of(training)
    assert (document["warnings"], document["task"]["error"]) == ([words], words)
    deployment = deployment_pb2.Deployment(name="projects/p/deployments/d")
    deployment.status.error.message = deployment.status.port_error = said
    deployment.status.revisions.add(revision=1).error.message = said
    document = documents.of(deployment)
    assert (document["error"], document["port_error"], document["revisions"][0]["error"]) == (words, words, words)
    replica = replica_pb2.Replica(name="projects/p/deployments/d/replicas/r")
    replica.error.message = said
    assert documents.replica(replica)["error"] == words


def test_what_a_cell_raised_stays_as_it_was_raised() -> None:
    from noronha.v1 import deployment_pb2, training_pb2

    said = "Cell 1 raised ValueError: projects/p/trainings/t and 'models/bert/versions/3' are bad"
    error = Unknown(said, reason="CELL_RAISED")
    training = training_pb2.Training(name="projects/p/trainings/t")
    training.status.reason, training.status.error.message = "CELL_RAISED", said
    assert documents.of(training)["task"]["error"] == wording.in_words(error) == said
    deployment = deployment_pb2.Deployment(name="projects/p/deployments/d")
    deployment.status.revisions.add(revision=1).error.CopyFrom(to_status(error))
    assert documents.of(deployment)["revisions"][0]["error"] == said
    quoted = "projects/p/deployments/d did not take t up everywhere: r1: no file 'models/bert/versions/3'"
    training.warnings.append(quoted)
    assert documents.of(training)["warnings"] == [quoted.replace("projects/p/deployments/d", "deployment p:d")]


def test_a_version_shows_what_its_training_and_dataset_were_when_it_was_made() -> None:
    """Whose names may have been used again since."""
    from noronha.v1 import dataset_pb2, model_version_pb2, training_pb2

    record = model_version_pb2.ModelVersion(
        name="models/m/versions/v",
        training="projects/p/trainings/t",
        training_snapshot=training_pb2.Training(
            name="projects/p/trainings/t", notebook="notebooks/train.ipynb", build="projects/p/builds/latest@2",
            params_json='{"gamma": 0.1, "none": ""}', details_json='{"note": ""}', datasets=["models/m/datasets/d@3"],
        ),
        dataset="models/m/datasets/d@3",
        dataset_snapshot=dataset_pb2.Dataset(name="models/m/datasets/d", revision=3, details_json='{"rows": 150}'),
    )  # fmt: skip
    record.training_snapshot.status.start_time.FromSeconds(1_700_000_000)
    record.dataset_snapshot.create_time.FromSeconds(1_600_000_000)
    document = yaml.safe_load(output.to_json(documents.of(record)))
    assert (document["train"], document["ds"]) == ("p:t", "m:d@3")
    assert document["train_snapshot"] == {
        "notebook": "notebooks/train.ipynb", "bvers": "p:latest@2", "params": {"gamma": 0.1, "none": ""},
        "details": {"note": ""}, "ds": ["m:d@3"], "start_time": "2023-11-14T22:13:20.000000Z", "end_time": None,
    }  # fmt: skip
    assert document["ds_snapshot"] == {"revision": 3, "details": {"rows": 150}, "created": "2020-09-13T12:26:40.000000Z"}
    text = yaml.safe_load(output.to_text(documents.of(record)))
    assert text["train_snapshot"]["params"] == {"gamma": 0.1, "none": ""}
    assert text["train_snapshot"]["details"] == {"note": ""} and "end_time" not in text["train_snapshot"]
    bare = documents.of(model_version_pb2.ModelVersion(name="models/m/versions/v"))
    assert bare["train_snapshot"] is None and bare["ds_snapshot"] is None
    assert "snapshot" not in output.to_text(bare)
