"""Plain HTTP to replicas: are they healthy, and have they taken a new version up."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import NamedTuple
from urllib.parse import quote

_MOST = 64 << 10
_LONGEST = 200


class Answer(NamedTuple):
    """What a replica answered; status 0 when it did not."""

    status: int
    said: str

    @property
    def problem(self) -> str:
        """What went wrong, in one line of at most 200 characters: the message, where a model server told an error."""
        told: object = self.said
        with contextlib.suppress(ValueError, RecursionError):
            told = json.loads(self.said)
        if isinstance(told, dict):
            told = told.get("err", self.said)
        if isinstance(told, dict):
            told = told.get("Message") or told.get("Error") or self.said
        line = " ".join((told if isinstance(told, str) else self.said).split())
        line = line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
        return line or (f"it answered {self.status}" if self.status else "no answer")


async def call(method: str, host: str, port: int, path: str, timeout: float) -> Answer:
    """Calls a replica; ``timeout`` is in seconds."""
    try:
        return await asyncio.wait_for(_call(method, host, port, path), timeout)
    except asyncio.TimeoutError:
        return Answer(0, f"did not answer within {timeout:g} s")
    except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        return Answer(0, str(error) or type(error).__name__)


async def _call(method: str, host: str, port: int, path: str) -> Answer:
    reader, writer = await asyncio.open_connection(host, port, limit=_MOST)
    try:
        shown = f"[{host}]" if ":" in host else host
        head = f"{method} {path} HTTP/1.1\r\nhost: {shown}:{port}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        status = int((await reader.readline()).split(b" ")[1])
        length = _MOST
        while line := (await reader.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = min(int(value), _MOST)
        said = b""
        while len(said) < length and (piece := await reader.read(length - len(said))):
            said += piece
        return Answer(status, said.decode("utf-8", "replace").strip())
    except IndexError:
        return Answer(0, "answered something that is not HTTP")
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def healthy(host: str, port: int, timeout: float) -> bool:
    """Says whether a replica answers its health check."""
    return (await call("GET", host, port, "/health", timeout)).status == 200


async def update(host: str, port: int, version: str, timeout: float) -> Answer:
    """Has a replica take up a version anew."""
    return await call("POST", host, port, f"/update?model_version={quote(version, safe='')}", timeout)
