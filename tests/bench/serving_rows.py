"""Predictions: through Envoy over straight to the replica, after a route change, and over bare gunicorn."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

from measure import ROOT, Bench, Row, free_port, in_turn, private_mesh, row, run
from training_rows import notebook, project

HERE = Path(__file__).parent
PREDICT = (
    "from noronha.tools.serving import OnlinePredict\n"
    "OnlinePredict(predict_func=lambda body: {label!r}, enrich=False)()"
)


def _replica(bench: Bench, name: str) -> int:
    """Returns the port of a deployment's only replica."""
    from noronha.client.connection import Mesh
    from noronha.v1 import metadata_pb2 as pb
    from noronha.v1 import replica_pb2

    with Mesh(bench.socket, whole=True) as mesh:
        replicas = mesh.metadata.ListReplicas(pb.ListReplicasRequest(parent=name)).replicas
    ready = [each.port for each in replicas if each.state == replica_pb2.Replica.READY]
    assert len(ready) == 1, replicas
    return ready[0]


def _median_latency(port: int, path: str, count: int = 300) -> float:
    """Returns the median of ``count`` requests from one connection, in milliseconds."""
    request = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\n1".encode()
    found, kept = [], None
    for _ in range(count):
        began = time.perf_counter()
        if kept is None:
            kept = socket.create_connection(("127.0.0.1", port), 10)
            kept.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kept.sendall(request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = kept.recv(65536)
            assert piece, answer
            answer += piece
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b" 200 " in head[:15], answer
        lower = head.lower()
        length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += kept.recv(65536)
        if b"connection: close" in lower:
            kept.close()
            kept = None
        found.append(time.perf_counter() - began)
    if kept is not None:
        kept.close()
    return statistics.median(found) * 1000


class Static(http.server.BaseHTTPRequestHandler):
    """Stands in for the code of users whose deployments only fill the table."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answers health checks and predictions alike."""
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        """Says nothing."""


class StaticServer(http.server.ThreadingHTTPServer):
    """Serves it; a proxy that hangs up, as at the end of a measurement, is nothing to tell."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing."""


class Plane:
    """A control plane with its own Envoy: records in, routes out, as Router does it."""

    def __init__(self, folder: Path, static: int) -> None:
        from noronha.router import snapshot
        from noronha.router.bootstrap import bootstrap
        from noronha.router.discovery import Discovery
        from noronha.router.envoy import ADMIN_SOCKET, UPDATE_SOCKET, Envoy
        from noronha.router.resources import Edge

        self.port = free_port()
        self.static = static
        self.discovery = Discovery()
        self.cache = snapshot.Cache()
        self.edge = Edge("127.0.0.1", self.port, str(folder / UPDATE_SOCKET), request_timeout=30.0)
        text = bootstrap(
            mesh_address=f"unix:{folder}/mesh.sock", token="none", admin_socket=str(folder / ADMIN_SOCKET),
            mesh_id="bench", release="bench",
        )  # fmt: skip
        self.envoy = Envoy(folder, text, 1)
        self.folder = folder
        self.deployments: dict[str, object] = {}
        self.replicas: dict[str, object] = {}

    def put(self, number: int, port: int) -> None:
        """Records deployment ``number`` with one replica at ``port``."""
        from noronha.v1 import deployment_pb2, replica_pb2

        name = f"projects/bench/deployments/d{number}"
        self.deployments[name] = deployment_pb2.Deployment(name=name)
        self.replicas[name] = replica_pb2.Replica(
            name=f"{name}/replicas/r{port}", revision=1, state=replica_pb2.Replica.READY, host="127.0.0.1", port=port
        )

    def publish(self) -> object:
        """Hands the records to Envoy, as a change of any of them does."""
        from noronha.router import snapshot

        made = snapshot.snapshot(self.deployments.values(), self.replicas.values(), (), self.edge, self.cache)
        self.discovery.publish(made)
        return made

    async def taken(self, made: object) -> None:
        """Waits until Envoy has accepted a snapshot."""
        done = await self.discovery.until(
            lambda: bool(self.discovery.streams) and all(s.snapshot is made and s.settled for s in self.discovery.streams), 120
        )
        assert done, self.envoy.last_words()


@contextlib.asynccontextmanager
async def plane(count: int, measured: int, static: int) -> AsyncIterator[Plane]:
    """Runs a control plane whose deployment 0 is the measured one among ``count``."""
    import grpc.aio

    from noronha.router import discovery

    with tempfile.TemporaryDirectory(prefix="nha-") as folder:
        made = Plane(Path(folder), static)
        for number in range(count):
            made.put(number, measured if number == 0 else static)
        server = grpc.aio.server()
        discovery.add(made.discovery, server)
        server.add_insecure_port(f"unix:{folder}/mesh.sock")
        await server.start()
        made.envoy.start()
        try:
            await made.taken(made.publish())
            await asyncio.sleep(2)  # the first health checks of a thousand deployments are not what is measured
            yield made
        finally:
            await made.envoy.stop()
            made.discovery.close()
            await server.stop(0)


@contextlib.contextmanager
def _static():
    server = StaticServer(("127.0.0.1", 0), Static)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@row("routing")
def routing() -> list[Row]:
    """Latency through Envoy with 1 and with 1,000 deployments, and a change of route."""
    with private_mesh() as bench, _static() as static:
        folder = project(bench.home)
        for label in ("one", "two"):
            notebook(folder / "notebooks" / f"{label}.ipynb", "a = 1", PREDICT.format(label=label))
        bench.nha("proj", "new", "--name", "bench", "--home-dir", str(folder))
        bench.nha("proj", "build", "--proj", "bench", "--from-home")
        ports = []
        for label in ("one", "two"):
            bench.nha("depl", "new", "--proj", "bench", "--name", label, "--nb", f"notebooks/{label}")
            ports.append(_replica(bench, f"projects/bench/deployments/{label}"))
        return asyncio.run(_routing(ports, static))


async def _routing(ports: list[int], static: int) -> list[Row]:
    direct, few, many = [], [], []
    path = "/predict?project=bench&deploy=d0"
    async with plane(1, ports[0], static) as one, plane(1000, ports[0], static) as thousand:
        for number in range(12):
            got = [
                await asyncio.to_thread(_median_latency, ports[0], "/predict"),
                await asyncio.to_thread(_median_latency, one.port, path),
                await asyncio.to_thread(_median_latency, thousand.port, path),
            ]
            if number:
                direct.append(got[0]), few.append(got[1]), many.append(got[2])
        changes, failures, asked = await _changes(thousand, ports, path)
    base = statistics.median(direct)
    with_one, with_many = statistics.median(few) - base, statistics.median(many) - base
    apart = abs(with_many - with_one)
    return [
        Row(
            "prediction through Envoy over straight to the replica, 1 and 1,000 deployments",
            "p50 at most 0.3 ms more, within 0.1 ms of each other",
            f"{with_one:+.2f} ms, {with_many:+.2f} ms, {apart:.2f} ms apart",
            max(with_one, with_many) <= 0.3 and apart <= 0.1, "", f"p50 {base:.2f} ms straight", "",
        ),
        Row(
            "a route change with 1,000 deployments, call to first request that follows it", "no request failed",
            f"{failures} of {asked} failed", failures == 0, "500 ms", f"{statistics.median(changes) * 1000:.0f} ms",
            f"{min(changes) * 1000:.0f}-{max(changes) * 1000:.0f} ms",
        ),
    ]  # fmt: skip


async def _changes(made: Plane, ports: list[int], path: str) -> tuple[list[float], int, int]:
    """Moves the measured deployment between two replicas and returns the delays, failed requests and all requests."""
    seen: list[str] = []
    stop = threading.Event()
    failed = [0]

    def ask_all_the_time() -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=20)
        while not stop.is_set():
            try:
                connection.request("POST", path, body=b"1")
                answer = connection.getresponse()
                text = answer.read().decode()
                failed[0] += answer.status != 200
                seen.append(text)
            except OSError:
                failed[0] += 1
                connection.close()

    asker = threading.Thread(target=ask_all_the_time, daemon=True)
    asker.start()
    delays = []
    try:
        for number in range(10):
            wanted = ("two", "one")[number % 2]
            made.put(0, ports[1 - number % 2])
            made.publish()
            began = time.perf_counter()
            while not (seen and wanted in seen[-1]):
                assert time.perf_counter() - began < 30, seen[-3:]
                await asyncio.sleep(0.001)
            delays.append(time.perf_counter() - began)
            await asyncio.sleep(0.3)
    finally:
        stop.set()
        asker.join(30)
    return delays, failed[0], len(seen)


BARE = """
import json, joblib, numpy as np
clf = joblib.load({model!r})
def predict(x):
    return clf.predict(np.array(json.loads(x)).reshape(1, -1))[0]
def app(environ, start):
    body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0)).decode()
    answer = json.dumps({{'result': str(predict(body))}}).encode()
    start('200 OK', [('Content-Type', 'application/json'), ('Content-Length', str(len(answer)))])
    return [answer]
"""


@row("throughput")
def throughput() -> list[Row]:
    """A one-replica iris service at 16 connections over bare gunicorn with the same function and settings."""
    from noronha.client.connection import Mesh
    from noronha.client.transfer import download
    from noronha.v1 import metadata_pb2 as pb

    with private_mesh() as bench:
        iris = ROOT / "examples" / "iris"
        bench.nha("model", "new", "--name", "iris-clf", "--model-file", '{"name": "clf.pkl"}')
        bench.nha("ds", "new", "--name", "iris-data-v0", "--model", "iris-clf", "--path", str(iris / "datasets"))
        bench.nha("proj", "new", "--name", "botanics", "--home-dir", str(iris), "--model", "iris-clf")
        bench.nha("proj", "build", "--proj", "botanics", "--from-home")
        bench.nha(
            "train", "new", "--proj", "botanics", "--name", "v1", "--nb", "notebooks/train", "--dataset", "iris-clf:iris-data-v0"
        )
        bench.nha(
            "depl", "new", "--proj", "botanics", "--name", "d", "--nb", "notebooks/predict", "--movers", "iris-clf:v1"
        )
        replica = _replica(bench, "projects/botanics/deployments/d")
        with Mesh(bench.socket, whole=True) as mesh:
            version = mesh.metadata.GetModelVersion(pb.GetModelVersionRequest(name="models/iris-clf/versions/v1"))
            build = mesh.metadata.GetBuild(pb.GetBuildRequest(name="projects/botanics/builds/latest"))
            download(mesh.store, version.files, bench.home / "model")
        (bench.home / "bare.py").write_text(BARE.format(model=str(bench.home / "model" / "clf.pkl")))
        hexadecimal = build.artifact.environment_digest.rpartition(":")[2]
        python = bench.home / "mesh" / "builder" / "environments" / hexadecimal / "bin" / "python"
        port = free_port()
        bare = subprocess.Popen(
            # The settings of the default server, `simple`: one worker, one thread, connections kept.
            [
                str(python), "-m", "gunicorn", "-w", "1", "-k", "gthread", "--threads", "1", "--keep-alive", "75",
                "-b", f"127.0.0.1:{port}", "bare:app",
            ],
            cwd=bench.home, env=bench.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)

            def rate(port: int, path: str = "/predict") -> float:
                found = json.loads(
                    run(sys.executable, str(HERE / "http_load.py"), str(port), path, "16", "3", "[5.1, 3.5, 1.4, 0.2]")
                )
                assert found["failures"] == 0, found
                return float(found["rate"])

            straight = in_turn(lambda: rate(replica), lambda: rate(port), 5)
            routed = in_turn(
                lambda: rate(bench.router_port, "/predict?project=botanics&deploy=d"), lambda: rate(port), 5
            )
        finally:
            bare.terminate()
            bare.wait(30)
    return [
        Row(
            "predictions a second of a one-replica iris service, 16 connections, over bare gunicorn", "at least 0.8x",
            f"{straight.ratio:.2f}x", straight.ratio >= 0.8, "", f"{statistics.median(straight.ours):.0f}/s", straight.spread("/s", digits=0),
        ),
        Row(
            "the same through Envoy", "printed", f"{routed.ratio:.2f}x", None, "", f"{statistics.median(routed.ours):.0f}/s",
            routed.spread("/s", digits=0),
        ),
    ]  # fmt: skip
