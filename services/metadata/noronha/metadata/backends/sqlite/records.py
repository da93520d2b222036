"""Records in one SQLite file, for one process.

Writes share transactions, and nobody is answered before the disk has them. Reads by name happen at once, on a
connection of their own; longer ones in a few reader threads. Thanks to the write-ahead log none of them waits for a
writer.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import fcntl
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from noronha.metadata.backend import (
    ANSWERS_KEPT,
    JOURNAL_KEPT,
    Change,
    Commit,
    Committed,
    Key,
    Lease,
    Mention,
    Page,
    Place,
    Put,
    Record,
    Reference,
    Request,
    Scan,
    Strength,
    judge_request,
    too_old,
)
from noronha.metadata.backends.sqlite.cache import Cache
from noronha.metadata.backends.sqlite.commits import LARGE, Commits
from noronha.metadata.backends.sqlite.pages import Reading, after_prefix
from noronha.metadata.backends.sqlite.schema import error_of, open_reader, open_writer
from noronha.metadata.backends.sqlite.writes import RECORD, record_of
from noronha.metadata.filters import Node
from noronha.metadata.waiters import Waiters
from noronha.rpc.errors import FailedPrecondition, Unavailable

T = TypeVar("T")

_READERS = 4
_RECENT = 8192
_COMPACT_EVERY = 10_000
_DIGESTS_AT_ONCE = 10_000


class SqliteRecords:
    """Keeps records in the SQLite file at ``path``, made when absent.

    Raises FailedPrecondition ``RECORDS_IN_USE`` when another process has it, ``NEWER_SCHEMA`` when a newer Noronha made
    it; and whatever the disk has to say.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._stack = contextlib.ExitStack()
        try:
            self._lock()
            writer = open_writer(self._path)
            self._stack.callback(writer.close)
            self._reader = open_reader(self._path)
            self._cache = Cache()
            self.commits = Commits(writer, self._path, self._cache, self._tell)
        except sqlite3.Error as error:
            self._stack.close()
            raise error_of(error, self._path) from error
        except BaseException:
            self._stack.close()
            raise
        self._newest = self.commits.newest
        self._compacted_at = self._newest
        self._recent: collections.deque[Change] = collections.deque(maxlen=_RECENT)
        self._waiters = Waiters()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, thread_name_prefix="records-reader")
        self._closed = False

    def _lock(self) -> None:
        try:
            file = open(f"{self._path}.lock", "a", encoding="ascii")  # noqa: SIM115
            self._stack.callback(file.close)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FailedPrecondition(
                f"{self._path} is used by another process; one at a time may", reason="RECORDS_IN_USE", path=self._path
            ) from None
        except OSError as error:
            raise FailedPrecondition(
                f"cannot write {self._path}: {error.strerror}; make its folder writable",
                reason="RECORDS_UNAVAILABLE", path=self._path,
            ) from error  # fmt: skip

    @classmethod
    def from_url(cls, url: str, state_dir: Path) -> SqliteRecords:
        """Opens what a URL names: ``sqlite:/absolute/path``, or ``sqlite:`` for a file in the state folder."""
        path = url.partition(":")[2]
        return cls(path or state_dir / "records.sqlite")

    # Writing

    def _tell(self, changes: list[Change]) -> None:
        """Hears of changes that are on the disk, in the loop."""
        if self._recent and self._recent[-1].position + 1 != changes[0].position:
            self._recent.clear()
        self._recent.extend(changes)
        self._newest = changes[-1].position
        self._waiters.tell(changes)
        if self._newest - self._compacted_at >= _COMPACT_EVERY and not self._closed:
            self._compacted_at = self._newest
            self.commits.submit(lambda writes: writes.compact(JOURNAL_KEPT, ANSWERS_KEPT), LARGE)

    async def commit(self, tenant: str, commit: Commit) -> Committed:
        return await self.commits.submit(lambda writes: writes.commit(tenant, commit), _weight_of(commit))

    async def acquire(self, tenant: str, key: Key, holder: str, seconds: float) -> Lease:
        return await self.commits.submit(lambda writes: writes.acquire(tenant, key, holder, seconds))

    async def release(self, tenant: str, key: Key, fence: int) -> None:
        await self.commits.submit(lambda writes: writes.release(tenant, key, fence))

    async def compact(self, keep: int) -> None:
        await self.commits.submit(lambda writes: writes.compact(keep, ANSWERS_KEPT), LARGE)
        self._recent.clear()

    async def value(self, name: str, initial: bytes) -> bytes:
        return await self.commits.submit(lambda writes: writes.value(name, initial), LARGE)

    # Reading at once

    def _row(self, sql: str, values: Sequence[Any]) -> tuple[Any, ...] | None:
        try:
            return self._reader.execute(sql, values).fetchone()  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            raise error_of(error, self._path) from error

    async def get(self, tenant: str, name: str, revision: int | None = None) -> Record | None:
        place = (tenant, name, revision)
        record = self._cache.get(place)
        if record is not None:
            return record
        begun = self._cache.begin()
        condition, values = ("current = 1", [tenant, name]) if revision is None else ("revision = ?", [*place])
        row = self._row(f"SELECT {RECORD} FROM records r WHERE tenant = ? AND name = ? AND {condition}", values)
        if row is None:
            return None
        record = record_of(row)
        self._cache.fill(place, record, begun)
        return record

    async def highest(self, tenant: str, name: str) -> int:
        row = self._row("SELECT highest FROM revisions WHERE tenant = ? AND name = ?", (tenant, name))
        return row[0] if row else 0

    async def answered(self, tenant: str, request: Request) -> bytes | None:
        row = self._row(
            "SELECT fingerprint, answer, time FROM answers WHERE tenant = ? AND identity = ?",
            (tenant, request.identity),
        )
        if row is None or row[2] < (time.time() - ANSWERS_KEPT) * 1e6:
            return None
        judge_request(row[0], request)
        return bytes(row[1])

    # Reading that takes longer

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def run() -> T:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = open_reader(self._path)
                self._connections.append(connection)
            return work(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, run)
        except sqlite3.Error as error:
            raise error_of(error, self._path) from error
        except RuntimeError as error:
            if self._closed:
                raise Unavailable(f"{self._path} is closed", reason="RECORDS_UNAVAILABLE") from error
            raise

    async def scan(self, tenant: str, scan: Scan) -> Page:
        where = ["m.tenant = ?", "m.kind = ?"]
        values: list[Any] = [tenant, scan.kind]
        if not scan.every_revision:
            where.append("m.current = 1")
        if scan.shape:
            # Ids hold none of the characters that mean something to GLOB.
            where.append("m.name GLOB ?")
            values.append("/".join("*" if part == "-" else part for part in scan.shape))
        return await self._read(lambda connection: Reading(connection, where, values, scan).page())

    async def search(
        self, tenant: str, text: str, kinds: Sequence[str], after: Place | None, limit: int, filter: Node
    ) -> Page:
        scan = Scan("", filter=filter, after=after, limit=limit)
        among = ", ".join("?" * len(kinds))
        where = ["m.tenant = ?", "m.current = 1", f"m.kind IN ({among})", "instr(m.text, ?) > 0"]
        values = [tenant, *kinds, text]
        return await self._read(lambda connection: Reading(connection, where, values, scan).page())

    async def below(self, tenant: str, prefix: str) -> list[tuple[Key, int]]:
        rows = await self._read(
            lambda connection: connection.execute(
                "SELECT kind, name, revision, version FROM records"
                " WHERE tenant = ? AND name >= ? AND name < ? ORDER BY name, revision DESC",
                (tenant, prefix, after_prefix(prefix)),
            ).fetchall()
        )
        return [(Key(*row[:3]), row[3]) for row in rows]

    async def revisions(self, tenant: str, name: str) -> list[tuple[int, int]]:
        return await self._read(
            lambda connection: connection.execute(
                "SELECT revision, version FROM records WHERE tenant = ? AND name = ? ORDER BY revision DESC",
                (tenant, name),
            ).fetchall()
        )

    async def mentions(self, tenant: str, name: str, revision: int | None = None) -> list[Mention]:
        if name.endswith("/"):
            condition, values = "target_name >= ? AND target_name < ?", [name, after_prefix(name)]
        else:
            condition, values = "target_name = ?", [name]
        if revision is not None:
            condition += " AND target_revision = ?"
            values.append(revision)  # type: ignore[arg-type]
        rows = await self._read(
            lambda connection: connection.execute(
                "SELECT r.kind, r.name, r.revision, r.version, m.relation, m.target_kind, m.target_name,"
                " m.target_revision, m.strength FROM mentions m JOIN records r ON r.id = m.source"
                f" WHERE m.tenant = ? AND {condition} ORDER BY r.name, r.revision DESC, m.place",
                (tenant, *values),
            ).fetchall()
        )
        return [Mention(Key(*row[:3]), row[3], Reference(row[4], Key(*row[5:8]), Strength(row[8]))) for row in rows]

    async def digests(self, tenant: str) -> AsyncIterator[list[str]]:
        # One statement is one moment; it gets a connection of its own, since a slow reader may keep it for long.
        connection = await asyncio.to_thread(open_reader, self._path)
        try:
            cursor = connection.execute(
                "SELECT DISTINCT digest FROM digests WHERE tenant = ? ORDER BY digest", (tenant,)
            )
            while found := await asyncio.to_thread(cursor.fetchmany, _DIGESTS_AT_ONCE):
                yield [row[0] for row in found]
        except sqlite3.Error as error:
            raise error_of(error, self._path) from error
        finally:
            connection.close()

    # The journal

    async def position(self) -> int:
        return self._newest

    async def changes(self, after: int, limit: int) -> list[Change]:
        if after > self._newest:
            raise too_old(after, self._newest)
        recent = self._recent
        if recent and recent[0].position <= after + 1:
            # Positions have no gaps, so the place of one follows from the place of another.
            begin = after + 1 - recent[0].position
            return [recent[place] for place in range(begin, min(begin + limit, len(recent)))]
        if after == self._newest:
            return []

        def read(connection: sqlite3.Connection) -> list[Change]:
            (oldest,) = connection.execute("SELECT COALESCE(MIN(position), 0) FROM journal").fetchone()
            if not oldest or after < oldest - 1:
                raise too_old(after, oldest)
            rows = connection.execute(
                "SELECT position, tenant, kind, name, revision, deleted, time FROM journal"
                " WHERE position > ? ORDER BY position LIMIT ?",
                (after, limit),
            )
            return [Change(row[0], row[1], Key(*row[2:5]), bool(row[5]), row[6]) for row in rows]

        return await self._read(read)

    async def wait(self, after: int, seconds: float, takes: Callable[[Change], bool]) -> None:
        if self._newest == after and not self._closed:
            await self._waiters.wait(takes, seconds)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waiters.wake()
        await self.commits.close()
        await asyncio.to_thread(self._readers.shutdown)
        for connection in (*self._connections, self._reader):
            connection.close()
        self._stack.close()


def _weight_of(commit: Commit) -> int:
    """Returns about how many rows a commit writes and looks at; a kibibyte of body counts as one."""
    weight = len(commit.conditions)
    for write in commit.writes:
        weight += 2
        if isinstance(write, Put):
            weight += len(write.body) // 1024 + len(write.digests or ())
    return weight
