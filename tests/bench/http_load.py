"""Asks for predictions from N connections for a while: ``http_load.py PORT PATH CONNECTIONS SECONDS BODY``.

Prints one line of JSON: requests a second, failures, and the median latency in milliseconds. Connections are kept as long
as the server keeps them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bool]:
    """Returns the status of one answer, and whether the connection stays open."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head[9:12])
    length, keep = 0, True
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        elif name.lower() == b"connection" and value.strip().lower() == b"close":
            keep = False
    await reader.readexactly(length)
    return status, keep


async def main(port: int, path: str, connections: int, limit: float, body: str) -> None:
    """Runs the connections."""
    request = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()
    latencies: list[float] = []
    failures = 0
    deadline = time.perf_counter() + limit

    async def connection() -> None:
        nonlocal failures
        pair = None
        while time.perf_counter() < deadline:
            began = time.perf_counter()
            try:
                if pair is None:
                    pair = await asyncio.open_connection("127.0.0.1", port)
                status, keep = await ask(*pair, request)
            except (OSError, asyncio.IncompleteReadError):
                status, keep = 0, False
            latencies.append(time.perf_counter() - began)
            failures += status != 200
            if not keep and pair is not None:
                pair[1].close()
                pair = None

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    took = time.perf_counter() - began
    print(json.dumps({"rate": len(latencies) / took, "failures": failures, "p50": statistics.median(latencies) * 1000}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]))
