"""Deployments on a real mesh with the real proxy: rollout, failure, crash, scale, rollback, deletion."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import duration_pb2, field_mask_pb2

from noronha.rpc.dial import new_request_id
from noronha.rpc.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from noronha.v1 import (
    deployment_pb2,
    health_check_pb2,
    metadata_pb2,
    runner_pb2,
    task_status_pb2,
    web_server_pb2,
)
from noronha.v1.replica_pb2 import Replica
from tests.waiting import until

from .conftest import TestMesh, notebook

NAME = "projects/p/deployments/d"
READY = deployment_pb2.DeploymentStatus.READY


def predicting(answer: str, before: str = "") -> str:
    """Returns a prediction notebook that always answers the same."""
    return notebook(
        f"{before}\nfrom noronha.tools.serving import OnlinePredict\n"
        f"OnlinePredict(predict_func=lambda body: {answer!r}, enrich=False)()"
    )


def ask(port: int, path: str, method: str = "POST") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, b"{}", {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError as error:
        return 0, str(error)
    finally:
        connection.close()


def predict(mesh: TestMesh, deployment: str = "d") -> tuple[int, str]:
    return ask(mesh.router_port, f"/predict?project=p&deploy={deployment}")


class Load:
    """Asks for predictions until left, and keeps what was answered."""

    def __init__(self, mesh: TestMesh) -> None:
        self.answers: list[tuple[int, str]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(mesh,), daemon=True)

    def _ask(self, mesh: TestMesh) -> None:
        while not self._over.is_set():
            self.answers.append(predict(mesh))
            time.sleep(0.01)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def wrong(self) -> list[tuple[int, str]]:
        return [each for each in self.answers if each[0] != 200]


def update(mesh: TestMesh, *paths: str, name: str = NAME, etag: str = "", **fields: Any) -> Any:
    wanted = deployment_pb2.Deployment(name=name, etag=etag, **fields)
    request = runner_pb2.UpdateDeploymentRequest(
        deployment=wanted, update_mask=field_mask_pb2.FieldMask(paths=paths), request_id=new_request_id()
    )
    return mesh.runner.UpdateDeployment(request)


def states(mesh: TestMesh, name: str = NAME) -> list[tuple[int, str]]:
    return sorted((each.revision, Replica.State.Name(each.state)) for each in mesh.replicas(name))


@pytest.fixture
def mesh(shared: TestMesh) -> Iterator[TestMesh]:
    yield shared
    for each in shared.metadata.ListDeployments(metadata_pb2.ListDeploymentsRequest(parent="projects/-")).deployments:
        shared.runner.DeleteDeployment(runner_pb2.DeleteDeploymentRequest(name=each.name), timeout=60)
    shared.nothing_remains()


def test_from_a_notebook_to_a_prediction_and_away(mesh: TestMesh) -> None:
    made = mesh.deploy(predicting("one"))
    assert made.status.state == deployment_pb2.DeploymentStatus.PENDING
    assert (made.revision, made.generation, made.replicas) == (1, 1, 1)
    ready = mesh.stands(NAME, "READY")
    assert (ready.status.availability, ready.status.ready_replicas, ready.status.serving_revision) == (1.0, 1, 1)
    assert predict(mesh) == (200, "one")
    (replica,) = mesh.replicas(NAME)
    assert replica.host == "127.0.0.1" and replica.port and replica.workload
    mesh.runner.DeleteDeployment(runner_pb2.DeleteDeploymentRequest(name=NAME), timeout=60)
    until(lambda: predict(mesh)[0] == 404, "the route is gone")
    with pytest.raises(NotFound):
        mesh.deployment(NAME)
    mesh.nothing_remains()
    assert not list((mesh.root / "runner/tasks").iterdir())


def test_a_new_revision_takes_over_without_a_failed_request(mesh: TestMesh) -> None:
    mesh.deploy(predicting("one"))
    mesh.stands(NAME, "READY")
    with Load(mesh) as load:
        until(lambda: len(load.answers) > 10, "requests pass")
        spec = deployment_pb2.DeploymentSpec(build=mesh.build(predict=predicting("two")))
        changed = update(mesh, "spec", spec=spec)
        assert (changed.revision, changed.generation) == (2, 2)
        ready = mesh.stands(NAME, "READY", 2)
        assert predict(mesh) == (200, "two")
        until(lambda: (1, "STOPPED") in states(mesh), "the old replica has gone")
        time.sleep(0.2)
    assert load.wrong == []
    assert {said for _, said in load.answers} == {"one", "two"}
    assert ready.status.serving_revision == 2
    revisions = mesh.metadata.ListDeploymentRevisions(metadata_pb2.ListDeploymentRevisionsRequest(parent=NAME))
    assert [each.name.rpartition("/")[2] for each in revisions.deployment_revisions] == ["2", "1"]
    back = mesh.runner.RollbackDeployment(runner_pb2.RollbackDeploymentRequest(name=NAME, request_id=new_request_id()))
    assert back.revision == 3
    mesh.stands(NAME, "READY", back.generation)
    assert predict(mesh) == (200, "one")
    third = mesh.metadata.GetDeploymentRevision(metadata_pb2.GetDeploymentRevisionRequest(name=f"{NAME}/revisions/3"))
    assert third.rollback_of == 1


def test_a_revision_that_fails_leaves_the_old_one_serving(mesh: TestMesh) -> None:
    mesh.deploy(predicting("one"))
    mesh.stands(NAME, "READY")
    with Load(mesh) as load:
        spec = deployment_pb2.DeploymentSpec(build=mesh.build(predict=predicting("two", "raise ValueError('broken')")))
        update(mesh, "spec", spec=spec)
        stands = mesh.stands(NAME, "DEGRADED", 2)
    assert load.wrong == []
    assert {said for _, said in load.answers} == {"one"}
    assert stands.status.reason == "CELL_RAISED"
    assert "broken" in stands.status.error.message
    assert (stands.status.serving_revision, stands.status.availability) == (1, 1.0)
    assert [(each.revision, each.ready_replicas) for each in stands.status.revisions] == [(2, 0), (1, 1)]
    assert stands.status.revisions[0].error.message
    spec = deployment_pb2.DeploymentSpec(build=mesh.build(predict=predicting("three")))
    update(mesh, "spec", spec=spec)
    mesh.stands(NAME, "READY", 3)
    assert predict(mesh) == (200, "three")


def test_a_first_revision_that_fails(mesh: TestMesh) -> None:
    mesh.deploy(predicting("one", "raise ValueError('broken')"))
    stands = mesh.stands(NAME, "FAILED")
    assert (stands.status.reason, stands.status.availability) == ("CELL_RAISED", 0.0)
    assert b"broken" in log_of(mesh)


def test_a_notebook_that_does_not_serve(mesh: TestMesh) -> None:
    mesh.deploy(notebook("print('done')"))
    assert mesh.stands(NAME, "FAILED").status.reason == "NOT_SERVING"


def test_a_replica_that_crashes_is_replaced(mesh: TestMesh) -> None:
    mesh.deploy(predicting("one"), replicas=2)
    mesh.stands(NAME, "READY")
    before = {each.name for each in mesh.replicas(NAME)}
    pid = next(pid for pid in mesh.remains() if b"noronha.tools.task" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(pid, signal.SIGKILL)
    until(lambda: (1, "FAILED") in states(mesh), "the crash is told", 20)
    until(lambda: states(mesh) == [(1, "FAILED"), (1, "READY"), (1, "READY")], "another stands in")
    mesh.stands(NAME, "READY")
    failed = next(each for each in mesh.replicas(NAME) if each.state == Replica.FAILED)
    assert failed.name in before
    assert "SIGKILL" in failed.error.message
    restarts = {each.name: each.restarts for each in mesh.replicas(NAME)}
    assert sorted(restarts.values()) == [0, 0, 1] and {restarts[name] for name in before} == {0}
    until(lambda: predict(mesh) == (200, "one"), "predictions pass")


def test_a_crash_loop_shows_in_how_often_it_was_restarted(mesh: TestMesh) -> None:
    mesh.deploy(notebook("raise ValueError('broken')"))
    until(lambda: 2 in [each.restarts for each in mesh.replicas(NAME)], "it is tried a third time")
    made = sorted(mesh.replicas(NAME), key=lambda each: each.create_time.ToNanoseconds())
    assert [each.restarts for each in made] == list(range(len(made)))
    assert mesh.stands(NAME, "FAILED").status.reason == "CELL_RAISED"
    spec = deployment_pb2.DeploymentSpec(build=mesh.build(predict=predicting("one")))
    update(mesh, "spec", spec=spec)
    mesh.stands(NAME, "READY", 2)
    update(mesh, "replicas", replicas=2)
    mesh.stands(NAME, "READY", 3)
    serving = [each for each in mesh.replicas(NAME) if each.state == Replica.READY]
    assert [(each.revision, each.restarts) for each in serving] == [(2, 0), (2, 0)]


def test_scaling_up_down_and_to_nothing(mesh: TestMesh) -> None:
    mesh.deploy(predicting("one"))
    mesh.stands(NAME, "READY")
    with Load(mesh) as load:
        scaled = update(mesh, "replicas", replicas=3)
        assert (scaled.revision, scaled.generation) == (1, 2)
        assert mesh.stands(NAME, "READY", 2).status.ready_replicas == 3
        update(mesh, "replicas", replicas=1)
        assert mesh.stands(NAME, "READY", 3).status.ready_replicas == 1
        until(lambda: states(mesh).count((1, "STOPPED")) == 2, "two have stopped")
    assert load.wrong == []
    update(mesh, "replicas", replicas=0)
    stopped = mesh.stands(NAME, "STOPPED", 4)
    assert (stopped.status.availability, stopped.status.ready_replicas) == (0.0, 0)
    mesh.nothing_remains()
    assert predict(mesh)[0] != 200
    update(mesh, "replicas", replicas=1)
    mesh.stands(NAME, "READY", 5)
    assert predict(mesh) == (200, "one")


def test_ports_belong_to_one_deployment(mesh: TestMesh) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mesh.deploy(predicting("one"), port=port)
    with pytest.raises(AlreadyExists) as caught:
        mesh.deploy(predicting("two"), "other", port=port)
    assert caught.value.reason == "PORT_TAKEN"
    with pytest.raises(AlreadyExists):
        mesh.deploy(predicting("two"), "other", port=mesh.router_port)
    ready = mesh.stands(NAME, "READY")
    assert ready.status.address == f"127.0.0.1:{port}"
    assert ask(port, "/predict") == (200, "one")
    mesh.deploy(predicting("two"), "other", replicas=0)
    with pytest.raises(AlreadyExists):
        update(mesh, "port", name="projects/p/deployments/other", port=port)
    changed = update(mesh, "port", port=0)
    assert (changed.revision, changed.generation) == (1, 2)
    until(lambda: ask(port, "/predict")[0] == 0, "the port is free again")


def test_a_training_has_its_version_taken_up(mesh: TestMesh) -> None:
    lazy = notebook(
        "from noronha.tools.serving import LazyModelServer\n"
        "LazyModelServer(predict_func=lambda body, model, meta: model, "
        "load_model_func=lambda path, meta: open(path + '/model.txt').read(), model_name='m', enrich=False)()"
    )
    mesh.deploy(lazy, replicas=2)
    mesh.stands(NAME, "READY")
    publishing = notebook(
        "from noronha.tools.shortcuts import tmp_path\nfrom noronha.tools.publish import Publisher\n"
        "open(tmp_path('model.txt'), 'w').write(text)\n"
        "Publisher()(details={}, version_name='v', uses_dataset=False)",
        parameters="text = ''",
    )
    for text in ("first", "second"):
        made = mesh.train(publishing, target_deployment=NAME, params_json=f'{{"text": "{text}"}}')
        ended = mesh.ended(made.name)
        assert ended.status.state == task_status_pb2.TaskStatus.SUCCEEDED, (ended.status, mesh.log(made.name))
        assert ended.published
        assert ended.target_deployment_updated, ended.warnings
        for _ in range(6):
            assert ask(mesh.router_port, "/predict?project=p&deploy=d&model_version=v") == (200, text)
    unknown = mesh.train(publishing, target_deployment="projects/p/deployments/unknown")
    ended = mesh.ended(unknown.name)
    assert ended.status.state == task_status_pb2.TaskStatus.SUCCEEDED
    assert ended.HasField("target_deployment_updated") and not ended.target_deployment_updated
    assert any("unknown" in each for each in ended.warnings)
    mesh.deploy(predicting("one"), "plain")
    mesh.stands("projects/p/deployments/plain", "READY")
    (plain,) = (each.name.rpartition("/")[2] for each in mesh.replicas("projects/p/deployments/plain"))
    ended = mesh.ended(mesh.train(publishing, target_deployment="projects/p/deployments/plain").name)
    assert list(ended.warnings) == [
        f"projects/p/deployments/plain did not take v up everywhere: {plain}: no such path; there are /health, /predict"
    ]


def test_an_unhealthy_replica_is_restarted_when_asked_for(mesh: TestMesh) -> None:
    check = health_check_pb2.HealthCheck(
        enabled=True,
        start_period=duration_pb2.Duration(),
        interval=duration_pb2.Duration(nanos=200_000_000),
        timeout=duration_pb2.Duration(seconds=1),
        retries=3,
    )
    mesh.deploy(predicting("one"), health_check=check)
    mesh.stands(NAME, "READY")
    kernels = [pid for pid in mesh.remains() if b"ipykernel" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    for pid in kernels:
        os.kill(pid, signal.SIGSTOP)
    until(lambda: (1, "FAILED") in states(mesh), "it is found unhealthy", 40)
    failed = next(each for each in mesh.replicas(NAME) if each.state == Replica.FAILED)
    assert "health checks" in failed.error.message
    mesh.stands(NAME, "READY")
    until(lambda: predict(mesh) == (200, "one"), "predictions pass")
    assert [each.restarts for each in mesh.replicas(NAME) if each.state == Replica.READY] == [1]


def test_logs_of_replicas(mesh: TestMesh) -> None:
    mesh.deploy(predicting("one", "print('replica here', flush=True)"), replicas=2)
    mesh.stands(NAME, "READY")
    until(lambda: log_of(mesh).count(b"replica here") == 2, "both have said so")
    ids = [each.name.rpartition("/")[2] for each in mesh.replicas(NAME)]
    assert log_of(mesh, replica=ids[0]).count(b"replica here") == 1
    with pytest.raises(NotFound):
        log_of(mesh, replica="nothing")


def log_of(mesh: TestMesh, **fields: Any) -> bytes:
    return mesh.log(NAME, **fields)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"replicas": -1}, "BAD_REPLICAS"),
        ({"replicas": 10_000}, "BAD_REPLICAS"),
        ({"port": 65_536}, "BAD_PORT"),
        ({"port": -1}, "BAD_PORT"),
        ({"details_json": "["}, "BAD_JSON"),
    ],
)
def test_what_makes_no_sense(mesh: TestMesh, fields: dict[str, Any], why: str) -> None:
    made = deployment_pb2.Deployment(spec=deployment_pb2.DeploymentSpec(build=mesh.build(predict=notebook())), **fields)
    with pytest.raises(InvalidArgument) as caught:
        mesh.runner.CreateDeployment(
            runner_pb2.CreateDeploymentRequest(parent="projects/p", deployment_id="d", deployment=made)
        )
    assert caught.value.reason == why
    with pytest.raises(NotFound):
        mesh.deployment(NAME)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"params_json": "nonsense"}, "BAD_PARAMS"),
        ({"environment": {"NHA_X": "y"}}, "BAD_ENVIRONMENT"),
        ({"web_server": web_server_pb2.WebServer(extra_conf_json="[]")}, "BAD_WEB_SERVER"),
        ({"health_check": health_check_pb2.HealthCheck(retries=-1)}, "BAD_HEALTH_CHECK"),
        ({"model_versions": ["models/m"]}, "BAD_NAME"),
    ],
)
def test_a_spec_that_makes_no_sense(mesh: TestMesh, spec: dict[str, Any], why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        mesh.deploy(notebook(), **spec)
    assert caught.value.reason == why


def test_changes_that_are_refused(mesh: TestMesh) -> None:
    mesh.deploy(notebook(), replicas=0)
    stands = mesh.stands(NAME, "STOPPED")
    with pytest.raises(Aborted) as stale:
        update(mesh, "replicas", replicas=2, etag="stale")
    assert stale.value.reason == "STALE_ETAG"
    for path in ("name", "status", "revision", "spec.build_snapshot", "nonsense", "spec.nonsense"):
        with pytest.raises(InvalidArgument) as bad:
            update(mesh, path, replicas=1)
        assert bad.value.reason == "BAD_MASK"
    with pytest.raises(NotFound):
        update(mesh, "replicas", name="projects/p/deployments/none", replicas=1)
    with pytest.raises(NotFound):
        mesh.runner.RollbackDeployment(runner_pb2.RollbackDeploymentRequest(name=NAME))
    with pytest.raises(NotFound, match=f"^{NAME}/revisions/9 does not exist$"):
        mesh.runner.RollbackDeployment(runner_pb2.RollbackDeploymentRequest(name=NAME, revision=9))
    assert mesh.deployment(NAME).generation == stands.generation == 1
    with pytest.raises(AlreadyExists):
        mesh.deploy(notebook())
    with pytest.raises(FailedPrecondition):
        update(
            mesh,
            "spec",
            spec=deployment_pb2.DeploymentSpec(
                build=mesh.build(state=task_status_pb2.TaskStatus.FAILED, predict=notebook())
            ),
        )


def test_one_field_of_the_spec_is_changed_alone(mesh: TestMesh) -> None:
    mesh.deploy(notebook(), replicas=0, params_json='{"a": 1}', environment={"A": "b"})
    changed = update(mesh, "spec.params_json", spec=deployment_pb2.DeploymentSpec(params_json='{"a": 2}'))
    assert changed.revision == 2
    assert (changed.spec.params_json, dict(changed.spec.environment)) == ('{"a": 2}', {"A": "b"})
    same = update(mesh, "spec.params_json", spec=deployment_pb2.DeploymentSpec(params_json='{"a": 2}'))
    assert (same.revision, same.generation) == (2, 2)
    labelled = update(mesh, "labels", labels={"team": "x"})
    assert (labelled.revision, labelled.generation, dict(labelled.labels)) == (2, 2, {"team": "x"})


def test_a_request_asked_twice_is_done_once(mesh: TestMesh) -> None:
    build, request_id = mesh.build(predict=notebook()), new_request_id()
    request = runner_pb2.CreateDeploymentRequest(
        parent="projects/p",
        deployment=deployment_pb2.Deployment(spec=deployment_pb2.DeploymentSpec(build=build), replicas=0),
        request_id=request_id,
    )
    first, second = mesh.runner.CreateDeployment(request), mesh.runner.CreateDeployment(request)
    assert first.name == second.name
    wanted = deployment_pb2.Deployment(
        name=first.name, spec=deployment_pb2.DeploymentSpec(build=build, params_json='{"a": 1}')
    )
    change = runner_pb2.UpdateDeploymentRequest(
        deployment=wanted, update_mask=field_mask_pb2.FieldMask(paths=["spec"]), request_id=new_request_id()
    )
    assert [mesh.runner.UpdateDeployment(change).revision for _ in range(3)] == [2, 2, 2]


def test_a_change_asked_twice_undoes_nothing_that_came_between(mesh: TestMesh) -> None:
    mesh.deploy(notebook(), replicas=0)
    mesh.stands(NAME, "STOPPED")
    mask = field_mask_pb2.FieldMask(paths=["details_json"])
    change = runner_pb2.UpdateDeploymentRequest(
        deployment=deployment_pb2.Deployment(name=NAME, details_json='{"by": 1}', etag=mesh.deployment(NAME).etag),
        update_mask=mask, request_id=new_request_id(),
    )  # fmt: skip
    first = mesh.runner.UpdateDeployment(change)
    update(mesh, "details_json", details_json='{"by": 2}')
    assert mesh.runner.UpdateDeployment(change) == first
    assert mesh.deployment(NAME).details_json == '{"by": 2}'
    change.deployment.details_json = '{"by": 3}'
    with pytest.raises(AlreadyExists) as reused:
        mesh.runner.UpdateDeployment(change)
    assert reused.value.reason == "REQUEST_ID_REUSED"


def test_a_request_repeated_to_another_mesh_finds_its_own_port(mesh: TestMesh) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = deployment_pb2.Deployment(
        spec=deployment_pb2.DeploymentSpec(build=mesh.build(predict=notebook())), replicas=0, port=port
    )
    asked = runner_pb2.CreateDeploymentRequest(parent="projects/p", deployment=wanted, request_id=new_request_id())
    first = mesh.runner.CreateDeployment(asked)
    assert mesh.runner.CreateDeployment(asked) == first
    mesh.kill()
    mesh.start()
    assert mesh.runner.CreateDeployment(asked) == first
    asked.request_id = new_request_id()
    with pytest.raises(AlreadyExists, match="belongs to"):
        mesh.runner.CreateDeployment(asked)


def test_a_name_that_is_used_again(mesh: TestMesh) -> None:
    for answer in ("one", "two"):
        made = mesh.deploy(predicting(answer))
        mesh.stands(NAME, "READY")
        assert predict(mesh) == (200, answer)
        assert mesh.metadata.GetDeploymentRevision(
            metadata_pb2.GetDeploymentRevisionRequest(name=f"{NAME}/revisions/{made.revision}")
        ).spec.build
        mesh.runner.DeleteDeployment(runner_pb2.DeleteDeploymentRequest(name=NAME), timeout=60)
