"""Group commit: whatever waits becomes one transaction, and one sync of the disk is for all of it.

Statements of small commits run in the loop, where they cost microseconds and need no other thread; the sync, and
whatever is large, runs in the writer's thread. A transaction begins when the one before it is over, so the commits that
arrive during a sync make up the next group.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from noronha.metadata.backend import Change
from noronha.metadata.backends.sqlite.cache import Cache
from noronha.metadata.backends.sqlite.schema import error_of
from noronha.metadata.backends.sqlite.writes import Applied, Writes
from noronha.rpc.errors import NoronhaError, Unavailable

log = logging.getLogger("noronha")

T = TypeVar("T")

_GROUP = 256
_LARGE_GROUP = 200
LARGE = 1 << 30
"""Weight of work that belongs into the writer's thread whatever it writes."""

_BUSY_SECONDS = 10.0


class _Job:
    """Something to do inside a transaction, and who waits for it."""

    __slots__ = ("error", "future", "result", "weight", "work")

    def __init__(self, work: Callable[[Writes], Any], future: asyncio.Future[Any], weight: int) -> None:
        self.work = work
        self.future = future
        self.weight = weight
        self.result: Any = None
        self.error: BaseException | None = None


class _Group:
    """Jobs of one transaction."""

    __slots__ = ("applied", "begun", "jobs")

    def __init__(self, jobs: list[_Job]) -> None:
        self.jobs = jobs
        self.begun = False
        """Whether the statements were run, so that only the commit is left."""
        self.applied: list[Applied] = []


class Commits:
    """The one writer of a file. ``on_changes`` hears, in the loop, of every change that is on the disk."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, cache: Cache, on_changes: Callable[[list[Change]], None]
    ) -> None:
        self.connection = connection
        self._path = path
        self._cache = cache
        self._on_changes = on_changes
        self._writes = Writes(connection)
        self.newest = self._writes.newest
        """Position of the newest change when the file was opened."""
        self._waiting: collections.deque[_Job] = collections.deque()
        self._running = False
        self._closed = False
        self._idle: asyncio.Event | None = None
        self._groups: queue.SimpleQueue[tuple[_Group, asyncio.AbstractEventLoop] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="records-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Writes], T], weight: int = 1) -> asyncio.Future[T]:
        """Does some work in the next transaction; ``weight`` is about how many rows it writes.

        The work raises its own errors before it writes anything. Whoever gives up waiting does not undo it.
        """
        if self._closed:
            raise Unavailable(f"{self._path} is closed", reason="RECORDS_UNAVAILABLE")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.append(_Job(work, future, weight))
        if not self._running:
            self._running = True
            self._next()
        return future

    def _next(self) -> None:
        """Begins the next transaction, in the loop."""
        if not self._waiting:
            self._running = False
            if self._idle is not None:
                self._idle.set()
            return
        jobs = [self._waiting.popleft() for _ in range(min(len(self._waiting), _GROUP))]
        group = _Group(jobs)
        if sum(job.weight for job in jobs) <= _LARGE_GROUP:
            try:
                self._begin(group)
            except sqlite3.OperationalError:
                # Somebody holds the file: the thread can wait for it, the loop cannot.
                self._undo()
                group.begun = False
            except Exception as error:
                self._fail(group, error)
                self._finish(group)
                return
            if group.begun and not group.applied:
                self._end(group)  # nothing was written: there is nothing to sync
                self._finish(group)
                return
        self._groups.put((group, asyncio.get_running_loop()))

    def _begin(self, group: _Group) -> None:
        """Runs the statements of a group in a transaction that stays open."""
        for job in group.jobs:
            job.result = job.error = None
        self.connection.execute("BEGIN IMMEDIATE")
        self._writes.start()
        for job in group.jobs:
            try:
                job.result = job.work(self._writes)
            except NoronhaError as error:
                job.error = error
        group.applied = self._writes.take_applied()
        group.begun = True

    def _end(self, group: _Group) -> bool:
        """Commits what was begun; says whether that went well. The cache takes nothing in while it lasts."""
        self._cache.freeze(group.applied)
        try:
            self.connection.execute("COMMIT")
        except Exception as error:
            self._fail(group, error)
            return False
        finally:
            self._cache.thaw()
        return True

    def _fail(self, group: _Group, error: Exception) -> None:
        """Tells everybody of a group that nothing of it happened."""
        log.error("a commit to %s failed: %s", self._path, error, exc_info=error)
        failure = error_of(error, self._path) if isinstance(error, sqlite3.Error) else error
        for job in group.jobs:
            job.result, job.error = None, failure
        group.applied = []
        self._undo()

    def _undo(self) -> None:
        self._writes.forget()
        with contextlib.suppress(sqlite3.Error):
            self.connection.execute("ROLLBACK")

    def _run(self) -> None:
        """Runs in the writer's thread."""
        while True:
            item = self._groups.get()
            if item is None:
                return
            group, loop = item
            try:
                if not group.begun:
                    self._begin_patiently(group)
                self._end(group)
            except Exception as error:
                self._fail(group, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._finish, group)

    def _begin_patiently(self, group: _Group) -> None:
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._begin(group)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                self._undo()
                time.sleep(0.02)

    def _finish(self, group: _Group) -> None:
        """Tells what a transaction did, in the loop, and begins the next."""
        changes = [each.change for each in group.applied if each.change is not None]
        if changes:
            self._on_changes(changes)
        for job in group.jobs:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)
        self._next()

    async def close(self) -> None:
        """Finishes what waits and lets the thread end."""
        self._closed = True
        self._idle = asyncio.Event()
        if self._running:
            await self._idle.wait()
        self._groups.put(None)
        await asyncio.to_thread(self._thread.join)
