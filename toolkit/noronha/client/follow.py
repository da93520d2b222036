"""Follows a piece of work live: its record and its log side by side, across restarts of the mesh."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noronha.rpc.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    NoronhaError,
    NotFound,
    OutOfRange,
    Unavailable,
    Unknown,
)

if TYPE_CHECKING:
    from noronha.client.connection import Mesh

PATIENCE = 60.0
"""Seconds that a mesh may be away before following gives up."""

LAST_WORDS = 5.0
"""Seconds that the log may go on after the record says that the work has ended."""

REREAD = 0.5
"""Seconds after which a stream that ended before the work did is read on."""

TRANSIENT = (Unavailable, Cancelled, DeadlineExceeded, Internal, Unknown)
"""Errors of a stream that only says that a server went; the stream is opened again where it was."""


@dataclass(frozen=True)
class Output:
    """Bytes that the work wrote."""

    data: bytes
    replica: str = ""


@dataclass(frozen=True)
class Change:
    """The record as it is now."""

    record: Any


Event = Output | Change


class Following:
    """An iterator over what happens to one piece of work, until it has ended and its log has been read.

    ``name`` is the full name of the record; ``ended(record)`` says whether the work is over. ``tail`` is the
    ``TailLogs`` method that holds its log, None for work without one; ``replica`` and ``lines`` narrow the log as in
    its request. Iterating raises NotFound when the record is deleted, and Unavailable when the mesh stays away, also
    ``MESH_STOPPED`` when it was told to. Close it when done.
    """

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        ended: Callable[[Any], bool],
        tail: Callable[[Any], Any] | None = None,
        *,
        replica: str = "",
        lines: int = 0,
    ) -> None:
        self._mesh = mesh
        self._name = name
        self._ended = ended
        self._tail = tail
        self._replica = replica
        self._lines = lines
        self._queue: queue.Queue[Event | NoronhaError | None] = queue.Queue(1024)
        self._closed = threading.Event()
        self._over = threading.Event()
        self._calls: set[Any] = set()
        self._reviving = threading.Lock()
        self._begun = False
        self._log_over = tail is None
        self._record_over = False
        self._deadline: float | None = None

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives both streams up."""
        self._closed.set()
        self._over.set()
        for call in list(self._calls):
            call.cancel()

    def __iter__(self) -> Following:
        if not self._begun:
            self._begun = True
            work = [self._watch] if self._tail is None else [self._watch, self._read]
            for each in work:
                threading.Thread(target=each, daemon=True, name=f"follow{each.__name__}").start()
        return self

    def __next__(self) -> Event:
        """Returns what happened next; may be called again after an interrupt."""
        while not (self._log_over and self._record_over):
            try:
                left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
                event = self._queue.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(event, NoronhaError):
                raise event
            if event is None:
                self._log_over = True
                continue
            if isinstance(event, Change) and not self._record_over and self._ended(event.record):
                self._record_over = True
                self._deadline = time.monotonic() + LAST_WORDS
            return event
        raise StopIteration

    def _put(self, event: Event | NoronhaError | None) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(event, timeout=1.0)
                return

    def _persist(self, step: Callable[[], bool]) -> None:
        """Calls ``step`` until it is done, through absences of the mesh no longer than ``PATIENCE``."""
        last = time.monotonic()
        pause = 0.05
        while not self._closed.is_set():
            began = time.monotonic()
            try:
                if step():
                    return
                last, pause = time.monotonic(), 0.05
            except TRANSIENT as error:
                if time.monotonic() - began > 2.0:  # it stood for a while: the absence begins now
                    last, pause = time.monotonic(), 0.05
                if self._closed.is_set():
                    return
                if time.monotonic() - last > PATIENCE:
                    self._put(error)
                    return
                try:
                    with self._reviving:
                        self._mesh.revive()
                except NoronhaError as reason:
                    self._put(reason)
                    return
            except NoronhaError as error:
                self._put(error)
                return
            except Exception as error:  # a defect must reach the one who iterates, not die in a thread
                self._put(Internal(f"following {self._name} failed: {error!r}"))
                return
            else:
                continue
            self._closed.wait(pause)
            pause = min(pause * 2, 1.0)

    def _answers(self, call: Any) -> Iterator[Any]:
        self._calls.add(call)
        try:
            yield from call
        finally:
            self._calls.discard(call)
            call.cancel()

    def _watch(self) -> None:
        from noronha.v1 import metadata_pb2

        token = ""

        def step() -> bool:
            nonlocal token
            request = metadata_pb2.WatchRequest(names=[self._name], resume_token=token)
            try:
                for answer in self._answers(self._mesh.metadata.Watch(request)):
                    token = answer.resume_token or token
                    kind = answer.WhichOneof("step")
                    if kind == "changed":
                        record = getattr(answer.changed, answer.changed.WhichOneof("kind"))
                        self._put(Change(record))
                        if self._ended(record):
                            self._over.set()
                            return True
                    elif kind == "deleted":
                        self._put(NotFound(f"{answer.deleted} was deleted"))
                        return True
            except OutOfRange:
                token = ""
            self._closed.wait(REREAD)
            return False

        self._persist(step)

    def _read(self) -> None:
        from noronha.v1 import log_pb2

        position = ""

        def step() -> bool:
            nonlocal position
            assert self._tail is not None
            over = self._over.is_set()
            request = log_pb2.TailLogsRequest(
                name=self._name, replica=self._replica, position=position, follow=True, tail_lines=self._lines
            )
            for answer in self._answers(self._tail(request)):
                position = answer.position or position
                if answer.data:
                    self._put(Output(answer.data, answer.replica))
            if not over:
                # A server that has just come back may end the log of work that it has not found again yet. Only what is
                # read after the end of the work is surely all.
                self._over.wait(REREAD)
            return over

        self._persist(step)
        self._put(None)
