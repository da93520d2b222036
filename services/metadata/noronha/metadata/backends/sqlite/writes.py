"""What the writer's thread does to the SQLite file, inside the transaction that it holds open."""

from __future__ import annotations

import sqlite3
import time
from typing import Any, NamedTuple

from noronha.metadata.backend import (
    Change,
    Childless,
    Commit,
    Committed,
    Condition,
    Conflict,
    Delete,
    Exists,
    Key,
    Lease,
    Means,
    Put,
    Record,
    Unchanged,
    Unreferenced,
    judge_fence,
    judge_request,
    leased,
    missing,
    stale_fence,
)

RECORD = "r.kind, r.name, r.revision, r.version, r.body, r.holder, r.fence, r.expire_time"
"""Columns of a record ``r`` that ``record_of`` reads."""


def record_of(row: tuple[Any, ...]) -> Record:
    """Returns the record in a row that begins with the columns of ``RECORD``."""
    kind, name, revision, version, body, holder, fence, expire_time = row[:8]
    lease = Lease(holder, fence, expire_time) if holder is not None else None
    return Record(Key(kind, name, revision), version, body, lease, fence)


class Applied(NamedTuple):
    """A record that a transaction touched, and the change of the journal if there is one."""

    tenant: str
    key: Key
    change: Change | None


class _Found(NamedTuple):
    """What is known of a record before it is written."""

    id: int
    version: int
    current: bool
    fence: int
    lease: Lease | None


class Writes:
    """The writes themselves. An error of ours is raised before anything of its commit is written."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._applied: list[Applied] = []
        self._known = False
        self.newest = 0
        self.start()

    def start(self) -> None:
        """Takes the position from the file, unless it is known."""
        if self._known:
            return
        row = self._execute("SELECT value FROM kept_values WHERE name = 'newest'").fetchone()
        compacted = int(row[0]) if row else 0
        (newest,) = self._execute("SELECT COALESCE(MAX(position), 0) FROM journal").fetchone()
        self.newest = max(newest, compacted)
        self._known = True

    def forget(self) -> None:
        """Forgets what a transaction that did not happen had written."""
        self._known = False
        self._applied.clear()

    def take_applied(self) -> list[Applied]:
        """Returns what was touched since this was last asked."""
        applied, self._applied = self._applied, []
        return applied

    def _find(self, tenant: str, key: Key) -> _Found | None:
        row = self._execute(
            "SELECT id, version, current, holder, fence, expire_time FROM records"
            " WHERE tenant = ? AND name = ? AND revision = ?",
            (tenant, key.name, key.revision),
        ).fetchone()
        if row is None:
            return None
        lease = Lease(row[3], row[4], row[5]) if row[3] is not None else None
        return _Found(row[0], row[1], bool(row[2]), row[4], lease)

    def commit(self, tenant: str, commit: Commit) -> Committed:
        now = time.time_ns() // 1000
        request = commit.request
        if request is not None:
            row = self._execute(
                "SELECT fingerprint, answer, time FROM answers WHERE tenant = ? AND identity = ?",
                (tenant, request.identity),
            ).fetchone()
            if row is not None and row[2] >= now - 24 * 3600 * 1_000_000:
                judge_request(row[0], request)
                return Committed(self.newest, repeated=bytes(row[1]))
        found: list[_Found | None] = []
        for write in commit.writes:
            old = self._find(tenant, write.key)
            if write.expect is not None and write.expect != (old.version if old else 0):
                raise Conflict(Unchanged(write.key, write.expect))
            if old is not None:
                judge_fence(write.key, old.lease, old.fence, write.fence, now)
            found.append(old)
        if commit.conditions:
            written = {(write.key.name, write.key.revision) for write in commit.writes}
            ids = {old.id for old in found if old is not None}
            for condition in commit.conditions:
                if not self._holds(tenant, condition, written, ids):
                    raise Conflict(condition)
        leases: dict[Key, Lease] = {}
        for write, old in zip(commit.writes, found, strict=True):
            if isinstance(write, Put):
                lease = self._put(tenant, write, old, now)
                if lease is not None:
                    leases[write.key] = lease
            elif old is not None:
                self._delete(tenant, write, old, now)
        if request is not None:
            self._execute(
                "INSERT OR REPLACE INTO answers (tenant, identity, fingerprint, answer, time) VALUES (?, ?, ?, ?, ?)",
                (tenant, request.identity, request.fingerprint, request.answer, now),
            )
        return Committed(self.newest, leases=leases)

    def _enter(self, tenant: str, key: Key, deleted: bool, now: int) -> int:
        self.newest += 1
        change = Change(self.newest, tenant, key, deleted, now)
        self._execute(
            "INSERT INTO journal (position, tenant, kind, name, revision, deleted, time) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (change.position, tenant, *key, deleted, now),
        )
        self._applied.append(Applied(tenant, key, change))
        return self.newest

    def _put(self, tenant: str, put: Put, old: _Found | None, now: int) -> Lease | None:
        key = put.key
        version = self._enter(tenant, key, False, now)
        fence = old.fence if old else 0
        lease = old.lease if old else None
        if put.lease is not None:
            fence += 1
            lease = Lease(put.lease[0], fence, now + int(put.lease[1] * 1e6))
        if key.revision and put.current and not (old and old.current):
            self._point_away(tenant, key.name)
        current = put.current or bool(old and old.current)
        values = (
            current, version, put.create_time, put.update_time, lease.holder if lease else None, fence,
            lease.expire_time if lease else None, put.text, put.body,
        )  # fmt: skip
        if old is None:
            source = self._execute(
                "INSERT INTO records (current, version, create_time, update_time, holder, fence, expire_time, text,"
                " body, tenant, kind, name, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, tenant, *key),
            ).lastrowid
            assert source is not None
            if key.revision:
                self._execute(
                    "INSERT INTO revisions (tenant, name, highest) VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET highest = MAX(highest, excluded.highest)",
                    (tenant, key.name, key.revision),
                )
        else:
            source = old.id
            self._execute(
                "UPDATE records SET current = ?, version = ?, create_time = ?, update_time = ?, holder = ?, fence = ?,"
                " expire_time = ?, text = ?, body = ? WHERE id = ?",
                (*values, source),
            )
        self._execute(
            f"{'INSERT' if old is None else 'REPLACE'} INTO documents"
            " (tenant, kind, name, revision, current, source, document) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (tenant, *key, current, source, put.document),
        )
        self._keep_beside(tenant, put, source, new=old is None)
        return lease if put.lease is not None else None

    def _keep_beside(self, tenant: str, put: Put, source: int, *, new: bool) -> None:
        if put.references is not None:
            if not new:
                self._execute("DELETE FROM mentions WHERE source = ?", (source,))
            for place, reference in enumerate(put.references):
                self._execute(
                    "INSERT INTO mentions (source, place, tenant, target_kind, target_name, target_revision, relation,"
                    " strength) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (source, place, tenant, *reference.target, reference.relation, int(reference.strength)),
                )
        if put.digests is not None:
            if not new:
                self._execute("DELETE FROM digests WHERE source = ?", (source,))
            if put.digests:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO digests (source, digest, tenant) VALUES (?, ?, ?)",
                    [(source, digest, tenant) for digest in put.digests],
                )

    def _point_away(self, tenant: str, name: str) -> None:
        for kind, revision in self._execute(
            "SELECT kind, revision FROM records WHERE tenant = ? AND name = ? AND current = 1", (tenant, name)
        ).fetchall():
            self._point(tenant, Key(kind, name, revision), False)

    def _point(self, tenant: str, key: Key, current: bool) -> None:
        self._execute(
            "UPDATE records SET current = ? WHERE tenant = ? AND name = ? AND revision = ?",
            (current, tenant, key.name, key.revision),
        )
        self._execute(
            "UPDATE documents SET current = ? WHERE tenant = ? AND kind = ? AND name = ? AND revision = ?",
            (current, tenant, *key),
        )
        self._applied.append(Applied(tenant, key, None))

    def _delete(self, tenant: str, delete: Delete, old: _Found, now: int) -> None:
        key = delete.key
        self._enter(tenant, key, True, now)
        self._execute("DELETE FROM mentions WHERE source = ?", (old.id,))
        self._execute("DELETE FROM digests WHERE source = ?", (old.id,))
        self._execute("DELETE FROM records WHERE id = ?", (old.id,))
        self._execute(
            "DELETE FROM documents WHERE tenant = ? AND kind = ? AND name = ? AND revision = ?", (tenant, *key)
        )
        if not key.revision:
            return
        if delete.current is not None:
            self._point_away(tenant, key.name)
            self._point(tenant, Key(key.kind, key.name, delete.current), True)

    def _holds(self, tenant: str, condition: Condition, written: set[tuple[str, int]], ids: set[int]) -> bool:
        if isinstance(condition, Exists):
            key = condition.key
            return (
                self._execute(
                    "SELECT 1 FROM records WHERE tenant = ? AND name = ? AND (revision = ? OR ? = 0)",
                    (tenant, key.name, key.revision, key.revision),
                ).fetchone()
                is not None
            )
        if isinstance(condition, Unchanged):
            old = self._find(tenant, condition.key)
            return condition.version == (old.version if old else 0)
        if isinstance(condition, Means):
            row = self._execute(
                "SELECT revision FROM records WHERE tenant = ? AND name = ? AND current = 1", (tenant, condition.name)
            ).fetchone()
            return condition.revision == (row[0] if row else 0)
        if isinstance(condition, Childless):
            prefix = condition.prefix
            rows = self._execute(
                "SELECT name, revision FROM records WHERE tenant = ? AND name >= ? AND name < ?",
                (tenant, prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)),
            )
            return all((row[0], row[1]) in written for row in rows)
        assert isinstance(condition, Unreferenced)
        name = condition.name
        if name.endswith("/"):
            where, values = "target_name >= ? AND target_name < ?", [name, name[:-1] + "0"]
        else:
            where, values = "target_name = ?", [name]
        rows = self._execute(
            f"SELECT source FROM mentions WHERE tenant = ? AND {where}"
            f" AND strength IN ({', '.join(str(int(each)) for each in condition.strengths)})"
            " AND (? IS NULL OR target_revision = ?)",
            (tenant, *values, condition.revision, condition.revision),
        )
        return all(row[0] in ids for row in rows)

    def acquire(self, tenant: str, key: Key, holder: str, seconds: float) -> Lease:
        old = self._find(tenant, key)
        if old is None:
            raise missing(key)
        now = time.time_ns() // 1000
        if old.lease is not None and old.lease.expire_time > now and old.lease.holder != holder:
            raise leased(key, old.lease)
        fence = old.fence if old.lease is not None and old.lease.holder == holder else old.fence + 1
        lease = Lease(holder, fence, now + int(seconds * 1e6))
        self._execute(
            "UPDATE records SET holder = ?, fence = ?, expire_time = ? WHERE id = ?",
            (lease.holder, lease.fence, lease.expire_time, old.id),
        )
        self._applied.append(Applied(tenant, key, None))
        return lease

    def release(self, tenant: str, key: Key, fence: int) -> None:
        old = self._find(tenant, key)
        if old is None or old.lease is None:
            return
        if fence != old.fence:
            raise stale_fence(key, fence, old.fence)
        self._execute("UPDATE records SET holder = NULL, expire_time = NULL WHERE id = ?", (old.id,))
        self._applied.append(Applied(tenant, key, None))

    def compact(self, keep: int, answers_kept: float) -> None:
        """Lets go of all but the newest ``keep`` changes, and of answers older than ``answers_kept`` seconds."""
        # With all of the journal gone, the newest position must still be known.
        self._execute(
            "INSERT OR REPLACE INTO kept_values (name, value) VALUES ('newest', ?)", (str(self.newest).encode(),)
        )
        self._execute("DELETE FROM journal WHERE position <= ?", (self.newest - keep,))
        self._execute("DELETE FROM answers WHERE time < ?", (int((time.time() - answers_kept) * 1e6),))

    def value(self, name: str, initial: bytes) -> bytes:
        """Returns the value kept under a name, ``initial`` when there was none."""
        self._execute("INSERT OR IGNORE INTO kept_values (name, value) VALUES (?, ?)", (f"value:{name}", initial))
        row = self._execute("SELECT value FROM kept_values WHERE name = ?", (f"value:{name}",)).fetchone()
        return bytes(row[0])
