"""The `/update` endpoint: hands an update to every ready replica of a deployment, and says who failed.

Envoy sends `/update` here over a private Unix socket, with the deployment's full name as the path and the client's
query as it was. One request a connection; whatever body comes with it is ignored, as replicas ignore it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs

from noronha.router.edge import Endpoint

log = logging.getLogger("noronha.router")

TIMEOUT = 600.0
"""Seconds that a replica has to take an update in."""

MAX_HEAD = 64 << 10
MAX_SAID = 2000

Replicas = Callable[[str], "Sequence[tuple[str, Endpoint]] | None"]
"""Tells the ready replicas of a deployment, by its full name; None when there is no such deployment."""


class Outcome(NamedTuple):
    """What one replica answered."""

    replica: str
    status: int
    """HTTP status; 0 when there was no answer."""
    said: str


class UpdateServer:
    """Serves `/update` on a Unix socket."""

    def __init__(self, path: Path, replicas: Replicas) -> None:
        self._path = path
        self._replicas = replicas
        self._server: asyncio.Server | None = None
        self._threads = ThreadPoolExecutor(max_workers=32, thread_name_prefix="update")

    async def start(self) -> None:
        """Begins to serve. Raises OSError when the socket cannot be made."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._handle, str(self._path), limit=MAX_HEAD)
        os.chmod(self._path, 0o600)

    async def close(self) -> None:
        """Stops serving; updates under way are given up."""
        if self._server is not None:
            self._server.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._path.unlink(missing_ok=True)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            status, body = await self._answer(head)
            kind = "text/plain" if status == HTTPStatus.OK else "application/json"
            writer.write(
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {kind}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.TimeoutError) as error:
            log.debug("an update was broken off: %s", error)
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> tuple[int, bytes]:
        method, _, rest = head.split(b"\r\n", 1)[0].decode("latin-1").partition(" ")
        target = rest.rpartition(" ")[0]
        path, _, query = target.partition("?")
        if method != "POST":
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, "an update is a POST")
        deployment = path.strip("/")
        replicas = self._replicas(deployment)
        if replicas is None:
            return _error(HTTPStatus.NOT_FOUND, f"{deployment} does not exist")
        if not replicas:
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, f"{deployment} has no ready replica")
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(self._threads, call, name, place, query) for name, place in replicas]
        outcomes = await asyncio.gather(*calls)
        version = ", ".join(parse_qs(query).get("model_version", []))
        log.info("update of %s to %r: %s", deployment, version, [(each.replica, each.status) for each in outcomes])
        return summary(outcomes)


def call(name: str, place: Endpoint, query: str) -> Outcome:
    """Hands the update to one replica and waits for its answer."""
    connection = http.client.HTTPConnection(place.host, place.port, timeout=TIMEOUT)
    try:
        connection.request("POST", f"/update?{query}" if query else "/update", headers={"content-length": "0"})
        answer = connection.getresponse()
        said = answer.read(MAX_SAID).decode("utf-8", "replace").strip()
        return Outcome(name, answer.status, said)
    except (OSError, http.client.HTTPException) as error:
        return Outcome(name, 0, str(error) or type(error).__name__)
    finally:
        connection.close()


def summary(outcomes: Sequence[Outcome]) -> tuple[int, bytes]:
    """Makes one answer of many: 200 only if all replicas took the update, else those that did not, by name.

    When all of them failed alike (the version does not exist, say), their own status is passed on; else it is 502.
    """
    failed = [each for each in outcomes if not 200 <= each.status < 300]
    if not failed:
        return HTTPStatus.OK, b"OK"
    statuses = {each.status for each in outcomes}
    status = statuses.pop() if len(statuses) == 1 else 0
    known = status in HTTPStatus._value2member_map_ and status >= 400
    names = {each.replica.rpartition("/")[2]: _told(each) for each in failed}
    error = f"{len(failed)} of {len(outcomes)} replicas did not take the update"
    return _error(status if known else HTTPStatus.BAD_GATEWAY, error, failed=names)


def _told(outcome: Outcome) -> dict[str, object]:
    """Returns what a replica answered, JSON as such and anything else as text; the status is null without an answer."""
    try:
        answer: object = json.loads(outcome.said)
    except ValueError:
        answer = outcome.said
    return {"status": outcome.status or None, "answer": answer}


def _error(status: int, error: str, **more: object) -> tuple[int, bytes]:
    return int(status), json.dumps({"router_error": error, **more}).encode() + b"\n"
