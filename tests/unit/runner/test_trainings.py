"""The life of trainings on a real mesh: every end has its state and its reason, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2

from noronha.rpc.dial import dial, new_request_id
from noronha.rpc.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unimplemented,
)
from noronha.v1 import (
    island_pb2,
    metadata_pb2,
    model_version_pb2,
    mount_pb2,
    notebook_pb2,
    records_pb2,
    resources_pb2,
    runner_pb2,
    store_pb2,
    task_status_pb2,
    tasks_pb2,
    tasks_pb2_grpc,
    training_pb2,
)
from tests.waiting import until

from .conftest import TestMesh, notebook

State = task_status_pb2.TaskStatus


def reason(error: pytest.ExceptionInfo[NoronhaError]) -> str:
    return error.value.reason


def read(mesh: TestMesh, digest: str) -> bytes:
    return b"".join(piece.data for piece in mesh.store.ReadBlob(store_pb2.ReadBlobRequest(digest=digest)))


def kernels(mesh: TestMesh) -> list[int]:
    found = []
    for pid in mesh.remains():
        try:
            if b"ipykernel" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found


class TestEnds:
    def test_a_training_succeeds(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('gamma is', gamma)", parameters="gamma = 1"), params_json='{"gamma": 3}')
        assert made.status.state == State.PENDING
        assert made.build.endswith("@1") and made.notebook == "train.ipynb"
        ended = shared.ended(made.name)
        assert (ended.status.state, ended.status.progress, ended.status.reason) == (State.SUCCEEDED, 1.0, "")
        assert ended.status.start_time.ToNanoseconds() <= ended.status.end_time.ToNanoseconds()
        assert b"gamma is 3" in shared.log(made.name)
        executed = json.loads(read(shared, ended.executed_notebook.digest))
        assert "gamma is 3" in json.dumps(executed)
        shared.nothing_remains()

    def test_a_name_is_drawn(self, shared: TestMesh) -> None:
        assert shared.train(notebook()).name.count("-") >= 2

    def test_one_that_has_ended_is_replaced_only_once_all_was_checked(self, shared: TestMesh) -> None:
        first = shared.ended(shared.train(notebook("print('the first')"), "again").name)
        wrong = training_pb2.Training(build=first.build, notebook="train", datasets=["models/m/datasets/none"])
        request = runner_pb2.CreateTrainingRequest(
            parent="projects/p", training_id="again", training=wrong, replace=True, request_id=new_request_id()
        )
        with pytest.raises(NotFound):
            shared.runner.CreateTraining(request)
        assert shared.training(first.name) == first and b"the first" in shared.log(first.name)
        build = shared.build(train=notebook("print('the second')"))
        request.training.CopyFrom(training_pb2.Training(build=build, notebook="train"))
        second = shared.runner.CreateTraining(request)
        assert second.status.state == State.PENDING
        ended = shared.ended(second.name)
        assert (ended.status.state, ended.create_time) == (State.SUCCEEDED, second.create_time)
        assert b"the second" in shared.log(second.name) and b"the first" not in shared.log(second.name)
        assert shared.runner.CreateTraining(request) == second, "a repeat is answered as the first time"
        assert shared.training(second.name) == ended

    def test_one_that_runs_is_not_replaced(self, shared: TestMesh) -> None:
        made = shared.train(notebook("import time; time.sleep(600)"), "busy")
        again = runner_pb2.CreateTrainingRequest(
            parent="projects/p", training_id="busy", training=training_pb2.Training(build=made.build, notebook="train"),
            replace=True, request_id=new_request_id(),
        )  # fmt: skip
        with pytest.raises(FailedPrecondition) as refused:
            shared.runner.CreateTraining(again)
        assert refused.value.reason == "STILL_RUNNING"
        shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        assert shared.ended(made.name).status.state == State.CANCELLED

    def test_a_cell_that_raises(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('before')", "raise KeyError('why')"))
        ended = shared.ended(made.name)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "CELL_RAISED")
        assert "KeyError" in ended.status.error.message
        assert b"before" in read(shared, ended.executed_notebook.digest)

    def test_a_kernel_that_is_killed(self, shared: TestMesh) -> None:
        made = shared.train(notebook("import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"))
        ended = shared.ended(made.name)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "KERNEL_DIED")
        assert ended.executed_notebook.digest
        shared.nothing_remains()

    @pytest.mark.parametrize("cell", ["import os; os._exit(0)", "import sys; sys.exit(3)"])
    def test_a_notebook_that_leaves_has_failed(self, shared: TestMesh, cell: str) -> None:
        ended = shared.ended(shared.train(notebook(cell)).name)
        assert ended.status.state == State.FAILED
        assert ended.status.reason in ("KERNEL_DIED", "CELL_RAISED")
        shared.nothing_remains()

    def test_a_notebook_that_is_not_there(self, shared: TestMesh) -> None:
        training = training_pb2.Training(build=shared.build(other=notebook()), notebook="train")
        made = shared.runner.CreateTraining(runner_pb2.CreateTrainingRequest(parent="projects/p", training=training))
        ended = shared.ended(made.name)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "NOTEBOOK_NOT_FOUND")

    def test_what_a_notebook_leaves_running_is_ended(self, shared: TestMesh) -> None:
        made = shared.train(
            notebook(
                """
import os, subprocess, time
subprocess.Popen(["/bin/sleep", "700"], env={}, start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    os.environ.clear()
    while True: time.sleep(1)
"""
            )
        )
        assert shared.ended(made.name).status.state == State.SUCCEEDED
        shared.nothing_remains()
        until(lambda: not _sleeping("700"), "the sleeper is gone")

    def test_the_task_itself_is_killed(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('here', flush=True)", "import time; time.sleep(600)"))
        shared.logged(made.name, b"here")
        (task,) = [
            pid for pid in shared.remains() if b"noronha.tools.task" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(task, signal.SIGKILL)
        ended = shared.ended(made.name, 20)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "TASK_KILLED")
        assert "SIGKILL" in ended.status.error.message
        assert b"SIGKILL" in shared.log(made.name)
        shared.nothing_remains()

    def test_the_supervisor_is_killed(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('here', flush=True)", "import time; time.sleep(600)"))
        shared.logged(made.name, b"here")
        (supervisor,) = [pid for pid in shared.remains() if b"supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(supervisor, signal.SIGKILL)
        ended = shared.ended(made.name, 20)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "TASK_LOST")
        shared.nothing_remains()

    def test_the_kernel_is_killed_from_outside(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('here', flush=True)", "import time; time.sleep(600)"))
        shared.logged(made.name, b"here")
        for pid in kernels(shared):
            os.kill(pid, signal.SIGKILL)
        ended = shared.ended(made.name, 20)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "KERNEL_DIED")
        assert b"here" in read(shared, ended.executed_notebook.digest)

    def test_memory_that_runs_out(self, shared: TestMesh) -> None:
        limits = resources_pb2.Resources(limits=resources_pb2.Resources.Amount(memory_mb=400))
        made = shared.train(notebook("x = bytearray(1 << 30)", "x[::4096] = b'1' * len(x[::4096])"), resources=limits)
        ended = shared.ended(made.name)
        assert ended.status.HasField("limits_applied")
        if ended.status.limits_applied:
            assert (ended.status.state, ended.status.reason) == (State.FAILED, "OUT_OF_MEMORY")

    def test_without_limits_nothing_is_said_of_them(self, shared: TestMesh) -> None:
        assert not shared.ended(shared.train(notebook()).name).status.HasField("limits_applied")

    def test_a_timeout(self, shared: TestMesh) -> None:
        made = shared.train(notebook("import time; time.sleep(600)"), timeout=duration_pb2.Duration(seconds=4))
        ended = shared.ended(made.name, 40)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "TIMED_OUT")
        assert "4 s" in ended.status.error.message
        shared.nothing_remains()

    def test_a_build_that_is_no_longer_here(self, shared: TestMesh) -> None:
        import shutil

        from noronha.chassis import places

        name = shared.build(train=notebook())
        build = shared.metadata.GetBuild(metadata_pb2.GetBuildRequest(name=name))
        shutil.rmtree(places.source_folder(shared.root, build.artifact.source_digest))
        made = shared.runner.CreateTraining(
            runner_pb2.CreateTrainingRequest(
                parent="projects/p", training=training_pb2.Training(build=name, notebook="train")
            )
        )
        ended = shared.ended(made.name)
        assert (ended.status.state, ended.status.reason) == (State.FAILED, "NOT_STARTED")


def _sleeping(seconds: str) -> bool:
    for entry in Path("/proc").iterdir():
        try:
            if (entry / "cmdline").read_bytes().split(b"\0")[:2] == [b"/bin/sleep", seconds.encode()]:
                return True
        except OSError:
            continue
    return False


class TestCancelling:
    def test_a_cell_that_never_ends(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('here', flush=True)", "while True: pass"))
        shared.logged(made.name, b"here")
        asked = shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        assert asked.status.cancel_requested
        ended = shared.ended(made.name, 30)
        assert (ended.status.state, ended.status.reason) == (State.CANCELLED, "CANCELLED")
        assert b"here" in read(shared, ended.executed_notebook.digest)
        shared.nothing_remains()

    def test_a_cell_that_does_not_listen(self, shared: TestMesh) -> None:
        made = shared.train(
            notebook(
                "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True)",
                """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
            )
        )
        shared.logged(made.name, b"deaf")
        shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        assert shared.ended(made.name, 30).status.state == State.CANCELLED
        shared.nothing_remains()

    def test_at_once(self, shared: TestMesh) -> None:
        made = shared.train(notebook("import time; time.sleep(600)"))
        shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        assert shared.ended(made.name, 30).status.state == State.CANCELLED
        shared.nothing_remains()

    def test_what_has_ended_stays_as_it_is(self, shared: TestMesh) -> None:
        ended = shared.ended(shared.train(notebook()).name)
        asked = shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=ended.name))
        assert asked.status.state == State.SUCCEEDED
        assert not asked.status.cancel_requested

    def test_what_is_not_there(self, shared: TestMesh) -> None:
        with pytest.raises(NotFound):
            shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name="projects/p/trainings/nothing"))


class TestRefusals:
    def create(self, mesh: TestMesh, name: str = "", **fields: Any) -> training_pb2.Training:
        request_id = fields.pop("request_id", "")
        if "build" not in fields:
            fields["build"] = mesh.build(train=notebook())
        training = training_pb2.Training(**{"notebook": "train", **fields})
        return mesh.runner.CreateTraining(
            runner_pb2.CreateTrainingRequest(
                parent=fields.pop("parent", "projects/p"), training_id=name, training=training, request_id=request_id
            )
        )

    @pytest.mark.parametrize(
        ("fields", "why"),
        [
            ({"notebook": ""}, "BAD_NOTEBOOK"),
            ({"notebook": "../../etc/passwd"}, "BAD_NOTEBOOK"),
            ({"params_json": "{"}, "BAD_PARAMS"),
            ({"params_json": "[1]"}, "BAD_PARAMS"),
            ({"params_json": '{"a": NaN}'}, "BAD_PARAMS"),
            ({"params_json": '{"a": 1, "a": 2}'}, "BAD_PARAMS"),
            ({"details_json": "1"}, "BAD_JSON"),
            ({"environment": {"PATH": "/x"}}, "BAD_ENVIRONMENT"),
            ({"environment": {"LD_PRELOAD": "/x"}}, "BAD_ENVIRONMENT"),
            ({"environment": {"1x": "y"}}, "BAD_ENVIRONMENT"),
            ({"mounts": [mount_pb2.Mount(source="/tmp", target="relative")]}, "BAD_MOUNT"),
            ({"mounts": [mount_pb2.Mount(source="/tmp", target="/")]}, "BAD_MOUNT"),
            ({"mounts": [mount_pb2.Mount(source="/tmp", target="/proc/x")]}, "BAD_MOUNT"),
            ({"mounts": [mount_pb2.Mount(source="/tmp", target="/x/../../app")]}, "BAD_MOUNT"),
            ({"mounts": [mount_pb2.Mount(source="volume", target="/x")]}, "BAD_MOUNT"),
            ({"mounts": [mount_pb2.Mount(source="/tmp", target="/x")] * 2}, "BAD_MOUNT"),
            ({"resources": resources_pb2.Resources(limits={"memory_mb": -1})}, "BAD_RESOURCES"),
            ({"timeout": duration_pb2.Duration()}, "BAD_TIMEOUT"),
            ({"timeout": duration_pb2.Duration(seconds=-1)}, "BAD_TIMEOUT"),
            ({"timeout": duration_pb2.Duration(seconds=2**63 - 1)}, "BAD_TIMEOUT"),
            ({"timeout": duration_pb2.Duration(seconds=1, nanos=2**31 - 1)}, "BAD_TIMEOUT"),
            ({"timeout": duration_pb2.Duration(seconds=1, nanos=-1)}, "BAD_TIMEOUT"),
            ({"build": ""}, "BUILD_MISSING"),
            ({"build": "projects/q/builds/b"}, "WRONG_PROJECT"),
            ({"build": "nonsense"}, "BAD_NAME"),
            ({"datasets": ["projects/p"]}, "BAD_NAME"),
            ({"target_deployment": "nonsense"}, "BAD_NAME"),
        ],
    )
    def test_what_makes_no_sense(self, shared: TestMesh, fields: dict[str, Any], why: str) -> None:
        before = self.count(shared)
        with pytest.raises(InvalidArgument) as error:
            self.create(shared, **fields)
        assert reason(error) == why
        assert self.count(shared) == before

    @pytest.mark.parametrize("name", ["a_b", "-a", "a--b", "a b", "x:y", "../../x", "x" * 65, "é", "a\n"])
    def test_names_outside_the_grammar(self, shared: TestMesh, name: str) -> None:
        with pytest.raises(InvalidArgument) as error:
            self.create(shared, name)
        assert reason(error) == "BAD_NAME"

    @pytest.mark.parametrize(
        "fields",
        [
            {"build": "projects/p/builds/none"},
            {"datasets": ["models/m/datasets/none"]},
            {"pretrained": ["models/m/versions/none"]},
        ],
    )
    def test_what_does_not_exist(self, shared: TestMesh, fields: dict[str, Any]) -> None:
        before = self.count(shared)
        with pytest.raises(NotFound):
            self.create(shared, **fields)
        assert self.count(shared) == before

    def test_a_build_that_failed(self, shared: TestMesh) -> None:
        with pytest.raises(FailedPrecondition) as error:
            self.create(shared, build=shared.build(state=State.FAILED, train=notebook()))
        assert reason(error) == "BUILD_NOT_READY"

    def test_a_version_without_files(self, shared: TestMesh) -> None:
        shared.metadata.CreateModelVersion(
            metadata_pb2.CreateModelVersionRequest(
                parent="models/m", model_version_id="bare", model_version=model_version_pb2.ModelVersion()
            )
        )
        with pytest.raises(FailedPrecondition) as error:
            self.create(shared, pretrained=["models/m/versions/bare"])
        assert reason(error) == "NOT_STORED"

    def test_a_mount_that_is_not_there(self, shared: TestMesh) -> None:
        with pytest.raises(FailedPrecondition) as error:
            self.create(shared, mounts=[mount_pb2.Mount(source="/nowhere/at/all", target="/x")])
        assert reason(error) == "MOUNT_NOT_READABLE"

    def test_a_used_name(self, shared: TestMesh) -> None:
        self.create(shared, "used")
        with pytest.raises(AlreadyExists):
            self.create(shared, "used")

    def test_a_request_asked_twice_is_answered_twice_and_done_once(self, shared: TestMesh) -> None:
        build, request_id = shared.build(train=notebook("print('ran')")), new_request_id()
        first = self.create(shared, build=build, request_id=request_id)
        second = self.create(shared, build=build, request_id=request_id)
        shared.ended(first.name)
        third = self.create(shared, build=build, request_id=request_id)
        assert first.name == second.name == third.name
        assert shared.log(first.name).count(b"ran") == 1
        shared.nothing_remains()
        assert shared.training(first.name).status.state == State.SUCCEEDED
        with pytest.raises(AlreadyExists) as error:
            self.create(shared, build=build, request_id=request_id, details_json='{"other": 1}')
        assert reason(error) == "REQUEST_ID_REUSED"
        shared.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=build))
        assert self.create(shared, build=build, request_id=request_id) == first, "what it was made of is gone"
        with pytest.raises(NotFound):
            self.create(shared, build=build, request_id=new_request_id())

    def test_running_ones_are_not_deleted_and_ended_ones_are(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('here', flush=True)", "import time; time.sleep(600)"), "gone")
        shared.logged(made.name, b"here")
        with pytest.raises(FailedPrecondition) as error:
            shared.runner.DeleteTraining(runner_pb2.DeleteTrainingRequest(name=made.name))
        assert reason(error) == "STILL_RUNNING"
        shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        shared.ended(made.name)
        shared.runner.DeleteTraining(runner_pb2.DeleteTrainingRequest(name=made.name))
        with pytest.raises(NotFound):
            shared.training(made.name)
        with pytest.raises(NotFound):
            shared.log(made.name)
        with pytest.raises(NotFound):
            shared.runner.DeleteTraining(runner_pb2.DeleteTrainingRequest(name=made.name))
        again = shared.train(notebook("print('anew')"), "gone")
        assert shared.ended(again.name).status.state == State.SUCCEEDED
        assert shared.log(again.name) == b"anew\n"

    @pytest.mark.parametrize("what", ["notebook", "island"])
    def test_what_is_not_there_yet_says_so(self, shared: TestMesh, what: str) -> None:
        with pytest.raises(Unimplemented) as error:
            if what == "notebook":
                shared.runner.CreateNotebook(
                    runner_pb2.CreateNotebookRequest(parent="projects/p", notebook=notebook_pb2.Notebook())
                )
            else:
                shared.runner.SetIsland(runner_pb2.SetIslandRequest(island=island_pb2.Island(name="islands/mongo")))
        assert reason(error) == "NOT_IMPLEMENTED"

    def count(self, mesh: TestMesh) -> int:
        page = mesh.metadata.ListTrainings(metadata_pb2.ListTrainingsRequest(parent="projects/p", page_size=1000))
        return len(page.trainings)


class TestLogs:
    def test_a_log_is_followed_live_to_its_end(self, shared: TestMesh) -> None:
        made = shared.train(notebook("import time\nfor i in range(5): print(i, flush=True); time.sleep(0.2)"))
        assert shared.log(made.name, follow=True) == b"0\n1\n2\n3\n4\n"

    def test_the_last_lines(self, shared: TestMesh) -> None:
        made = shared.train(notebook("for i in range(100): print(i)"))
        shared.ended(made.name)
        assert shared.log(made.name, tail_lines=2) == b"98\n99\n"

    def test_a_position_that_is_not_ours(self, shared: TestMesh) -> None:
        made = shared.train(notebook())
        with pytest.raises(InvalidArgument) as error:
            shared.log(made.name, position="nonsense")
        assert reason(error) == "BAD_POSITION"

    def test_a_million_prints(self, shared: TestMesh) -> None:
        made = shared.train(notebook("for i in range(1_000_000): print(i)"))
        assert shared.ended(made.name, 120).status.state == State.SUCCEEDED
        text = shared.log(made.name)
        assert text.startswith(b"0\n1\n") and text.endswith(b"\n999999\n")


class TestSideBySide:
    def test_the_same_temporary_file(self, shared: TestMesh) -> None:
        text = notebook(
            "from noronha.tools.shortcuts import tmp_path\nimport time\n"
            "open(tmp_path('same'), 'a').write('mine'); time.sleep(1)\n"
            "print('held', open(tmp_path('same')).read())"
        )
        several = [shared.train(text).name for _ in range(3)]
        for name in several:
            assert shared.ended(name).status.state == State.SUCCEEDED
            assert b"held mine\n" in shared.log(name)

    def test_many_asked_for_at_once(self, shared: TestMesh) -> None:
        build = shared.build(train=notebook("print(n)", parameters="n = 0"))
        names: list[str] = []

        def ask(client: int) -> None:
            for number in range(3):
                training = training_pb2.Training(
                    build=build, notebook="train", params_json=f'{{"n": {100 * client + number}}}'
                )
                request = runner_pb2.CreateTrainingRequest(
                    parent="projects/p", training=training, request_id=new_request_id()
                )
                names.append(shared.runner.CreateTraining(request).name)

        threads = [threading.Thread(target=ask, args=(client,)) for client in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len(set(names)) == 12
        said = {shared.log(name) for name in names if shared.ended(name, 240).status.state == State.SUCCEEDED}
        assert said == {f"{100 * client + number}\n".encode() for client in range(4) for number in range(3)}
        shared.nothing_remains()


class TestWhatTasksMay:
    def test_a_task_speaks_for_itself_only(self, shared: TestMesh) -> None:
        made = shared.train(notebook("print('here', flush=True)", "import time; time.sleep(600)"))
        shared.logged(made.name, b"here")
        (token_file,) = [path for path in (shared.root / "runner/tasks").glob("*/token") if _belongs(path, made.name)]
        tasks = tasks_pb2_grpc.TasksStub(dial(shared.address, token=token_file.read_text()))
        assert tasks.GetAssignment(tasks_pb2.GetAssignmentRequest()).name == made.name
        committed = tasks.Heartbeat(tasks_pb2.HeartbeatRequest()).committed_position
        for progress in (0.5, 0.2, float("nan"), -3, 7, 0.9):
            tasks.ReportProgress(tasks_pb2.ReportProgressRequest(progress=progress))
        until(lambda: shared.training(made.name).status.progress == 1.0, "progress goes forward only")
        with pytest.raises(NoronhaError) as error:
            tasks.AppendOutput(tasks_pb2.AppendOutputRequest(position=committed + 1000, data=b"x"))
        assert reason(error) == "LOG_GAP"
        with pytest.raises(InvalidArgument):
            tasks.ReportPublished(tasks_pb2.ReportPublishedRequest(model_version="models/m/versions/v"))
        runner = type(shared.runner)(dial(shared.address, token=token_file.read_text()))
        with pytest.raises(PermissionDenied):
            runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        token = token_file.read_text()
        shared.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
        shared.ended(made.name)
        tasks = tasks_pb2_grpc.TasksStub(dial(shared.address, token=token))
        for call, request in (
            (tasks.GetAssignment, tasks_pb2.GetAssignmentRequest()),
            (tasks.Heartbeat, tasks_pb2.HeartbeatRequest()),
            (tasks.AppendOutput, tasks_pb2.AppendOutputRequest(data=b"late")),
            (tasks.ReportProgress, tasks_pb2.ReportProgressRequest(progress=1)),
        ):
            with pytest.raises(FailedPrecondition) as ended:
                call(request)
            assert ended.value.reason == "TASK_ENDED"
        succeeded = tasks_pb2.ReportOutcomeRequest(outcome=tasks_pb2.ReportOutcomeRequest.SUCCEEDED)
        tasks.ReportOutcome(succeeded)
        assert shared.training(made.name).status.state == State.CANCELLED, "the first report stands"

    def test_people_are_no_tasks(self, shared: TestMesh) -> None:
        tasks = tasks_pb2_grpc.TasksStub(dial(shared.address))
        with pytest.raises((PermissionDenied, Unauthenticated)):
            tasks.Heartbeat(tasks_pb2.HeartbeatRequest())

    def test_no_secret_reaches_a_task(self, shared: TestMesh) -> None:
        made = shared.train(
            notebook(
                "import os, glob\nprint(sorted(os.environ.items()))\n"
                "print(open('/proc/self/cmdline').read(), open(f'/proc/{os.getppid()}/cmdline').read())\n"
                "print(open(f'/proc/{os.getppid()}/environ').read())"
            )
        )
        shared.ended(made.name)
        assert b"nha1." not in shared.log(made.name)


def _belongs(token_file: Path, name: str) -> bool:
    try:
        return json.loads((token_file.parent / "workload.json").read_text())["resource"] == name
    except OSError:
        return False
