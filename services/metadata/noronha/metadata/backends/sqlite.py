"""Records in one SQLite file, for one process.

Writes go through one thread. It takes all commits that wait, makes each under its own conditions inside one
transaction, and syncs once for all of them; so concurrent writers share the cost of the disk, and nobody is answered
before the disk has it. Reads by name happen at once, on a connection of their own; longer ones in a few reader threads.
Thanks to the write-ahead log none of them waits for a writer.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import logging
import os
import queue
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
    Record,
    Reference,
    Request,
    Scan,
    Strength,
    judge_request,
    too_old,
)
from noronha.metadata.backends import sqlite_filters
from noronha.metadata.backends.sqlite_writes import RECORD, Applied, Writes, record_of
from noronha.metadata.filters import EVERYTHING, Node, matcher
from noronha.rpc.errors import DataLoss, FailedPrecondition, NoronhaError, ResourceExhausted, Unavailable

log = logging.getLogger("noronha")

T = TypeVar("T")

SCHEMA_VERSION = 1

# Documents lie apart from the records, in the order of names: a filter walks through them from end to end.
_SCHEMA = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    current INTEGER NOT NULL,
    version INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    update_time INTEGER NOT NULL,
    holder TEXT,
    fence INTEGER NOT NULL DEFAULT 0,
    expire_time INTEGER,
    text TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE UNIQUE INDEX records_by_name ON records (tenant, name, revision DESC);
CREATE INDEX records_by_create_time ON records (tenant, kind, create_time, name);
CREATE INDEX records_by_update_time ON records (tenant, kind, update_time, name);
CREATE TABLE documents (
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    current INTEGER NOT NULL,
    source INTEGER NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (tenant, kind, name, revision DESC)
) WITHOUT ROWID;
CREATE TABLE revisions (
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    highest INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE mentions (
    source INTEGER NOT NULL,
    place INTEGER NOT NULL,
    tenant TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target_name TEXT NOT NULL,
    target_revision INTEGER NOT NULL,
    relation TEXT NOT NULL,
    strength INTEGER NOT NULL,
    PRIMARY KEY (source, place)
) WITHOUT ROWID;
CREATE INDEX mentions_by_target ON mentions (tenant, target_name, target_revision);
CREATE TABLE digests (
    source INTEGER NOT NULL,
    digest TEXT NOT NULL,
    tenant TEXT NOT NULL,
    PRIMARY KEY (source, digest)
) WITHOUT ROWID;
CREATE INDEX digests_by_digest ON digests (tenant, digest);
CREATE TABLE journal (
    position INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    revision INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    time INTEGER NOT NULL
);
CREATE TABLE answers (
    tenant TEXT NOT NULL,
    identity TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    answer BLOB NOT NULL,
    time INTEGER NOT NULL,
    PRIMARY KEY (tenant, identity)
) WITHOUT ROWID;
CREATE TABLE kept_values (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""

_READERS = 4
_GROUP = 256
_RECENT = 8192
_CACHE_BYTES = 16 << 20
_CACHED_BODY = 64 << 10
_COMPACT_EVERY = 10_000
_STEPS_AT_ONCE = 20_000
_ROWS_AT_LEAST = 1_000
_DIGESTS_AT_ONCE = 10_000


def _error_of(error: sqlite3.Error, path: Path) -> NoronhaError:
    text = str(error)
    if "full" in text:
        return ResourceExhausted(f"no space left for {path}; free some", reason="NO_SPACE", path=path)
    if "malformed" in text or "not a database" in text:
        return DataLoss(f"{path} is damaged ({text}); restore it from a backup", reason="RECORDS_DAMAGED", path=path)
    return Unavailable(
        f"cannot use {path}: {text}; see that its disk is healthy and writable",
        reason="RECORDS_UNAVAILABLE", path=path,
    )  # fmt: skip


class _Cache:
    """Records read or written lately, by tenant, name and revision (None for what the bare name means).

    A read fills it only when no commit was under way from its begin to its end, so it never keeps what a commit has
    just replaced. Only this process writes the file, so nothing else can make it wrong.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, int | None], Record] = {}
        self._size = 0
        self._epoch = 0
        self._committing = False
        self._lock = threading.Lock()

    def get(self, place: tuple[str, str, int | None]) -> Record | None:
        return self._kept.get(place)

    def begin(self) -> int:
        return -1 if self._committing else self._epoch

    def fill(self, place: tuple[str, str, int | None], record: Record, begun: int) -> None:
        if len(record.body) > _CACHED_BODY:
            return
        with self._lock:
            if begun != self._epoch or self._committing or place in self._kept:
                return
            self._size += len(record.body) + 500
            if self._size > _CACHE_BYTES:
                for each in list(itertools.islice(self._kept, len(self._kept) // 2)):
                    self._drop(each)
            self._kept[place] = record

    def _drop(self, place: tuple[str, str, int | None]) -> None:
        record = self._kept.pop(place, None)
        if record is not None:
            self._size -= len(record.body) + 500

    def freeze(self, touched: Sequence[Applied]) -> None:
        """Forgets what a commit touches, and takes nothing in until it is over."""
        with self._lock:
            self._committing = True
            self._epoch += 1
            for tenant, key, _ in touched:
                self._drop((tenant, key.name, key.revision))
                self._drop((tenant, key.name, None))

    def thaw(self) -> None:
        """Takes in again what is read from now on."""
        with self._lock:
            self._committing = False


class SqliteRecords:
    """Keeps records in the SQLite file at ``path``, made when absent.

    Raises FailedPrecondition ``RECORDS_IN_USE`` when another process has it, ``NEWER_SCHEMA`` when a newer Noronha made
    it; and whatever the disk has to say.
    """

    def __init__(self, path: str | Path, *, journal_kept: int = JOURNAL_KEPT) -> None:
        self._path = Path(path)
        self._journal_kept = journal_kept
        self._stack = contextlib.ExitStack()
        try:
            self._lock()
            self._writer_connection = self._open()
            self._reader = self._connect_reader()
        except sqlite3.Error as error:
            self._stack.close()
            raise _error_of(error, self._path) from error
        except BaseException:
            self._stack.close()
            raise
        self._cache = _Cache()
        self._writes = Writes(self._writer_connection)
        self._newest = self._writes.newest
        self._compacted_at = self._newest
        self._recent: collections.deque[Change] = collections.deque(maxlen=_RECENT)
        self._waiting: set[asyncio.Future[None]] = set()
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, thread_name_prefix="records-reader")
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write, name="records-writer", daemon=True)
        self._thread.start()

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

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10)
        self._stack.callback(connection.close)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise FailedPrecondition(
                f"{self._path} was written by a newer Noronha; upgrade this one",
                reason="NEWER_SCHEMA", path=self._path, version=version,
            )  # fmt: skip
        if version == 0:
            connection.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"file:{_quoted(self._path)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=10
        )
        connection.execute("PRAGMA query_only = 1")
        connection.execute("PRAGMA cache_size = -4000")
        connection.execute("PRAGMA mmap_size = 268435456")
        return connection

    @classmethod
    def from_url(cls, url: str, state_dir: Path) -> SqliteRecords:
        """Opens what a URL names: ``sqlite:/absolute/path``, or ``sqlite:`` for a file in the state folder."""
        path = url.partition(":")[2]
        return cls(path or state_dir / "records.sqlite")

    # Writing

    def _write(self) -> None:
        """Runs in the writer's thread: takes what waits and makes one transaction of it."""
        while True:
            job = self._jobs.get()
            group: list[_Job] = []
            while job is not None:
                group.append(job)
                if len(group) >= _GROUP:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            if group:
                self._settle(group, self._transact(group))
            if job is None:
                return

    def _transact(self, group: list[_Job]) -> list[Applied]:
        connection = self._writer_connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            self._writes.start()
            for job in group:
                try:
                    job.result = job.work(self._writes)
                except NoronhaError as error:
                    job.error = error
            applied = self._writes.take_applied()
            if not applied:
                connection.execute("COMMIT")
                return []
            self._cache.freeze(applied)
            try:
                connection.execute("COMMIT")
            finally:
                self._cache.thaw()
            return applied
        except Exception as error:
            # Nothing of the group happened: everybody in it hears so.
            failure = _error_of(error, self._path) if isinstance(error, sqlite3.Error) else error
            log.error("a commit to %s failed: %s", self._path, error, exc_info=error)
            for job in group:
                job.result, job.error = None, failure
            self._writes.forget()
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            return []

    def _settle(self, group: list[_Job], applied: list[Applied]) -> None:
        changes = [each.change for each in applied if each.change is not None]
        loops = {id(job.future.get_loop()): job.future.get_loop() for job in group}
        for loop in loops.values():
            mine = [job for job in group if job.future.get_loop() is loop]
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._answer, mine, changes)
                changes = []

    def _answer(self, group: list[_Job], changes: list[Change]) -> None:
        """Runs in the loop once a group is on the disk, or has failed."""
        if changes:
            if self._recent and self._recent[-1].position + 1 != changes[0].position:
                self._recent.clear()
            self._recent.extend(changes)
            self._newest = changes[-1].position
            self._wake()
            if self._newest - self._compacted_at >= _COMPACT_EVERY and not self._closed:
                self._compacted_at = self._newest
                self._submit(lambda writes: writes.compact(self._journal_kept, ANSWERS_KEPT))
        for job in group:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    def _submit(self, work: Callable[[Writes], T]) -> asyncio.Future[T]:
        """Hands work to the writer's thread. Whoever gives up waiting for it does not undo it."""
        if self._closed:
            raise Unavailable(f"{self._path} is closed", reason="RECORDS_UNAVAILABLE")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, future))
        return future

    async def commit(self, tenant: str, commit: Commit) -> Committed:
        return await self._submit(lambda writes: writes.commit(tenant, commit))

    async def acquire(self, tenant: str, key: Key, holder: str, seconds: float) -> Lease:
        return await self._submit(lambda writes: writes.acquire(tenant, key, holder, seconds))

    async def release(self, tenant: str, key: Key, fence: int) -> None:
        await self._submit(lambda writes: writes.release(tenant, key, fence))

    async def compact(self, keep: int) -> None:
        await self._submit(lambda writes: writes.compact(keep, ANSWERS_KEPT))
        self._recent.clear()

    async def value(self, name: str, initial: bytes) -> bytes:
        return await self._submit(lambda writes: writes.value(name, initial))

    # Reading at once

    def _row(self, sql: str, values: Sequence[Any]) -> tuple[Any, ...] | None:
        try:
            return self._reader.execute(sql, values).fetchone()  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            raise _error_of(error, self._path) from error

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
                connection = self._local.connection = self._connect_reader()
                self._connections.append(connection)
            return work(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, run)
        except sqlite3.Error as error:
            raise _error_of(error, self._path) from error
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
        return await self._read(lambda connection: _Reading(connection, where, values, scan).page())

    async def search(
        self, tenant: str, text: str, kinds: Sequence[str], after: Place | None, limit: int, filter: Node
    ) -> Page:
        scan = Scan("", filter=filter, after=after, limit=limit)
        among = ", ".join("?" * len(kinds))
        where = ["m.tenant = ?", "m.current = 1", f"m.kind IN ({among})", "instr(m.text, ?) > 0"]
        values = [tenant, *kinds, text]
        return await self._read(lambda connection: _Reading(connection, where, values, scan).page())

    async def below(self, tenant: str, prefix: str) -> list[tuple[Key, int]]:
        rows = await self._read(
            lambda connection: connection.execute(
                "SELECT kind, name, revision, version FROM records"
                " WHERE tenant = ? AND name >= ? AND name < ? ORDER BY name, revision DESC",
                (tenant, prefix, _after_prefix(prefix)),
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
            condition, values = "target_name >= ? AND target_name < ?", [name, _after_prefix(name)]
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
        connection = await asyncio.to_thread(self._connect_reader)
        try:
            cursor = connection.execute(
                "SELECT DISTINCT digest FROM digests WHERE tenant = ? ORDER BY digest", (tenant,)
            )
            while found := await asyncio.to_thread(cursor.fetchmany, _DIGESTS_AT_ONCE):
                yield [row[0] for row in found]
        except sqlite3.Error as error:
            raise _error_of(error, self._path) from error
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
            return list(itertools.islice(recent, begin, begin + limit))
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

    async def wait(self, after: int, seconds: float) -> None:
        if self._newest > after or self._closed:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait_for(future, seconds)
        except asyncio.TimeoutError:
            return
        finally:
            self._waiting.discard(future)

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._wake()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in (*self._connections, self._reader):
            connection.close()
        self._stack.close()


class _Job:
    """Something for the writer's thread, and who waits for it."""

    __slots__ = ("error", "future", "result", "work")

    def __init__(self, work: Callable[[Writes], Any], future: asyncio.Future[Any]) -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: BaseException | None = None


def _quoted(path: Path) -> str:
    return "".join(f"%{ord(each):02x}" if each in "%?#" else each for each in os.fspath(path.absolute()))


def _after_prefix(prefix: str) -> str:
    """Returns the first text that is past all that begin with a prefix; our prefixes end in ``/``."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


_OF_ITS_DOCUMENT = "d.tenant = m.tenant AND d.kind = m.kind AND d.name = m.name AND d.revision = m.revision"


def _ordered(scan: Scan) -> tuple[str, str, str, str]:
    """Returns what holds a scan's order (``m``), how records (``r``) join it, the column before the name, the order.

    The optimiser knows nothing of how many rows there are, so it is told where to begin.
    """
    down = " DESC" if scan.descending else ""
    by_name = f"m.name{down}, m.revision DESC"
    if scan.order == "name" and scan.kind:
        return "documents m", "CROSS JOIN records r ON r.id = m.source", "0", by_name
    beside = f"CROSS JOIN records r ON r.id = m.id CROSS JOIN documents d ON {_OF_ITS_DOCUMENT}"
    if scan.order == "name":
        return "records m INDEXED BY records_by_name", beside, "0", by_name
    column = f"m.{scan.order}"
    return f"records m INDEXED BY records_by_{scan.order}", beside, column, f"{column}{down}, m.name, m.revision DESC"


def _past(scan: Scan, place: Place, *, inclusive: bool = False) -> tuple[str, list[Any]]:
    """Returns the condition for records that come after a place, or up to and with it when ``inclusive``."""
    later, sooner = ("<", ">") if scan.descending else (">", "<")
    if scan.order == "name":
        first, revision = (sooner, ">=") if inclusive else (later, "<")
        return (
            f"m.name {first}= ? AND (m.name <> ? OR m.revision {revision} ?)",
            [place.name, place.name, place.revision],
        )
    first, name, revision = (sooner, "<", ">=") if inclusive else (later, ">", "<")
    column = f"m.{scan.order}"
    return (
        f"{column} {first}= ? AND ({column} <> ? OR m.name {name} ? OR (m.name = ? AND m.revision {revision} ?))",
        [place.order, place.order, place.name, place.name, place.revision],
    )


def _range(scan: Scan, end: Place | None) -> list[tuple[str, list[Any]]]:
    """Returns the conditions for what lies between the place a scan stands at and an end.

    Where a place bounds the names, the prefix does not do so once more: the optimiser would begin at either.
    """
    conditions = []
    by_name = scan.order == "name"
    if scan.after is not None:
        conditions.append(_past(scan, scan.after))
    if end is not None:
        conditions.append(_past(scan, end, inclusive=True))
    if scan.prefix:
        bounded_below = by_name and (end if scan.descending else scan.after) is not None
        bounded_above = by_name and (scan.after if scan.descending else end) is not None
        if not bounded_below:
            conditions.append(("m.name >= ?", [scan.prefix]))
        if not bounded_above:
            conditions.append(("m.name < ?", [_after_prefix(scan.prefix)]))
    return conditions


class _Reading:
    """Reads one page. A filter that finds little is given up when its time is over, and told how far it came."""

    def __init__(self, connection: sqlite3.Connection, where: list[str], values: list[Any], scan: Scan) -> None:
        self._connection = connection
        self._where = where
        self._values = values
        self._scan = scan
        self._takes = matcher(scan.filter) if scan.filter != EVERYTHING else None
        self._filter = sqlite_filters.compile(scan.filter)
        self._deadline = time.monotonic() + scan.max_seconds
        self._found: list[Record] = []
        self._size = 0
        self._after = scan.after

    def page(self) -> Page:
        connection = self._connection
        connection.execute("BEGIN")
        try:
            connection.set_progress_handler(self._is_late, _STEPS_AT_ONCE)
            try:
                return self._read(None)
            except sqlite3.OperationalError as error:
                if "interrupt" not in str(error):
                    raise
            finally:
                connection.set_progress_handler(None, 0)
            if self._after != self._scan.after:
                return Page(self._found, self._after)
            # Nothing was even worth a look: go on a little way, so that every page gets somewhere.
            end = self._place_ahead(_ROWS_AT_LEAST)
            page = self._read(end)
            return page if page.following is not None else Page(page.records, end)
        finally:
            connection.execute("COMMIT")

    def _is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def _query(self, end: Place | None) -> tuple[str, list[Any]]:
        conditions, parameters = list(self._where), list(self._values)
        for sql, values in _range(self._scan, end):
            conditions.append(sql)
            parameters += values
        return " AND ".join(conditions), parameters

    def _place_ahead(self, rows: int) -> Place | None:
        main, _, order_column, order = _ordered(self._scan)
        where, parameters = self._query(None)
        row = self._connection.execute(
            f"SELECT {order_column}, m.name, m.revision FROM {main} WHERE {where} ORDER BY {order}"
            f" LIMIT 1 OFFSET {rows - 1}",
            parameters,
        ).fetchone()
        return Place(*row) if row else None

    def _read(self, end: Place | None) -> Page:
        scan, takes = self._scan, self._takes
        main, records, order_column, order = _ordered(scan)
        where, parameters = self._query(end)
        document, limit = "", f" LIMIT {scan.limit + 1}"
        if takes is not None:
            where += f" AND {self._filter[0]}"
            parameters += self._filter[1]
            document, limit = ", document", ""
        cursor = self._connection.execute(
            f"SELECT {RECORD}, {order_column}{document} FROM {main} {records} WHERE {where} ORDER BY {order}{limit}",
            parameters,
        )
        with contextlib.closing(cursor):
            for row in cursor:
                # One more row than the page holds tells whether there is more.
                if len(self._found) >= scan.limit:
                    return Page(self._found, self._after)
                if takes is None or takes(json.loads(row[-1])):
                    record = record_of(row)
                    self._size += len(record.body)
                    if self._found and self._size > scan.max_bytes:
                        return Page(self._found, self._after)
                    self._found.append(record)
                self._after = Place(row[8], row[1], row[2])
                if takes is not None and time.monotonic() > self._deadline:
                    return Page(self._found, self._after)
        return Page(self._found, None)
