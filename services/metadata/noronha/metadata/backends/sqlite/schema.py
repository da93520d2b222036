"""The tables of the SQLite file, and connections to it."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from noronha.rpc.errors import DataLoss, FailedPrecondition, NoronhaError, ResourceExhausted, Unavailable

SCHEMA_VERSION = 1

# Documents lie apart from the records, in the order of names: a filter walks through them from end to end.
SCHEMA = """
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


def open_writer(path: Path) -> sqlite3.Connection:
    """Opens the one connection that writes; the file is made when absent, for its owner only.

    It waits for nobody who has locked the file: whoever uses it does. Raises sqlite3.Error; FailedPrecondition
    ``NEWER_SCHEMA``.
    """
    path.touch(mode=0o600)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0)
    try:
        connection.execute("PRAGMA busy_timeout = 10000")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -16000")
        connection.execute("PRAGMA wal_autocheckpoint = 4000")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise FailedPrecondition(
                f"{path} was written by a newer Noronha; upgrade this one",
                reason="NEWER_SCHEMA", path=path, version=version,
            )  # fmt: skip
        if version == 0:
            connection.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
        connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Opens a connection that can only read, and that no writer holds up. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        f"file:{_quoted(path)}?mode=ro", uri=True, isolation_level=None, check_same_thread=False, timeout=10
    )
    connection.execute("PRAGMA query_only = 1")
    connection.execute("PRAGMA cache_size = -4000")
    connection.execute("PRAGMA mmap_size = 268435456")
    return connection


def _quoted(path: Path) -> str:
    return "".join(f"%{ord(each):02x}" if each in "%?#" else each for each in os.fspath(path.absolute()))


def error_of(error: sqlite3.Error, path: Path) -> NoronhaError:
    """Returns the error that an error of SQLite's means to others."""
    text = str(error)
    if "full" in text:
        return ResourceExhausted(f"no space left for {path}; free some", reason="NO_SPACE", path=path)
    if "malformed" in text or "not a database" in text:
        return DataLoss(f"{path} is damaged ({text}); restore it from a backup", reason="RECORDS_DAMAGED", path=path)
    return Unavailable(
        f"cannot use {path}: {text}; see that its disk is healthy and writable",
        reason="RECORDS_UNAVAILABLE", path=path,
    )  # fmt: skip
