"""What tasks put out, kept by position: the first half and the latest part of it, whatever the length.

Every byte of a task's output has a position, counted from 0. The head of a log keeps the positions below half of the
largest size; what follows goes into segments, the oldest of which are removed as newer ones fill. Nothing of this is in
memory alone: a log that is opened again goes on where its files end.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from noronha.chassis import positions
from noronha.chassis.mount import make_private
from noronha.rpc.disk import state_error
from noronha.rpc.errors import InvalidArgument, OutOfRange

PIECE = 64 << 10
"""Most bytes of a log in one answer."""

MAX_APPEND = 256 << 10
"""Most bytes in one append."""

_SEGMENTS = 4
_SEGMENT = re.compile(r"tail-([0-9]{20})")


class Read(NamedTuple):
    """Some bytes of a log, where the next ones are, and whether bytes before these were dropped."""

    data: bytes
    next: int
    truncated: bool = False


class Log:
    """The output of one task. Used by one event loop."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._head_bytes = max(max_bytes, 8 * PIECE) // 2
        self._segment_bytes = max(self._head_bytes // _SEGMENTS, PIECE)
        self._max_bytes = max_bytes
        self._followers: weakref.WeakSet[asyncio.Event] = weakref.WeakSet()
        self._segments = sorted(int(match[1]) for each in self._names() if (match := _SEGMENT.fullmatch(each)))
        if self._segments:
            last = self._segments[-1]
            self.committed = last + self._path(last).stat().st_size
        else:
            head = folder / "head"
            self.committed = head.stat().st_size if head.exists() else 0
        self._dropped = bool(self._segments) and self._segments[0] > self._head_bytes

    def _names(self) -> list[str]:
        try:
            return os.listdir(self._folder)
        except FileNotFoundError:
            return []

    def _path(self, start: int) -> Path:
        return self._folder / ("head" if start == 0 else f"tail-{start:020d}")

    # ------------------------------------------------------------------------------------------------ writing

    def append(self, position: int, data: bytes) -> int:
        """Adds output that begins at ``position``, of which what is there already is skipped; returns where it ends.

        Raises InvalidArgument ``BAD_APPEND``, OutOfRange ``LOG_GAP``, ResourceExhausted ``NO_SPACE``.
        """
        if position < 0 or len(data) > MAX_APPEND:
            raise InvalidArgument(
                f"output must begin at 0 or later and have at most {MAX_APPEND} bytes", reason="BAD_APPEND",
                position=position, size=len(data),
            )  # fmt: skip
        if position > self.committed:
            raise OutOfRange(
                f"output up to {self.committed} has arrived, so it cannot go on at {position}", reason="LOG_GAP",
                committed_position=self.committed,
            )  # fmt: skip
        self._write(data[self.committed - position :])
        return self.committed

    def add(self, text: str) -> None:
        """Adds what the mesh itself has to say, once the task cannot say any more."""
        self._write(text.encode("utf-8", "replace"))

    def _write(self, data: bytes) -> None:
        if not data:
            return
        try:
            make_private(self._folder)
            view = memoryview(data)
            while view:
                start, room = self._place()
                with open(self._path(start), "ab") as file:
                    file.write(view[:room])
                self.committed += len(view[:room])
                view = view[room:]
        except OSError as error:
            raise state_error(self._folder, error) from error
        self.wake()

    def _place(self) -> tuple[int, int]:
        """Returns the start of the file that takes the next byte, and how many bytes it takes."""
        if self.committed < self._head_bytes:
            return 0, self._head_bytes - self.committed
        if not self._segments or self.committed - self._segments[-1] >= self._segment_bytes:
            self._segments.append(self.committed)
            while len(self._segments) > _SEGMENTS:
                self._path(self._segments.pop(0)).unlink(missing_ok=True)
                self._dropped = True
        return self._segments[-1], self._segments[-1] + self._segment_bytes - self.committed

    def wake(self) -> None:
        """Lets those who follow look again."""
        for each in list(self._followers):
            each.set()

    def follow(self, event: asyncio.Event) -> None:
        """Has an event set whenever there is more to read, for as long as the event is used."""
        self._followers.add(event)

    # ------------------------------------------------------------------------------------------------ reading

    def read(self, offset: int, whole: bool = True) -> Read | None:
        """Returns the next bytes from ``offset``, None when there are none.

        Unless ``whole``, a character that has not arrived completely is left for later.
        """
        note = b""
        truncated = False
        start = offset
        if self._dropped and self._head_bytes <= start < self._segments[0]:
            note = (
                f"\n[... {self._segments[0] - self._head_bytes} bytes are missing here: "
                f"the log reached its largest size of {self._max_bytes} bytes ...]\n"
            ).encode()
            start, truncated = self._segments[0], True
        if start >= self.committed:
            return Read(note, start, truncated) if note else None
        if start < self._head_bytes:
            file_start, room = 0, self._head_bytes - start
        else:
            file_start = max(each for each in self._segments if each <= start)
            room = self._segment_bytes - (start - file_start)
        try:
            with open(self._path(file_start), "rb") as file:
                file.seek(start - file_start)
                data = file.read(min(PIECE - len(note), room))
        except FileNotFoundError:
            return None
        cut = _incomplete(data)
        if cut and (start + len(data) < self.committed or not whole):
            if cut < len(data):
                data = data[:-cut]
            elif start + cut == self.committed:
                data = b""
        if not data and not note:
            return None
        return Read(note + data, start + len(data), truncated)

    def last_lines(self, lines: int) -> int:
        """Returns where about the last ``lines`` begin."""
        offset = self.committed
        found = 0
        while offset > 0:
            step = min(PIECE, offset)
            piece = self._between(offset - step, offset)
            cuts = [index for index in range(len(piece)) if piece[index : index + 1] == b"\n"]
            if offset == self.committed and cuts and cuts[-1] == len(piece) - 1:
                cuts.pop()  # the end of the last line begins no other one
            if found + len(cuts) >= lines:
                return offset - len(piece) + cuts[len(cuts) - (lines - found)] + 1
            found += len(cuts)
            if len(piece) < step:
                return offset - len(piece)
            offset -= step
        return 0

    def _between(self, start: int, end: int) -> bytes:
        """Returns the bytes between two positions, fewer at the front where they were dropped."""
        found = b""
        while end > start:
            file_start = max([0, *(each for each in self._segments if each < end)])
            first = max(start, file_start)
            if file_start == 0 and end > self._head_bytes:
                break  # dropped
            with open(self._path(file_start), "rb") as file:
                file.seek(first - file_start)
                found = file.read(end - first) + found
            end = first
        return found

    def remove(self) -> None:
        """Removes the log."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _incomplete(data: bytes) -> int:
    """Returns how many bytes at the end begin a character of UTF-8 whose rest is missing."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 1
        return back if length > back else 0
    return 0


class Logs:
    """The logs of all tasks, a folder each."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        make_private(folder)
        self._folder = folder
        self._max_bytes = max_bytes
        self._open: weakref.WeakValueDictionary[str, Log] = weakref.WeakValueDictionary()

    def open(self, id: str) -> Log:
        """Returns the log of a workload; the same object for as long as anybody holds it."""
        log = self._open.get(id)
        if log is None:
            log = self._open[id] = Log(self._folder / id, self._max_bytes)
        return log

    def remove(self, id: str) -> None:
        """Removes the log of a workload."""
        self.open(id).remove()
        self._open.pop(id, None)

    def ids(self) -> list[str]:
        """Returns the workloads that have a log."""
        return sorted(os.listdir(self._folder))


class Piece(NamedTuple):
    """Bytes of one of several logs, and the position after them."""

    data: bytes
    position: str
    part: str
    truncated: bool


class Part(NamedTuple):
    """One log of those that are read together."""

    log: Log
    ended: bool


async def tail(
    name: str,
    parts: Callable[[], Mapping[str, Part]],
    *,
    position: str = "",
    lines: int = 0,
    follow: asyncio.Event | None = None,
    ended: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Piece]:
    """Yields one or several logs, one after the other, or together as they grow when ``follow`` is given.

    ``parts()`` tells the logs as they are now, by key; ``follow`` is set by whoever knows that they may have changed,
    and ``ended()`` says that nothing more will come. Raises InvalidArgument ``BAD_POSITION`` for another's position.
    """
    offsets = positions.unseal(position, name) if position else {}
    if lines > 0 and not position:
        offsets = {key: part.log.last_lines(lines) for key, part in parts().items()}
    while True:
        if follow is not None:
            follow.clear()
        over = follow is None or ended()
        now = parts()
        for key, part in now.items():
            if follow is not None:
                part.log.follow(follow)
            while (read := part.log.read(offsets.get(key, 0), over or part.ended)) is not None:
                offsets[key] = read.next
                yield Piece(read.data, positions.seal(offsets, name), key, read.truncated)
        if over:
            return
        assert follow is not None
        await follow.wait()
