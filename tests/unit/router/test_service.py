"""Router mounted beside Metadata in a real server: records in, predictions out, and its own calls."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc.dial import dial
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    InvalidArgument,
    NoronhaError,
    NotFound,
    PermissionDenied,
)
from noronha.v1 import (
    build_pb2,
    deployment_pb2,
    mesh_pb2,
    mesh_pb2_grpc,
    metadata_pb2,
    metadata_pb2_grpc,
    project_pb2,
    records_pb2,
    records_pb2_grpc,
    replica_pb2,
    resource_pb2,
    router_pb2,
    router_pb2_grpc,
    task_status_pb2,
    traffic_pb2,
)
from tests.waiting import free_port, listening, until

from .rig import Upstream, call

pytestmark = pytest.mark.timeout(120)

READY, DRAINING = replica_pb2.Replica.READY, replica_pb2.Replica.DRAINING


class Mesh:
    """Metadata and Router in one process, and what Runner would do with them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.address = f"unix:{root}/mesh.sock"
        self.process: subprocess.Popen[bytes] | None = None
        self.upstreams: list[Upstream] = []

    def start(self) -> None:
        environment = {
            **os.environ, "HOME": str(self.root), "NHA_MESH__STATE_DIR": str(self.root),
            "NHA_ROUTER__PORT": str(self.port), "NHA_ROUTER__REQUEST_TIMEOUT": "20",
        }  # fmt: skip
        command = [sys.executable, "-m", "noronha.chassis", "metadata", "router", "--listen", self.address]
        self.process = subprocess.Popen(command, env=environment, cwd=self.root)
        self.channel = dial(self.address)
        until(self.answers, "the server answers", 60)
        token = Tokens((self.root / "key").read_bytes()).mint(Principal(Kind.SERVICE, "runner"))
        self.service = dial(self.address, token=token)
        self.metadata = metadata_pb2_grpc.MetadataStub(self.channel)
        self.router = router_pb2_grpc.RouterStub(self.channel)
        self.records = records_pb2_grpc.RecordsStub(self.service)
        self.routes = router_pb2_grpc.RouterStub(self.service)

    def answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None
        with contextlib.suppress(NoronhaError):
            return bool(mesh_pb2_grpc.MeshStub(self.channel).GetInfo(mesh_pb2.GetInfoRequest(), timeout=2))
        return False

    def info(self) -> Any:
        found = mesh_pb2_grpc.MeshStub(self.channel).GetInfo(mesh_pb2.GetInfoRequest())
        return next(each for each in found.services if each.name == "router")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(NoronhaError):
                mesh_pb2_grpc.MeshStub(self.channel).Shutdown(mesh_pb2.ShutdownRequest(stop_tasks=True))
            self.process.wait(30)
        for upstream in self.upstreams:
            upstream.close()

    # ---------------------------------------------------------------------------------------- what Runner writes

    def create(self, **kind: Any) -> Any:
        return self.records.CreateRecord(records_pb2.CreateRecordRequest(resource=resource_pb2.Resource(**kind)))

    def update(self, paths: list[str], **kind: Any) -> Any:
        request = records_pb2.UpdateRecordRequest(resource=resource_pb2.Resource(**kind))
        request.update_mask.paths.extend(paths)
        return self.records.UpdateRecord(request)

    def prepare(self) -> None:
        self.metadata.CreateProject(
            metadata_pb2.CreateProjectRequest(
                project_id="p", project=project_pb2.Project(), request_id=str(uuid.uuid4())
            )
        )
        done = task_status_pb2.TaskStatus(state=task_status_pb2.TaskStatus.SUCCEEDED)
        self.create(build=build_pb2.Build(name="projects/p/builds/latest", status=done))

    def deploy(self, name: str, *, port: int = 0, revisions: int = 1) -> str:
        full = f"projects/p/deployments/{name}"
        spec = deployment_pb2.DeploymentSpec(build="projects/p/builds/latest", notebook="predict")
        spec.health_check.interval.FromSeconds(1)
        self.create(deployment=deployment_pb2.Deployment(name=full, spec=spec, port=port))
        for _ in range(revisions):
            revision = deployment_pb2.DeploymentRevision(name=f"{full}/revisions/-", spec=spec)
            self.create(deployment_revision=revision)
        return full

    def replica(self, deployment: str, name: str, revision: int = 1) -> tuple[str, Upstream]:
        upstream = Upstream(name)
        self.upstreams.append(upstream)
        full = f"{deployment}/replicas/{name}"
        self.create(
            replica=replica_pb2.Replica(name=full, revision=revision, state=READY, host="127.0.0.1", port=upstream.port)
        )
        return full, upstream

    def state(self, replica: str, state: replica_pb2.Replica.State) -> None:
        self.update(["state"], replica=replica_pb2.Replica(name=replica, state=state))

    def wait(self, deployment: str, present: list[str], absent: list[str] = (), timeout: float = 20) -> Any:  # type: ignore[assignment]
        request = router_pb2.WaitForRoutesRequest(deployment=deployment, present=present, absent=absent)
        request.timeout.FromMilliseconds(int(timeout * 1000))
        return self.routes.WaitForRoutes(request, timeout=timeout + 10)

    def label(self, name: str, **more: Any) -> str:
        answer = call(self.port, f"/predict?project=p&deploy={name}", **more)
        assert answer.status == 200, answer.body
        return str(answer.json["label"])


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with tempfile.TemporaryDirectory(prefix="nha-router-") as folder:
        made = Mesh(Path(folder))
        try:
            made.start()
            made.prepare()
            yield made
        finally:
            made.close()


def test_what_is_recorded_is_routed(mesh: Mesh) -> None:
    own = free_port()
    one = mesh.deploy("d", port=own, revisions=2)
    first, _ = mesh.replica(one, "first")
    assert mesh.wait(one, [first]).port_error == ""
    until(lambda: listening(mesh.port), "the router's port listens")
    assert mesh.label("d") == "first"
    assert call(own, "/predict").json["label"] == "first"

    second, _ = mesh.replica(one, "second", revision=2)
    mesh.wait(one, [second])
    mesh.state(first, DRAINING)
    mesh.wait(one, [second], [first])
    assert mesh.label("d") == "second"
    assert call(own, "/update?model_version=v").body == b"OK"

    proxy = mesh.router.GetProxy(router_pb2.GetProxyRequest())
    assert proxy.connected
    assert proxy.address == f"127.0.0.1:{mesh.port}"
    assert proxy.process_id > 0
    assert proxy.deployments == 1
    assert list(proxy.rejections) == []
    assert mesh.info().serving

    for each in (first, second):
        mesh.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=each))
    mesh.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=one))
    mesh.wait(one, [], [second])
    assert call(mesh.port, "/predict?project=p&deploy=d").status == 404


def test_waiting_has_an_end_and_its_words(mesh: Mesh) -> None:
    one = mesh.deploy("d")
    first, _ = mesh.replica(one, "first")
    mesh.wait(one, [first])
    with pytest.raises(DeadlineExceeded):
        mesh.wait(one, [f"{one}/replicas/never"], timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        mesh.wait(one, [], [first], timeout=0.3)
    with pytest.raises(InvalidArgument):
        mesh.wait(one, [], [], timeout=301)
    with pytest.raises(InvalidArgument):
        mesh.wait("projects/p", [], [])
    with pytest.raises(InvalidArgument):
        mesh.wait(one, ["../../x"])
    with pytest.raises(PermissionDenied):
        mesh.router.WaitForRoutes(router_pb2.WaitForRoutesRequest(deployment=one))


def test_traffic_is_set_changed_and_taken_back(mesh: Mesh) -> None:
    one = mesh.deploy("d", revisions=2)
    for revision in (1, 2):
        replica, _ = mesh.replica(one, f"rev{revision}", revision=revision)
        mesh.wait(one, [replica])
    assert mesh.label("d") == "rev2"
    name = f"{one}/traffic"
    target = traffic_pb2.TrafficTarget
    asked = router_pb2.UpdateTrafficRequest(
        traffic=traffic_pb2.Traffic(
            name=name, targets=[target(revision=1, weight=1), target(revision=2, header_matches={"x-new": "1"})]
        ),
        request_id=str(uuid.uuid4()),
    )
    made = mesh.router.UpdateTraffic(asked)
    assert made.accept_time.seconds > 0
    assert made.rejection == ""
    assert {mesh.label("d") for _ in range(5)} == {"rev1"}
    assert mesh.label("d", headers={"x-new": "1"}) == "rev2"
    assert mesh.router.UpdateTraffic(asked).targets == made.targets

    stored = mesh.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name))
    changed = mesh.router.UpdateTraffic(
        router_pb2.UpdateTrafficRequest(
            traffic=traffic_pb2.Traffic(name=name, targets=[target(revision=2, weight=1)], etag=stored.etag)
        )
    )
    assert len(changed.targets) == 1
    assert {mesh.label("d") for _ in range(5)} == {"rev2"}
    assert mesh.router.UpdateTraffic(asked).targets == made.targets, "a late repeat is answered as the first time"
    assert {mesh.label("d") for _ in range(5)} == {"rev2"}, "and undoes nothing that came between"
    again = router_pb2.UpdateTrafficRequest(
        traffic=traffic_pb2.Traffic(name=name, targets=[target(revision=2, weight=2)]), request_id=str(uuid.uuid4())
    )
    made = mesh.router.UpdateTraffic(again)
    mesh.router.UpdateTraffic(
        router_pb2.UpdateTrafficRequest(traffic=traffic_pb2.Traffic(name=name, targets=[target(revision=2, weight=1)]))
    )
    assert mesh.router.UpdateTraffic(again).targets == made.targets
    assert mesh.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name)).targets[0].weight == 1
    again.traffic.targets[0].weight = 3
    with pytest.raises(AlreadyExists) as reused:
        mesh.router.UpdateTraffic(again)
    assert reused.value.reason == "REQUEST_ID_REUSED"
    stored = mesh.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name))
    mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=traffic_pb2.Traffic(name=name, sticky_key="?of")))
    with pytest.raises(Aborted):
        mesh.router.UpdateTraffic(
            router_pb2.UpdateTrafficRequest(
                traffic=traffic_pb2.Traffic(name=name, targets=[target(revision=1, weight=1)], etag=stored.etag)
            )
        )
    sticky = router_pb2.UpdateTrafficRequest(traffic=traffic_pb2.Traffic(name=name, sticky_key="?user"))
    sticky.update_mask.paths.append("sticky_key")
    kept = mesh.router.UpdateTraffic(sticky)
    assert (kept.sticky_key, len(kept.targets)) == ("?user", 1)

    for _ in range(2):
        mesh.router.DeleteTraffic(router_pb2.DeleteTrafficRequest(name=name))
    assert mesh.label("d") == "rev2"
    with pytest.raises(NotFound):
        mesh.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name))


def test_traffic_that_cannot_be_is_refused_and_changes_nothing(mesh: Mesh) -> None:
    one = mesh.deploy("d")
    target = traffic_pb2.TrafficTarget
    bad = traffic_pb2.Traffic(name=f"{one}/traffic", targets=[target(weight=-1), target(header_matches={"A": "b"})])
    with pytest.raises(InvalidArgument) as raised:
        mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=bad))
    assert raised.value.reason == "BAD_TRAFFIC"
    assert [path for path, _ in raised.value.violations] == [
        "targets[0].weight", "targets[1].header_matches", "targets",
    ]  # fmt: skip
    missing = traffic_pb2.Traffic(name=f"{one}/traffic", targets=[target(revision=7, weight=1)])
    with pytest.raises(NotFound):
        mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=missing))
    other = traffic_pb2.Traffic(name="projects/p/deployments/none/traffic", targets=[target(weight=1)])
    with pytest.raises(NotFound):
        mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=other))
    with pytest.raises(NotFound):
        mesh.router.DeleteTraffic(router_pb2.DeleteTrafficRequest(name=other.name))
    for name in (
        "",
        "projects/p/deployments/d",
        "projects/p/deployments/../traffic",
        "projects/p/deployments/d/traffic\n",
    ):
        with pytest.raises(InvalidArgument):
            mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=traffic_pb2.Traffic(name=name)))
    masked = router_pb2.UpdateTrafficRequest(traffic=traffic_pb2.Traffic(name=f"{one}/traffic"))
    masked.update_mask.paths.append("rejection")
    with pytest.raises(InvalidArgument):
        mesh.router.UpdateTraffic(masked)
    with pytest.raises(NotFound):
        mesh.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=f"{one}/traffic"))


def test_the_etag_of_what_is_gone_is_stale(mesh: Mesh) -> None:
    name = f"{mesh.deploy('d')}/traffic"
    wanted = traffic_pb2.Traffic(name=name, sticky_key="?user")
    etag = mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=wanted)).etag
    mesh.router.DeleteTraffic(router_pb2.DeleteTrafficRequest(name=name, etag=etag))
    wanted.etag = etag
    with pytest.raises(Aborted) as stale:
        mesh.router.UpdateTraffic(router_pb2.UpdateTrafficRequest(traffic=wanted))
    assert stale.value.reason == "STALE_ETAG"
    with pytest.raises(NotFound):
        mesh.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name))


@pytest.mark.parametrize("fields", [{"seconds": -1}, {"seconds": 301}, {"seconds": 2**63 - 1}, {"nanos": 2**31 - 1}])
def test_a_wait_has_bounds(mesh: Mesh, fields: dict[str, int]) -> None:
    asked = router_pb2.WaitForRoutesRequest(deployment=mesh.deploy("d"), timeout=fields)
    with pytest.raises(InvalidArgument, match="timeout must be 0 to 300 seconds"):
        mesh.routes.WaitForRoutes(asked, timeout=20)


def test_a_mesh_that_is_killed_leaves_predictions_alone_and_finds_envoy_again(mesh: Mesh) -> None:
    one = mesh.deploy("d", revisions=2)
    first, _ = mesh.replica(one, "first")
    mesh.wait(one, [first])
    until(lambda: listening(mesh.port), "the router's port listens")
    pid = mesh.router.GetProxy(router_pb2.GetProxyRequest()).process_id
    stop = threading.Event()
    failures: list[str] = []

    def client() -> None:
        while not stop.is_set():
            try:
                mesh.label("d")
            except (AssertionError, OSError) as error:
                failures.append(repr(error))

    asking = threading.Thread(target=client)
    asking.start()
    try:
        for _ in range(2):
            mesh.kill()
            mesh.label("d")
            mesh.start()
            until(lambda: mesh.router.GetProxy(router_pb2.GetProxyRequest()).connected, "Envoy comes back")
            assert mesh.router.GetProxy(router_pb2.GetProxyRequest()).process_id == pid
            mesh.wait(one, [first])
        second, _ = mesh.replica(one, "second", revision=2)
        mesh.wait(one, [second])
        mesh.state(first, DRAINING)
        mesh.wait(one, [second], [first])
        assert mesh.label("d") == "second"
    finally:
        stop.set()
        asking.join(20)
    assert failures == []


def test_envoy_killed_is_back_and_gone_when_all_is_stopped(mesh: Mesh) -> None:
    one = mesh.deploy("d")
    first, _ = mesh.replica(one, "first")
    mesh.wait(one, [first])
    before = mesh.router.GetProxy(router_pb2.GetProxyRequest()).process_id
    os.kill(before, signal.SIGKILL)
    until(
        lambda: mesh.router.GetProxy(router_pb2.GetProxyRequest()).process_id not in (0, before), "another Envoy runs"
    )
    mesh.wait(one, [first])
    until(lambda: listening(mesh.port), "the router's port listens")
    assert mesh.label("d") == "first"
    after = mesh.router.GetProxy(router_pb2.GetProxyRequest()).process_id
    mesh.close()
    assert not Path(f"/proc/{after}").exists()


def test_a_taken_router_port_leaves_the_mesh_up(mesh: Mesh) -> None:
    mesh.close()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        mesh.port = holder.getsockname()[1]
        mesh.start()
        until(lambda: not mesh.info().serving, "Router says that it does not serve")
        assert f"port {mesh.port}" in mesh.info().problem
        assert "router.port" in mesh.info().problem
        assert "\n" not in mesh.info().problem
        health = health_pb2_grpc.HealthStub(mesh.channel)
        for service, status in (("noronha.v1.Router", "NOT_SERVING"), ("noronha.v1.Metadata", "SERVING")):
            found = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert health_pb2.HealthCheckResponse.ServingStatus.Name(found.status) == status
        own = free_port()
        one = mesh.deploy("d", port=own)
        first, _ = mesh.replica(one, "first")
        assert mesh.wait(one, [first]).port_error == ""
        until(lambda: listening(own), "its own port listens")
        assert call(own, "/predict").json["label"] == "first"
        taken = mesh.deploy("taken", port=mesh.port)
        assert "router.port" in mesh.wait(taken, []).port_error
    until(lambda: mesh.info().serving, "the port is free and used")
    assert mesh.label("d") == "first"


def test_an_own_port_that_is_taken_is_told(mesh: Mesh, taken_port: int) -> None:
    one = mesh.deploy("d", port=taken_port)
    first, _ = mesh.replica(one, "first")
    error = mesh.wait(one, [first]).port_error
    assert str(taken_port) in error
    assert "in use" in error.lower()


def test_a_server_answers_before_what_takes_long_to_import_is_there() -> None:
    """Envoy's messages take about a second of processor time, which no command is to wait for."""
    code = "import sys, noronha.router.service; sys.exit('envoy_data_plane' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
