"""Delivers a task's output to the mesh: in order, at positions, kept on disk while the mesh is away."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from noronha.rpc.errors import FailedPrecondition, NoronhaError, OutOfRange

if TYPE_CHECKING:
    from noronha.v1.tasks_pb2_grpc import TasksStub

PIECE = 256 * 1024
"""Most bytes of one append."""

MOST_KEPT = 256 << 20
"""Most bytes kept on disk while the mesh is away; later ones are dropped with a note."""

logger = logging.getLogger("noronha.task")


class Delivery:
    """Takes output from any thread and appends it to the task's log in the mesh.

    Nothing added is lost while the mesh is away, up to `MOST_KEPT` bytes. ``on_ended`` is called when the mesh says
    that the task has ended already.
    """

    def __init__(self, tasks: Callable[[], TasksStub], folder: Path, on_ended: Callable[[], None] = lambda: None):
        self._tasks = tasks
        self._on_ended = on_ended
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (kept for as long as this object)
        self._base = 0
        """Position of the first byte of the file."""
        self._end = 0
        self._committed = 0
        self._dropped = 0
        self._over = False
        self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="output-delivery", daemon=True)
        self._thread.start()

    def add(self, text: str) -> None:
        """Adds text; returns at once."""
        data = text.encode("utf-8", "replace")
        with self._condition:
            if self._over or not data:
                return
            kept = self._end - self._base
            if kept + len(data) > MOST_KEPT:
                self._dropped += len(data)
                return
            if self._dropped:
                data = f"\n[… {self._dropped:,} bytes of output left out: the mesh was away …]\n".encode() + data
                self._dropped = 0
            self._file.seek(kept)
            self._file.write(data)
            self._end += len(data)
            self._condition.notify_all()

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all that was added has arrived; returns whether it has."""
        with self._condition:
            return self._condition.wait_for(lambda: self._over or self._committed >= self._end, timeout)

    def close(self) -> None:
        """Stops delivering."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def _run(self) -> None:
        pause = 0.1
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._committed < self._end)
                if self._closed:
                    return
                position = self._committed
                self._file.seek(position - self._base)
                data = self._file.read(min(PIECE, self._end - position))
            try:
                self._took(self._append(position, data))
                pause = 0.1
            except OutOfRange as error:
                self._mend(error)
            except FailedPrecondition as error:
                logger.warning("output is no longer taken: %s", error)
                self._give_up()
                if error.reason == "TASK_ENDED":
                    self._on_ended()
                return
            except NoronhaError as error:
                logger.debug("output waits: %s", error)
                with self._condition:
                    self._condition.wait_for(lambda: self._closed, pause)
                pause = min(2.0, pause * 2)

    def _append(self, position: int, data: bytes) -> int:
        from noronha.v1 import tasks_pb2

        request = tasks_pb2.AppendOutputRequest(position=position, data=data)
        return int(self._tasks().AppendOutput(request, timeout=30).committed_position)

    def _took(self, committed: int) -> None:
        with self._condition:
            self._committed = max(self._committed, min(committed, self._end))
            if self._committed == self._end and self._end - self._base > (1 << 20):
                self._file.seek(0)
                self._file.truncate()
                self._base = self._end
            self._condition.notify_all()

    def _mend(self, error: OutOfRange) -> None:
        """Goes on where the mesh says it is. What it had and lost is filled up with a note, so that positions stay."""
        try:
            wanted = int(error.metadata.get("committed_position", ""))
        except ValueError:
            wanted = -1
        with self._condition:
            if self._base <= wanted <= self._end:
                self._committed = wanted
                return
        if 0 <= wanted < self._base:
            self._fill(wanted)
            return
        logger.error("the mesh cannot say where the output is to go on: %s", error)
        self._give_up()

    def _fill(self, position: int) -> None:
        note = b"\n[\xe2\x80\xa6 output was lost here \xe2\x80\xa6]\n"
        while position < self._base:
            size = min(PIECE, self._base - position)
            try:
                position = self._append(position, note.ljust(size, b" ")[:size])
            except NoronhaError as error:
                logger.debug("output waits: %s", error)
                time.sleep(0.5)
                return  # asked again at the next append
        with self._condition:
            self._committed = self._base

    def _give_up(self) -> None:
        with self._condition:
            self._over = True
            self._condition.notify_all()
