"""Metadata's calls over a bare echo, and a filtered page of many records."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import Row, in_turn, private_mesh, row, run

HERE = Path(__file__).parent


def _rate(address: str, what: str, clients: int, limit: float = 2.0) -> float:
    return float(run(sys.executable, str(HERE / "load_client.py"), address, what, str(clients), str(limit)))


@row("metadata")
def calls() -> list[Row]:
    """Gets and durable creates over the echo, by number of clients."""
    rows = []
    with private_mesh() as bench:
        bench.nha("model", "new", "--name", "bench")
        echo_address = f"unix:{bench.home}/echo.sock"
        echo = subprocess.Popen(
            [sys.executable, str(HERE / "echo_server.py"), echo_address], stdout=subprocess.PIPE, text=True
        )
        try:
            assert echo.stdout is not None and echo.stdout.readline()
            for what, clients, least in (("get", 1, 0.5), ("get", 32, 0.5), ("create", 1, 0.4), ("create", 8, 0.4)):
                pair = in_turn(
                    lambda what=what, clients=clients: _rate(bench.socket, what, clients),
                    lambda what=what, clients=clients: _rate(echo_address, what, clients), 5,
                )  # fmt: skip
                word = {"get": "get by name", "create": "durable creates"}[what]
                goal = "1,500/s" if (what, clients) == ("create", 8) else ""
                rows.append(
                    Row(
                        f"Metadata {word} over the echo, {clients} client{'s' * (clients > 1)}", f"at least {least}x",
                        f"{pair.ratio:.2f}x", pair.ratio >= least, goal, f"{statistics.median(pair.ours):.0f}/s",
                        pair.spread("/s", digits=0),
                    )
                )  # fmt: skip
        finally:
            echo.terminate()
            echo.wait()
    return rows


@row("page")
def page() -> list[Row]:
    """A page of 100 out of 100,000 records by a filter on ``details``."""
    import grpc

    from noronha.v1 import metadata_pb2 as pb
    from noronha.v1 import metadata_pb2_grpc as rpc

    with private_mesh() as bench:
        bench.nha("model", "new", "--name", "bench")
        run(sys.executable, str(HERE / "fill_records.py"), bench.socket, "100000", timeout=1800)
        with grpc.insecure_channel(bench.socket) as channel:
            stub = rpc.MetadataStub(channel)

            def ask(text: str, times: int) -> list[float]:
                found = []
                for _ in range(times):
                    began = time.perf_counter()
                    stub.ListDatasets(
                        pb.ListDatasetsRequest(parent="models/bench", page_size=100, filter=text), timeout=60
                    )
                    found.append(time.perf_counter() - began)
                return found

            ask('{"details.part": {"$lt": 100}}', 3)
            hits = ask('{"details.part": {"$lt": 100}}', 40)
            misses = ask('{"details.part": {"$gt": 100000}}', 5)
    p95 = statistics.quantiles(hits, n=20)[-1]
    return [
        Row("list page of 100, 100,000 records, filter on `details`", "printed", f"p95 {p95 * 1000:.1f} ms", None, "p95 50 ms", f"median {statistics.median(hits) * 1000:.1f} ms", ""),
        Row("the same, nothing matches", "printed", f"median {statistics.median(misses) * 1000:.0f} ms", None, "", "", ""),
    ]  # fmt: skip
