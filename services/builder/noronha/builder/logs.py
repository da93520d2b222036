"""Logs of builds, kept in files and read by position while they grow."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from noronha.chassis import positions

PIECE = 64 << 10
"""Most bytes of a log in one answer."""

MAX_BYTES = 16 << 20
"""Largest log of one build; what comes after is dropped, with a note."""

_LOOK_AGAIN = 1.0


class Piece(NamedTuple):
    """Some bytes of a log, and the position after them."""

    data: bytes
    position: str


class Logs:
    """The logs of one builder, a file for each build's revision. Writing may happen in any thread."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder that holds the files, made when absent."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._lock = threading.Lock()
        self._grown: weakref.WeakValueDictionary[str, asyncio.Event] = weakref.WeakValueDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _path(self, reference: str) -> Path:
        return self._folder / f"{hashlib.sha256(reference.encode()).hexdigest()}.log"

    def write(self, reference: str, line: str) -> None:
        """Adds a line. A disk that takes no more loses the line, not the build."""
        data = f"{line}\n".encode("utf-8", "replace")
        try:
            with self._lock, open(self._path(reference), "ab") as file:
                if file.tell() + len(data) > MAX_BYTES:
                    if file.tell() > MAX_BYTES:
                        return
                    data = b"... the log is full, the rest is dropped" + b" " * (MAX_BYTES - file.tell()) + b"\n"
                file.write(data)
        except OSError:
            return
        event = self._grown.get(reference)
        if event is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(event.set)

    def wake(self, reference: str) -> None:
        """Lets those who follow a log look whether it has ended."""
        event = self._grown.get(reference)
        if event is not None:
            event.set()

    def remove(self, reference: str) -> None:
        """Removes a log."""
        self._path(reference).unlink(missing_ok=True)

    async def tail(
        self, reference: str, *, position: str = "", lines: int = 0, ended: Callable[[], Awaitable[bool]] | None = None
    ) -> AsyncIterator[Piece]:
        """Yields a log from ``position``, or from its last ``lines``; with ``ended``, waits for more until it is true.

        Raises InvalidArgument ``BAD_POSITION`` for a position of another log.
        """
        path = self._path(reference)
        offset = 0
        if position:
            offset = positions.unseal(position, reference).get("", 0)
        elif lines > 0:
            offset = _last(path, lines)
        self._loop = asyncio.get_running_loop()
        event = self._grown.setdefault(reference, asyncio.Event())
        while True:
            event.clear()
            over = ended is None or await ended()
            while data := _read(path, offset):
                offset += len(data)
                yield Piece(data, positions.seal({"": offset}, reference))
            if over:
                return
            try:
                await asyncio.wait_for(event.wait(), _LOOK_AGAIN)
            except asyncio.TimeoutError:
                continue


def _read(path: Path, offset: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(PIECE)
    except FileNotFoundError:
        return b""
    # Whole lines where there are any, so that no character is cut in two.
    end = data.rfind(b"\n") + 1
    return data[:end] if end else data


def _last(path: Path, lines: int) -> int:
    """Returns where the last lines begin."""
    try:
        with open(path, "rb") as file:
            end = file.seek(0, 2)
            start, tail = end, b""
            while start > 0 and tail.count(b"\n") <= lines:
                step = min(PIECE, start)
                start -= step
                file.seek(start)
                tail = file.read(step) + tail
    except FileNotFoundError:
        return 0
    kept = tail.splitlines(keepends=True)[-lines:]
    return end - sum(len(line) for line in kept)
