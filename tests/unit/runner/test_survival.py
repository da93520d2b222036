"""What a mesh that is killed leaves and finds again: nothing lost, nothing doubled, nothing left over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis import principals
from noronha.rpc.dial import dial, new_request_id
from noronha.rpc.errors import AlreadyExists, NoronhaError, Unavailable
from noronha.runner.backend import PYTHON, Workload
from noronha.runner.backends.process import Processes
from noronha.v1 import (
    deployment_pb2,
    mesh_pb2,
    metadata_pb2,
    router_pb2,
    runner_pb2,
    runner_pb2_grpc,
    task_status_pb2,
    traffic_pb2,
    training_pb2,
)
from noronha.v1.replica_pb2 import Replica
from tests.waiting import until

from .conftest import TestMesh, notebook
from .test_deployments import NAME, Load, predict, predicting, states, update

State = task_status_pb2.TaskStatus


def _seeds(*few: int, soak: Iterable[int]) -> list[Any]:
    """Returns the seeds of every run, and those of long ones."""
    return [*few, *(pytest.param(seed, marks=pytest.mark.soak) for seed in soak)]


def again(mesh: TestMesh) -> None:
    """Starts a mesh anew over what the killed one left."""
    mesh.start()


def test_a_training_goes_on_while_the_mesh_is_away(own: TestMesh) -> None:
    made = own.train(notebook("print('begun', flush=True)", "import time; time.sleep(3)", "print('done', flush=True)"))
    own.logged(made.name, b"begun")
    own.kill()
    before = own.remains()
    assert before
    time.sleep(1)
    again(own)
    assert own.training(made.name).status.state == State.RUNNING
    ended = own.ended(made.name)
    assert ended.status.state == State.SUCCEEDED
    assert own.log(made.name) == b"begun\ndone\n"
    own.nothing_remains()


def test_a_training_that_ends_while_the_mesh_is_away(own: TestMesh) -> None:
    made = own.train(notebook("print('begun', flush=True)", "import time; time.sleep(1)", "print('done', flush=True)"))
    own.logged(made.name, b"begun")
    own.kill()
    time.sleep(4)
    again(own)
    ended = own.ended(made.name)
    assert ended.status.state == State.SUCCEEDED
    assert ended.executed_notebook.digest
    assert own.log(made.name) == b"begun\ndone\n"
    own.nothing_remains()


def test_a_task_that_is_killed_while_the_mesh_is_away(own: TestMesh) -> None:
    made = own.train(notebook("print('begun', flush=True)", "import time; time.sleep(600)"))
    own.logged(made.name, b"begun")
    own.kill()
    for pid in own.remains():
        if b"noronha.tools.task" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    again(own)
    ended = own.ended(made.name, 20)
    assert (ended.status.state, ended.status.reason) == (State.FAILED, "TASK_KILLED")
    own.nothing_remains()


def test_everything_is_killed(own: TestMesh) -> None:
    made = own.train(notebook("print('begun', flush=True)", "import time; time.sleep(600)"))
    own.logged(made.name, b"begun")
    own.kill()
    for pid in own.remains():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    again(own)
    ended = own.ended(made.name, 20)
    assert (ended.status.state, ended.status.reason) == (State.FAILED, "TASK_LOST")
    own.nothing_remains()


def test_a_cancellation_survives(own: TestMesh) -> None:
    made = own.train(
        notebook(
            "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True)",
            "import time\nwhile True:\n    try: time.sleep(600)\n    except BaseException: pass",
        )
    )
    own.logged(made.name, b"deaf")
    own.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=made.name))
    own.kill()
    again(own)
    ended = own.ended(made.name, 40)
    assert (ended.status.state, ended.status.reason) == (State.CANCELLED, "CANCELLED")
    own.nothing_remains()


@pytest.mark.parametrize("seed", _seeds(11, 12, soak=range(13, 33)))
def test_killed_at_any_moment_of_starting(own: TestMesh, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    build = own.build(train=notebook("print('ran')"))
    own.ended(own.train(notebook()).name)  # everything is warm
    training = training_pb2.Training(build=build, notebook="train")
    requests = [
        runner_pb2.CreateTrainingRequest(parent="projects/p", training=training, request_id=new_request_id())
        for _ in range(4)
    ]
    answered: list[str] = []

    def ask() -> None:
        for request in requests:
            try:
                answered.append(own.runner.CreateTraining(request, timeout=5).name)
            except NoronhaError:
                return

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(chance.random() * 0.12)
    own.kill()
    asking.join()
    again(own)
    names = [own.runner.CreateTraining(request).name for request in requests]
    assert names[: len(answered)] == answered, "what was acknowledged is what is there"
    assert len(set(names)) == len(names)
    page = own.metadata.ListTrainings(metadata_pb2.ListTrainingsRequest(parent="projects/p", page_size=1000))
    assert len(page.trainings) == len(names) + 1, "nothing is doubled"
    for name in names:
        assert own.ended(name).status.state == State.SUCCEEDED, own.log(name)
        assert own.log(name) == b"ran\n", "nothing runs twice"
    own.nothing_remains()


@pytest.mark.parametrize("seed", _seeds(21, soak=range(22, 32)))
def test_killed_again_and_again_while_trainings_run(own: TestMesh, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    text = notebook("import time\nfor n in range(40): print(n, flush=True); time.sleep(0.1)")
    names = [own.train(text).name for _ in range(3)]
    for _ in range(3):
        time.sleep(chance.random() * 2)
        own.kill()
        time.sleep(chance.random() * 0.5)
        again(own)
    for name in names:
        ended = own.ended(name)
        assert ended.status.state == State.SUCCEEDED, ended.status
        assert own.log(name) == b"".join(b"%d\n" % n for n in range(40))
        assert ended.executed_notebook.digest
    own.nothing_remains()


def test_predictions_go_on_while_the_mesh_is_down(own: TestMesh) -> None:
    own.deploy(predicting("one"), replicas=2)
    own.stands(NAME, "READY")
    before = {(each.name, each.port) for each in own.replicas(NAME)}
    with Load(own) as load:
        until(lambda: len(load.answers) > 5, "requests pass")
        own.kill()
        time.sleep(2)
        again(own)
        own.stands(NAME, "READY")
        time.sleep(2)
    assert load.wrong == []
    assert {(each.name, each.port) for each in own.replicas(NAME)} == before, "the replicas are found again"
    update(own, "replicas", replicas=1)
    own.stands(NAME, "READY", 2)
    until(lambda: (1, "STOPPED") in states(own), "one has stopped")
    assert predict(own) == (200, "one")


def _routes(mesh: TestMesh) -> None:
    """Waits until the proxy is heard of again and holds every replica."""
    request = router_pb2.WaitForRoutesRequest(deployment=NAME, present=[each.name for each in mesh.replicas(NAME)])
    request.timeout.FromSeconds(60)
    mesh.routes.WaitForRoutes(request, timeout=70)


def test_a_deployment_that_serves_is_told_so_while_the_mesh_comes_back(own: TestMesh) -> None:
    """A change of what is told would change the record's etag, however soon it is taken back."""
    own.deploy(predicting("one"), replicas=2)
    before = own.stands(NAME, "READY")
    own.kill()
    again(own)
    _routes(own)
    asked = deployment_pb2.Deployment(name=NAME, replicas=2)  # changes nothing; answered once it is looked after again
    own.runner.UpdateDeployment(runner_pb2.UpdateDeploymentRequest(deployment=asked), timeout=60)
    after = own.deployment(NAME)
    assert after.etag == before.etag, after.status


def test_a_deployment_that_fails_is_told_so_while_the_mesh_comes_back(own: TestMesh) -> None:
    own.deploy(notebook("raise ValueError('no such flower')"))
    own.stands(NAME, "FAILED")
    tried = {each.name for each in own.replicas(NAME)}
    own.kill()
    again(own)
    seen = []

    def failed_again() -> bool:
        seen.append(own.deployment(NAME).status)
        return bool({each.name for each in own.replicas(NAME) if each.state == Replica.FAILED} - tried)

    until(failed_again, "it is tried again and fails again")
    assert {(each.state, each.reason) for each in seen} == {(deployment_pb2.DeploymentStatus.FAILED, "CELL_RAISED")}
    made = sorted(own.replicas(NAME), key=lambda each: each.create_time.ToNanoseconds())
    assert [each.restarts for each in made] == list(range(made[0].restarts, made[0].restarts + len(made)))


def test_revisions_that_share_traffic_are_found_again(own: TestMesh) -> None:
    own.deploy(predicting("one"))
    own.stands(NAME, "READY")
    update(own, "spec", spec=deployment_pb2.DeploymentSpec(build=own.build(predict=predicting("two"))))
    own.router.UpdateTraffic(
        router_pb2.UpdateTrafficRequest(
            traffic=traffic_pb2.Traffic(
                name=f"{NAME}/traffic", targets=[traffic_pb2.TrafficTarget(revision=1, weight=100)]
            ),
            request_id=new_request_id(),
        )
    )
    until(lambda: sorted(_alive(own)) == [(1, "READY"), (2, "READY")], "both serve")
    before = {each.name for each in own.replicas(NAME) if each.state == Replica.READY}
    for _ in range(3):
        own.kill()
        again(own)
        _routes(own)
        assert {each.name for each in own.replicas(NAME) if each.state == Replica.READY} == before
    assert {predict(own)[1] for _ in range(5)} == {"one"}


def test_a_replica_that_dies_while_the_mesh_is_down_is_replaced(own: TestMesh) -> None:
    own.deploy(predicting("one"))
    own.stands(NAME, "READY")
    own.kill()
    for pid in own.remains():
        if b"noronha.tools.task" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    again(own)
    until(lambda: (1, "FAILED") in states(own) and (1, "READY") in states(own), "another one serves")
    own.stands(NAME, "READY")
    until(lambda: predict(own) == (200, "one"), "predictions pass")
    assert [each.restarts for each in own.replicas(NAME) if each.state == Replica.READY] == [1]


@pytest.mark.parametrize("seed", _seeds(31, soak=range(32, 42)))
def test_killed_in_the_middle_of_a_rollout(own: TestMesh, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    own.deploy(predicting("one"))
    own.stands(NAME, "READY")
    spec = deployment_pb2.DeploymentSpec(build=own.build(predict=predicting("two")))
    with Load(own) as load:
        update(own, "spec", spec=spec)
        time.sleep(chance.random() * 2.5)
        own.kill()
        time.sleep(0.5)
        again(own)
        own.stands(NAME, "READY", 2)
        time.sleep(0.3)
    assert load.wrong == []
    assert predict(own) == (200, "two")
    until(lambda: _alive(own) == [(2, "READY")], "only the new one is left")


def _alive(mesh: TestMesh) -> list[tuple[int, str]]:
    return [each for each in states(mesh) if each[1] not in ("STOPPED", "FAILED")]


SHORT = """
import sys
from noronha.chassis import __main__
from noronha.runner import adoption, leases
leases.LEASE, leases.RENEWED, adoption.RETRY = 2.0, 0.5, 0.2
sys.exit(__main__.main(sys.argv[1:]))
"""
"""A server whose leases are short."""


@contextlib.contextmanager
def _runner_apart(mesh: TestMesh, root: Path) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """Starts a Runner in a process of its own beside a mesh without one; yields it and its stub."""
    root.mkdir(mode=0o700, exist_ok=True)
    (root / "key").write_bytes(principals.load_key(mesh.root))
    address = root / "address"
    process = subprocess.Popen(
        [sys.executable, "-c", SHORT, "runner", "--listen", "127.0.0.1:0", "--state-dir", str(root),
         "--address-file", str(address), f"--peer=metadata={mesh.address}", f"--peer=store={mesh.address}"],
        env={**os.environ, "HOME": "/nowhere", "NHA_RUNNER__GRACE": "3", "NHA_RUNNER__HEARTBEAT_INTERVAL": "0.5"},
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: address.exists() or process.poll() is not None, "the Runner serves")
        token = (root / "owner.token").read_text().strip()
        yield process, runner_pb2_grpc.RunnerStub(dial(address.read_text().strip(), token=token))
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(30)


@pytest.mark.parametrize("ending", [True, False])
def test_a_runner_that_stood_still_longer_than_its_lease_undoes_nothing(own: TestMesh, ending: bool) -> None:
    """Its successor found nothing of the task on its own machine and said so; what the first says later is refused.

    The task ends by itself as soon as the first goes on, or goes on with it and must be ended.
    """
    own.stop()
    own.start("metadata", "store")
    ended = own.root / "ended"  # seen by the notebook as well, unlike the rest of /tmp
    with _runner_apart(own, own.root) as (frozen, runner):
        own.runner = runner
        made = own.train(
            notebook(
                "import os, time\nprint('begun', flush=True)\n"
                f"while not os.path.exists({str(ended)!r}): time.sleep(0.05)"
            )
        )
        own.logged(made.name, b"begun")
        os.kill(frozen.pid, signal.SIGSTOP)
        with _runner_apart(own, own.root / "second"):
            lost = own.ended(made.name)
            assert (lost.status.state, lost.status.reason) == (State.FAILED, "TASK_LOST")
            if ending:
                ended.touch()
            os.kill(frozen.pid, signal.SIGCONT)
            own.nothing_remains()
            after = own.training(made.name)
            assert (after.etag, after.status) == (lost.etag, lost.status)


def test_a_workload_without_a_record_is_ended(own: TestMesh) -> None:
    own.kill()
    platform = Processes("process:", own.root / "runner", own.root)
    for id, resource in (
        ("train-unknown", "projects/p/trainings/unknown"),
        ("depl-unknown", "projects/p/deployments/d/replicas/unknown"),
    ):
        sleeping = (PYTHON, "-c", "import time; time.sleep(600)")
        asyncio.run(platform.start(Workload(id=id, resource=resource, purpose="nha-train", command=sleeping)))
    until(lambda: len(own.remains()) == 4, "they run")
    again(own)
    own.nothing_remains()
    until(lambda: not list((own.root / "runner/tasks").iterdir()), "their folders are gone")


def test_a_mesh_that_stops_leaves_its_tasks_and_ends_those_who_follow(own: TestMesh) -> None:
    made = own.train(notebook("print('begun', flush=True)", "import time; time.sleep(4)", "print('done', flush=True)"))
    own.logged(made.name, b"begun")
    followed: list[bytes] = []

    def follow() -> None:
        try:
            followed.append(own.log(made.name, follow=True))
        except Unavailable as error:
            followed.append(error.reason.encode())

    following = threading.Thread(target=follow)
    following.start()
    time.sleep(0.3)
    assert own.process is not None
    began = time.monotonic()
    own.process.send_signal(signal.SIGTERM)
    assert own.process.wait(20) == 0
    following.join(5)
    assert followed == [b"STOPPING"], f"whoever follows is let go and told why, {time.monotonic() - began:.1f} s later"
    assert own.remains()
    again(own)
    assert own.log(made.name, follow=True) == b"begun\ndone\n", "nor does it end before the work is found again"
    assert own.ended(made.name).status.state == State.SUCCEEDED


def test_without_a_proxy_a_deployment_says_so_and_can_be_deleted(own: TestMesh) -> None:
    own.stop()
    own.start("metadata", "store", "runner")
    own.deploy(predicting("one"))
    stands = own.stands(NAME, "DEGRADED")
    assert stands.status.reason == "PEER_UNKNOWN"
    assert (stands.status.ready_replicas, stands.status.availability) == (1, 1.0)
    own.runner.DeleteDeployment(runner_pb2.DeleteDeploymentRequest(name=NAME), timeout=30)
    own.nothing_remains()


def test_stopping_with_tasks_ends_everything(own: TestMesh) -> None:
    made = own.train(notebook("print('begun', flush=True)", "import time; time.sleep(600)"))
    own.logged(made.name, b"begun")
    own.deploy(predicting("one"))
    own.stands(NAME, "READY")
    own.mesh.Shutdown(mesh_pb2.ShutdownRequest(stop_tasks=True), timeout=60)
    assert own.process is not None
    own.process.wait(20)
    own.nothing_remains(5)
    again(own)
    assert own.training(made.name).status.state == State.CANCELLED
    until(lambda: Replica.READY in {each.state for each in own.replicas(NAME)}, "another replica serves")
    own.stands(NAME, "READY")


@pytest.mark.parametrize("seed", _seeds(41, soak=range(42, 52)))
def test_a_named_training_asked_for_again_at_once(own: TestMesh, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    training = training_pb2.Training(build=own.build(train=notebook("print('ran')")), notebook="train")
    request = runner_pb2.CreateTrainingRequest(
        parent="projects/p", training_id="named", training=training, request_id=new_request_id()
    )

    def ask() -> None:
        with contextlib.suppress(NoronhaError):
            own.runner.CreateTraining(request, timeout=5)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(chance.random() * 0.05)
    own.kill()
    asking.join()
    own.start()
    repeats = [threading.Thread(target=ask) for _ in range(5)]
    for each in repeats:
        each.start()
    for each in repeats:
        each.join()
    with pytest.raises(AlreadyExists):
        other = runner_pb2.CreateTrainingRequest()
        other.CopyFrom(request)
        other.request_id = new_request_id()
        own.runner.CreateTraining(other)
    assert own.ended("projects/p/trainings/named").status.state == State.SUCCEEDED
    assert own.log("projects/p/trainings/named") == b"ran\n"
    own.nothing_remains()
