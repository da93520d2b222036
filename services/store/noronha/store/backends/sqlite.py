"""The index in one SQLite file: write-ahead log, flushed to disk before a step is answered."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NoronhaError,
    ResourceExhausted,
    Unavailable,
)
from noronha.store.backend import Deletion, Entry, Location, Session, StoredBlob

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE blobs (
    tenant TEXT NOT NULL, digest TEXT NOT NULL, store TEXT NOT NULL,
    object TEXT NOT NULL, offset INTEGER NOT NULL, length INTEGER NOT NULL,
    pieces BLOB NOT NULL, damaged INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, digest, store)
) WITHOUT ROWID;
CREATE INDEX blobs_by_object ON blobs (store, object);
CREATE TABLE facts (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE writers (
    tenant TEXT NOT NULL, digest TEXT NOT NULL, identity TEXT NOT NULL,
    PRIMARY KEY (tenant, digest, identity)
) WITHOUT ROWID;
CREATE TABLE uploads (
    upload TEXT PRIMARY KEY, tenant TEXT NOT NULL, identity TEXT NOT NULL, storage_class INTEGER NOT NULL,
    store TEXT NOT NULL, expire_time REAL NOT NULL, sealed INTEGER NOT NULL DEFAULT 0,
    request_id TEXT NOT NULL, fingerprint TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX uploads_by_request ON uploads (tenant, identity, request_id) WHERE request_id <> '';
CREATE TABLE entries (
    upload TEXT NOT NULL REFERENCES uploads ON DELETE CASCADE, position INTEGER NOT NULL,
    digest TEXT NOT NULL, size INTEGER NOT NULL, complete INTEGER NOT NULL,
    PRIMARY KEY (upload, position)
) WITHOUT ROWID;
CREATE UNIQUE INDEX entries_by_digest ON entries (digest, upload);
"""
_BLOB = "digest, store, object, offset, length, pieces, damaged"
_SESSION = "upload, tenant, identity, storage_class, store, expire_time, sealed, request_id, fingerprint"
_HELD = """EXISTS (SELECT 1 FROM entries JOIN uploads USING (upload)
    WHERE entries.digest = blobs.digest AND uploads.tenant = blobs.tenant AND uploads.expire_time > ?)"""
_PAGE = 1000


class SqliteIndex:
    """The index in the SQLite file ``path``, made when absent.

    Raises FailedPrecondition ``STORE_READ_ONLY`` or ``INDEX_TOO_NEW``, ResourceExhausted ``NO_SPACE``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._local = threading.local()
        self._all: list[sqlite3.Connection] = []
        self._writer = self._connect()
        with self._step() as step:
            (version,) = step.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    step.execute(statement)
                step.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version > _SCHEMA_VERSION:
                raise FailedPrecondition(
                    f"the index {path} was made by a newer Noronha; start that one, or set mesh.state_dir",
                    reason="INDEX_TOO_NEW", path=path,
                )  # fmt: skip

    def _connect(self) -> sqlite3.Connection:
        with _typed(self._path):
            connection = sqlite3.connect(self._path, timeout=30, isolation_level=None, check_same_thread=False)
            self._all.append(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA cache_size = -2000")
        return connection

    @contextlib.contextmanager
    def _step(self) -> Iterator[sqlite3.Connection]:
        """One writing step: all of it is on disk afterwards, or nothing."""
        with self._writing, _typed(self._path):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            try:
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with _typed(self._path):
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = self._connect()
            return connection.execute(statement, values).fetchall()

    def open_upload(self, session: Session, entries: Sequence[tuple[str, int]], *, proven: bool, now: float) -> Session:
        with self._step() as step:
            if session.request_id:
                step.execute(
                    """UPDATE uploads SET request_id = ''
                    WHERE tenant = ? AND identity = ? AND request_id = ? AND expire_time <= ?""",
                    (session.tenant, session.identity, session.request_id, now),
                )
                row = step.execute(
                    f"SELECT {_SESSION} FROM uploads WHERE tenant = ? AND identity = ? AND request_id = ?",
                    (session.tenant, session.identity, session.request_id),
                ).fetchone()
                if row is not None:
                    return _repeat(_session(row), session)
            step.execute(
                f"INSERT INTO uploads ({_SESSION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    session.upload, session.tenant, session.identity, session.storage_class, session.store,
                    session.expire_time, session.sealed, session.request_id, session.fingerprint,
                ),
            )  # fmt: skip
            rows = []
            for position, (digest, size) in enumerate(entries):
                there = step.execute(
                    "SELECT length FROM blobs WHERE digest = ? AND tenant = ? AND store = ? AND damaged = 0",
                    (digest, session.tenant, session.store),
                ).fetchone()
                if there is not None and proven and not self._wrote(step, session, digest):
                    there = None
                if there is not None and there[0] != size:
                    raise InvalidArgument(
                        f"{digest} has {there[0]} bytes, not {size}", reason="WRONG_SIZE",
                        digest=digest, size_bytes=there[0],
                    )  # fmt: skip
                rows.append((session.upload, position, digest, size, there is not None))
            step.executemany("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", rows)
        return session

    @staticmethod
    def _wrote(step: sqlite3.Connection, session: Session, digest: str) -> bool:
        row = step.execute(
            "SELECT 1 FROM writers WHERE digest = ? AND tenant = ? AND identity = ?",
            (digest, session.tenant, session.identity),
        ).fetchone()
        return row is not None

    def find_upload(self, upload: str) -> Session | None:
        rows = self._read(f"SELECT {_SESSION} FROM uploads WHERE upload = ?", (upload,))
        return _session(rows[0]) if rows else None

    def entries(self, upload: str) -> list[Entry]:
        rows = self._read(
            """SELECT entries.digest, entries.size, entries.complete AND blobs.damaged IS 0
            FROM entries JOIN uploads USING (upload) LEFT JOIN blobs
                ON blobs.digest = entries.digest AND blobs.tenant = uploads.tenant AND blobs.store = uploads.store
            WHERE upload = ? ORDER BY position""",
            (upload,),
        )
        return [Entry(digest, size, bool(complete)) for digest, size, complete in rows]

    def objects_of(self, upload: str) -> dict[str, list[str]]:
        rows = self._read(
            """SELECT DISTINCT blobs.store, blobs.object FROM entries JOIN uploads USING (upload) JOIN blobs
                ON blobs.digest = entries.digest AND blobs.tenant = uploads.tenant AND blobs.store = uploads.store
            WHERE upload = ? AND entries.complete AND NOT blobs.damaged AND blobs.object <> ''""",
            (upload,),
        )
        found: dict[str, list[str]] = {}
        for store, name in rows:
            found.setdefault(store, []).append(name)
        return found

    def complete(self, upload: str, blobs: Sequence[StoredBlob], *, proof: bool) -> list[Location]:
        surplus = []
        with self._step() as step:
            row = step.execute("SELECT tenant, identity FROM uploads WHERE upload = ?", (upload,)).fetchone()
            if row is None:
                return [blob.location for blob in blobs]
            tenant, identity = row
            for blob in blobs:
                key = (tenant, blob.digest, blob.location.store)
                there = step.execute(
                    "SELECT object, offset, length, damaged FROM blobs WHERE tenant = ? AND digest = ? AND store = ?",
                    key,
                ).fetchone()
                if there is not None and not there[3]:
                    surplus.append(blob.location)
                else:
                    if there is not None:
                        surplus.append(Location(blob.location.store, there[0], there[1], there[2]))
                    step.execute(
                        "INSERT OR REPLACE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                        (*key, blob.location.object, blob.location.offset, blob.location.length, blob.pieces),
                    )
                step.execute("UPDATE entries SET complete = 1 WHERE digest = ? AND upload = ?", (blob.digest, upload))
                if proof:
                    step.execute("INSERT OR IGNORE INTO writers VALUES (?, ?, ?)", (tenant, blob.digest, identity))
        return surplus

    def extend(self, upload: str, expire_time: float, *, seal: bool = False) -> None:
        with self._step() as step:
            step.execute(
                "UPDATE uploads SET expire_time = max(expire_time, ?), sealed = max(sealed, ?) WHERE upload = ?",
                (expire_time, seal, upload),
            )

    def abort(self, upload: str) -> bool:
        with self._step() as step:
            return step.execute("DELETE FROM uploads WHERE upload = ? AND sealed = 0", (upload,)).rowcount > 0

    def expire(self, as_of: float) -> list[str]:
        with self._step() as step:
            gone = step.execute("SELECT upload FROM uploads WHERE expire_time <= ?", (as_of,)).fetchall()
            step.executemany("DELETE FROM uploads WHERE upload = ?", gone)
        return [upload for (upload,) in gone]

    def count_expired(self, as_of: float) -> int:
        return int(self._read("SELECT count(*) FROM uploads WHERE expire_time <= ?", (as_of,))[0][0])

    def find(self, tenant: str, digest: str) -> StoredBlob | None:
        rows = self._read(
            f"SELECT {_BLOB} FROM blobs WHERE digest = ? AND tenant = ? ORDER BY damaged LIMIT 1", (digest, tenant)
        )
        return _blob(rows[0]) if rows else None

    def sizes(self, tenant: str, digests: Iterable[str]) -> list[tuple[str, int]]:
        found = []
        for digest in digests:
            rows = self._read(
                "SELECT length FROM blobs WHERE digest = ? AND tenant = ? AND damaged = 0 LIMIT 1", (digest, tenant)
            )
            if rows:
                found.append((digest, rows[0][0]))
        return found

    def mark_damaged(self, tenant: str, blob: StoredBlob) -> None:
        with self._step() as step:
            step.execute(
                """UPDATE blobs SET damaged = 1
                WHERE digest = ? AND tenant = ? AND store = ? AND object = ? AND offset = ?""",
                (blob.digest, tenant, *blob.location[:3]),
            )

    def delete_unheld(self, tenant: str, digests: Iterable[str], *, as_of: float) -> Deletion:
        deleted, held = [], []
        with self._step() as step:
            for digest in digests:
                rows = step.execute(
                    f"SELECT {_BLOB}, {_HELD} FROM blobs WHERE digest = ? AND tenant = ?", (as_of, digest, tenant)
                ).fetchall()
                if not rows:
                    continue
                if rows[0][-1]:
                    held.append(digest)
                    continue
                step.execute("DELETE FROM blobs WHERE digest = ? AND tenant = ?", (digest, tenant))
                step.execute("DELETE FROM writers WHERE digest = ? AND tenant = ?", (digest, tenant))
                deleted += [_blob(row[:-1]).location for row in rows]
        return Deletion(deleted, held)

    def tenants(self) -> list[str]:
        return [tenant for (tenant,) in self._read("SELECT DISTINCT tenant FROM blobs ORDER BY tenant")]

    def scan(self, tenant: str) -> Iterator[tuple[str, int, bool]]:
        after = ("", "")
        while True:
            rows = self._read(
                f"""SELECT digest, store, length, {_HELD} FROM blobs
                WHERE tenant = ? AND (digest, store) > (?, ?) ORDER BY digest, store LIMIT {_PAGE}""",
                (time.time(), tenant, *after),
            )
            for digest, store, length, held in rows:
                after = (digest, store)
                yield digest, length, bool(held)
            if len(rows) < _PAGE:
                return

    def contents(self, store: str, object: str) -> list[tuple[str, StoredBlob]]:
        rows = self._read(f"SELECT tenant, {_BLOB} FROM blobs WHERE store = ? AND object = ?", (store, object))
        return [(row[0], _blob(row[1:])) for row in rows]

    def move(self, tenant: str, blob: StoredBlob, to: Location) -> bool:
        with self._step() as step:
            moved = step.execute(
                """UPDATE blobs SET store = ?, object = ?, offset = ?
                WHERE digest = ? AND tenant = ? AND store = ? AND object = ? AND offset = ? AND damaged = 0""",
                (*to[:3], blob.digest, tenant, *blob.location[:3]),
            )
            return moved.rowcount > 0

    def adopt(self, tenant: str, blobs: Sequence[StoredBlob]) -> None:
        with self._step() as step:
            for blob in blobs:
                store, name, offset, length = blob.location
                step.execute(
                    "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                    (tenant, blob.digest, store, name, offset, length, blob.pieces),
                )

    def is_settled(self) -> bool:
        return bool(self._read("SELECT 1 FROM facts WHERE name = 'settled'"))

    def settle(self) -> None:
        with self._step() as step:
            step.execute("INSERT OR IGNORE INTO facts VALUES ('settled')")

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        descriptor = os.open(f"{self._path}.collecting", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Aborted("garbage is being collected already; ask again later", reason="COLLECTING") from None
            yield
        finally:
            os.close(descriptor)

    def close(self) -> None:
        for connection in self._all:
            connection.close()


def _repeat(first: Session, session: Session) -> Session:
    if first.fingerprint == session.fingerprint:
        return first
    raise AlreadyExists(
        f"request id {session.request_id} was used for another upload; take a fresh one",
        reason="REQUEST_ID_REUSED", request_id=session.request_id,
    )  # fmt: skip


def _session(row: Sequence[Any]) -> Session:
    upload, tenant, identity, storage_class, store, expire_time, sealed, request_id, fingerprint = row
    return Session(upload, tenant, identity, storage_class, store, expire_time, bool(sealed), request_id, fingerprint)


def _blob(row: Sequence[Any]) -> StoredBlob:
    digest, store, name, offset, length, pieces, damaged = row
    return StoredBlob(digest, Location(store, name, offset, length), pieces, bool(damaged))


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    """Raises SQLite's errors as the port's. Its error codes are reachable from Python 3.11 on only, hence the texts."""
    try:
        yield
    except sqlite3.Error as error:
        raise _error(path, error) from error


def _error(path: Path, error: sqlite3.Error) -> NoronhaError:
    text = str(error)
    if "full" in text:
        return ResourceExhausted(
            f"no space left for {path}; free some, or set mesh.state_dir to another disk", reason="NO_SPACE", path=path
        )
    if "readonly" in text or "unable to open" in text:
        return FailedPrecondition(
            f"cannot write {path}: {text}; make it writable or set mesh.state_dir to another folder",
            reason="STORE_READ_ONLY", path=path,
        )  # fmt: skip
    if "locked" in text or "disk I/O" in text:
        return Unavailable(f"cannot use {path}: {text}; check its disk", reason="STORE_UNAVAILABLE", path=path)
    return Internal(f"the index {path} failed: {text}", path=path)
