"""A real Envoy, fed by a real discovery stream from records the test writes, in front of small HTTP servers."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import http.server
import json
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio

with warnings.catch_warnings():
    # envoy-data-plane is written in a way that its own dependency deprecates, a hundred times over.
    warnings.simplefilter("ignore")
    from noronha.router import ads  # noqa: F401

from noronha.router import discovery as discovery_module
from noronha.router import snapshot as snapshots
from noronha.router.bootstrap import bootstrap
from noronha.router.discovery import Discovery
from noronha.router.edge import Edge
from noronha.router.envoy import ADMIN_SOCKET, UPDATE_SOCKET, Envoy
from noronha.router.update import UpdateServer
from noronha.v1 import deployment_pb2, replica_pb2, traffic_pb2
from tests.waiting import free_port, listening


class Upstream:
    """Stands in for a replica: answers every request with what it received, and counts."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.seen: list[str] = []
        self.healthy = True
        self.status = 200
        self.gate: threading.Event | None = None
        self.probe_gate: threading.Event | None = None
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            wbufsize = -1

            def do_POST(self) -> None:
                if self.path == "/health":
                    if upstream.probe_gate is not None:
                        upstream.probe_gate.wait(60)
                    self._send(200 if upstream.healthy else 500, b"OK", "text/plain")
                    return
                body = self._body()
                upstream.seen.append(self.path)
                if upstream.gate is not None:
                    upstream.gate.wait(30)
                found = {
                    "label": upstream.label,
                    "method": self.command,
                    "path": self.path,
                    "headers": {name.lower(): value for name, value in self.headers.items()},
                    "length": len(body),
                }
                if self.path.startswith("/echo") or self.headers.get("x-echo"):
                    self._send(upstream.status, body, self.headers.get("content-type", ""))
                else:
                    self._send(upstream.status, json.dumps(found).encode(), "application/json")

            do_GET = do_PUT = do_POST

            def _body(self) -> bytes:
                if self.headers.get("transfer-encoding", "") != "chunked":
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                found = b""
                while size := int(self.rfile.readline(), 16):
                    found += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return found

            def _send(self, status: int, body: bytes, kind: str) -> None:
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *args: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    port: int, path: str, body: bytes | None = b"[1]", method: str = "POST", headers: dict[str, str] | None = None
) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


async def ask(*args: Any, **more: Any) -> Answer:
    return await asyncio.to_thread(call, *args, **more)


async def eventually(condition: Callable[[], Any], what: str, timeout: float = 20.0) -> Any:
    """Waits until a condition, which may be a coroutine function, is true."""
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"never happened: {what}"
        await asyncio.sleep(0.02)


class Rig:
    """The records that a test writes, and everything that follows from them."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.edge = Edge("127.0.0.1", port, str(folder / UPDATE_SOCKET), request_timeout=30.0)
        self.discovery = Discovery()
        self.deployments: dict[str, deployment_pb2.Deployment] = {}
        self.replicas: dict[str, replica_pb2.Replica] = {}
        self.traffic: dict[str, traffic_pb2.Traffic] = {}
        self.upstreams: list[Upstream] = []
        self.cache = snapshots.Cache()
        self.server: Any = None
        text = bootstrap(
            mesh_address=f"unix:{folder}/mesh.sock",
            token="a-token-of-the-test",
            admin_socket=str(folder / ADMIN_SOCKET),
            mesh_id="test",
            release="test",
        )
        self.envoy = Envoy(folder, text, 1)
        self.update = UpdateServer(folder / UPDATE_SOCKET, self.ready)

    def ready(self, deployment: str) -> Any:
        return self.discovery.snapshot.ready.get(deployment) if self.discovery.snapshot else None

    async def serve(self) -> None:
        """Starts the control plane."""
        self.discovery = Discovery()
        self.server = grpc.aio.server()
        discovery_module.add(self.discovery, self.server)
        self.server.add_insecure_port(f"unix:{self.folder}/mesh.sock")
        await self.server.start()

    async def stop_serving(self) -> None:
        self.discovery.close()
        await self.server.stop(0)

    def upstream(self, label: str) -> Upstream:
        made = Upstream(label)
        self.upstreams.append(made)
        return made

    def deployment(self, name: str, *, port: int = 0, serving: int = 0) -> str:
        project, _, deployment = name.partition("/")
        full = f"projects/{project}/deployments/{deployment}"
        record = deployment_pb2.Deployment(name=full, port=port)
        record.status.serving_revision = serving
        record.spec.health_check.interval.FromMilliseconds(1000)
        self.deployments[full] = record
        return full

    def replica(
        self, deployment: str, name: str, upstream: Upstream | int, revision: int = 1, state: str = "READY"
    ) -> str:
        full = f"{deployment}/replicas/{name}"
        self.replicas[full] = replica_pb2.Replica(
            name=full,
            revision=revision,
            state=replica_pb2.Replica.State.Value(state),
            host="127.0.0.1",
            port=upstream if isinstance(upstream, int) else upstream.port,
        )
        return full

    def publish(self) -> snapshots.Snapshot:
        made = snapshots.snapshot(
            self.deployments.values(), self.replicas.values(), self.traffic.values(), self.edge, self.cache
        )
        named = {each for part in made.parts.values() for each in part.clusters}
        assert named <= made.clusters.keys() and named <= made.endpoints.keys(), "a route names what is not there"
        self.discovery.publish(made)
        return made

    async def apply(self) -> snapshots.Snapshot:
        """Publishes the records and waits until Envoy has taken them."""
        made = self.publish()

        def taken() -> bool:
            streams = self.discovery.streams
            return bool(streams) and all(each.snapshot is made and each.settled for each in streams)

        if not await self.discovery.until(taken, 20):
            refused = [each.refused for each in self.discovery.streams]
            raise AssertionError(f"Envoy did not take the snapshot: {refused}; {self.envoy.last_words()}")
        await eventually(lambda: listening(self.port), "the router's port listens")
        return made

    async def close(self) -> None:
        await self.envoy.stop()
        await self.update.close()
        await self.stop_serving()
        for upstream in self.upstreams:
            upstream.close()


@contextlib.asynccontextmanager
async def running_rig() -> AsyncIterator[Rig]:
    with tempfile.TemporaryDirectory(prefix="nha-router-") as folder:
        rig = Rig(Path(folder), free_port())
        await rig.serve()
        await rig.update.start()
        try:
            rig.envoy.start()
            yield rig
        finally:
            await rig.close()
