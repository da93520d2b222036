"""Records in memory: the meaning that every other backend must have, and nothing left after the process ends."""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from noronha.metadata.backend import (
    ANSWERS_KEPT,
    JOURNAL_KEPT,
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
    Mention,
    Page,
    Place,
    Put,
    Record,
    Reference,
    Request,
    Scan,
    Unchanged,
    Unreferenced,
    fits,
    judge_fence,
    judge_request,
    leased,
    missing,
    stale_fence,
    too_old,
)
from noronha.metadata.filters import Node, matcher
from noronha.metadata.waiters import Waiters

_DIGESTS_AT_ONCE = 10_000
_ROWS_AT_ONCE = 200


@dataclass
class _Row:
    record: Record
    document: Any
    text: str
    references: tuple[Reference, ...]
    digests: tuple[str, ...]
    create_time: int
    update_time: int
    fence: int = 0
    """Highest fence the record ever had."""

    def order(self, by: str) -> int:
        return {"create_time": self.create_time, "update_time": self.update_time}.get(by, 0)


@dataclass
class _Tenant:
    rows: dict[tuple[str, int], _Row] = field(default_factory=dict)
    places: list[tuple[str, int]] = field(default_factory=list)
    """Name and negated revision of every row, sorted."""
    current: dict[str, int] = field(default_factory=dict)
    highest: dict[str, int] = field(default_factory=dict)
    answers: dict[str, tuple[float, bytes, bytes]] = field(default_factory=dict)
    """Time, fingerprint and answer of each request."""

    def under(self, prefix: str) -> list[_Row]:
        """Returns the rows whose names begin with a prefix, in the order of names, newest revision first."""
        found = []
        for place in self.places[bisect.bisect_left(self.places, (prefix,)) :]:
            if not place[0].startswith(prefix):
                break
            found.append(self.rows[place[0], -place[1]])
        return found

    def named(self, name: str) -> list[_Row]:
        """Returns the rows of a name, newest revision first."""
        found = []
        for place in self.places[bisect.bisect_left(self.places, (name,)) :]:
            if place[0] != name:
                break
            found.append(self.rows[place[0], -place[1]])
        return found

    def mentions(self, name: str, revision: int | None) -> list[tuple[_Row, Reference]]:
        """Returns the references to a name, or to everything below it when it ends in ``/``."""

        def aimed(target: Key) -> bool:
            if name.endswith("/"):
                return target.name.startswith(name)
            return target.name == name and revision in (None, target.revision)

        return [
            (self.rows[place[0], -place[1]], reference)
            for place in self.places
            for reference in self.rows[place[0], -place[1]].references
            if aimed(reference.target)
        ]


def _now() -> int:
    return time.time_ns() // 1000


class MemoryRecords:
    """Keeps records in this process only; what it is asked is answered by looking through them."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._journal: list[Change] = []
        self._newest = 0
        self._values: dict[str, bytes] = {}
        self._waiters = Waiters()

    @classmethod
    def from_url(cls, url: str, state_dir: Path) -> MemoryRecords:
        """Makes an empty one; the URL is ``memory:``."""
        return cls()

    def _of(self, tenant: str) -> _Tenant:
        return self._tenants.setdefault(tenant, _Tenant())

    async def get(self, tenant: str, name: str, revision: int | None = None) -> Record | None:
        kept = self._of(tenant)
        row = kept.rows.get((name, kept.current.get(name, 0) if revision is None else revision))
        return row.record if row else None

    async def highest(self, tenant: str, name: str) -> int:
        return self._of(tenant).highest.get(name, 0)

    async def scan(self, tenant: str, scan: Scan) -> Page:
        kept = self._of(tenant)
        rows = [
            row
            for row in kept.under(scan.prefix)
            if row.record.key.kind == scan.kind
            and (scan.every_revision or kept.current.get(row.record.key.name) == row.record.key.revision)
            and (not scan.shape or fits(scan.shape, row.record.key.name))
        ]
        if scan.order != "name":
            rows.sort(key=lambda row: row.order(scan.order), reverse=scan.descending)
        elif scan.descending:
            rows.sort(key=lambda row: row.record.key.name, reverse=True)
        if scan.after is not None:
            after = scan.after
            rows = [row for row in rows if _is_past(row, after, scan)]
        return await self._page(rows, scan.filter, scan.order, scan.limit, scan.max_bytes, scan.max_seconds)

    async def _page(
        self, rows: list[_Row], filter: Node, order: str, limit: int, max_bytes: int, max_seconds: float
    ) -> Page:
        takes = matcher(filter)
        deadline = time.monotonic() + max_seconds
        found: list[Record] = []
        size = 0
        place: Place | None = None
        for index, row in enumerate(rows):
            late = False
            if index % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
                await asyncio.sleep(0)
                late = time.monotonic() > deadline
            if len(found) >= limit or late:
                return Page(found, place)
            if takes(row.document):
                size += len(row.record.body)
                if found and size > max_bytes:
                    return Page(found, place)
                found.append(row.record)
            place = Place(row.order(order), row.record.key.name, row.record.key.revision)
        return Page(found, None)

    async def below(self, tenant: str, prefix: str) -> list[tuple[Key, int]]:
        return [(row.record.key, row.record.version) for row in self._of(tenant).under(prefix)]

    async def revisions(self, tenant: str, name: str) -> list[tuple[int, int]]:
        return [(row.record.key.revision, row.record.version) for row in self._of(tenant).named(name)]

    async def mentions(self, tenant: str, name: str, revision: int | None = None) -> list[Mention]:
        return [
            Mention(row.record.key, row.record.version, reference)
            for row, reference in self._of(tenant).mentions(name, revision)
        ]

    async def search(
        self,
        tenant: str,
        text: str,
        kinds: Sequence[str],
        after: Place | None,
        limit: int,
        filter: Node,
    ) -> Page:
        kept = self._of(tenant)
        rows = [
            row
            for row in kept.under("")
            if row.record.key.kind in kinds
            and kept.current.get(row.record.key.name) == row.record.key.revision
            and text in row.text
            and (after is None or row.record.key.name > after.name)
        ]
        scan = Scan("")
        return await self._page(rows, filter, "name", limit, scan.max_bytes, scan.max_seconds)

    async def digests(self, tenant: str) -> AsyncIterator[list[str]]:
        found = sorted({digest for row in self._of(tenant).rows.values() for digest in row.digests})
        for begin in range(0, len(found), _DIGESTS_AT_ONCE):
            yield found[begin : begin + _DIGESTS_AT_ONCE]

    async def answered(self, tenant: str, request: Request) -> bytes | None:
        kept = self._of(tenant).answers.get(request.identity)
        if kept is None or kept[0] < time.time() - ANSWERS_KEPT:
            return None
        judge_request(kept[1], request)
        return kept[2]

    async def commit(self, tenant: str, commit: Commit) -> Committed:
        kept = self._of(tenant)
        now = _now()
        if commit.request is not None:
            answer = await self.answered(tenant, commit.request)
            if answer is not None:
                return Committed(self._newest, repeated=answer)
        written = {(write.key.name, write.key.revision) for write in commit.writes}
        for write in commit.writes:
            row = kept.rows.get((write.key.name, write.key.revision))
            if write.expect is not None and write.expect != (row.record.version if row else 0):
                raise Conflict(Unchanged(write.key, write.expect))
            if row is not None:
                judge_fence(write.key, row.record.lease, row.fence, write.fence, now)
        for condition in commit.conditions:
            if not _holds(kept, condition, written):
                raise Conflict(condition)
        leases: dict[Key, Lease] = {}
        before = self._newest
        for write in commit.writes:
            if isinstance(write, Put):
                lease = self._put(tenant, kept, write, now)
                if lease is not None:
                    leases[write.key] = lease
            else:
                self._delete(tenant, kept, write, now)
        if commit.request is not None:
            request = commit.request
            kept.answers[request.identity] = (time.time(), request.fingerprint, request.answer)
        if self._newest > before:
            self._waiters.tell(self._journal[before - self._newest :])
        return Committed(self._newest, leases=leases)

    def _put(self, tenant: str, kept: _Tenant, put: Put, now: int) -> Lease | None:
        name, revision = put.key.name, put.key.revision
        self._enter(tenant, put.key, False, now)
        old = kept.rows.get((name, revision))
        if old is None:
            bisect.insort(kept.places, (name, -revision))
        fence = old.fence if old else 0
        lease = old.record.lease if old else None
        if put.lease is not None:
            fence += 1
            lease = Lease(put.lease[0], fence, now + int(put.lease[1] * 1e6))
        kept.rows[name, revision] = _Row(
            Record(put.key, self._newest, put.body, lease, fence),
            json.loads(put.document),
            put.text,
            put.references if put.references is not None else old.references if old else (),
            put.digests if put.digests is not None else old.digests if old else (),
            put.create_time,
            put.update_time,
            fence,
        )
        if put.current:
            kept.current[name] = revision
        if revision:
            kept.highest[name] = max(revision, kept.highest.get(name, 0))
        return lease if put.lease is not None else None

    def _delete(self, tenant: str, kept: _Tenant, delete: Delete, now: int) -> None:
        name, revision = delete.key.name, delete.key.revision
        if (name, revision) not in kept.rows:
            return
        self._enter(tenant, delete.key, True, now)
        del kept.rows[name, revision]
        del kept.places[bisect.bisect_left(kept.places, (name, -revision))]
        if kept.current.get(name) == revision:
            del kept.current[name]
        if delete.current is not None:
            kept.current[name] = delete.current

    def _enter(self, tenant: str, key: Key, deleted: bool, now: int) -> None:
        self._newest += 1
        self._journal.append(Change(self._newest, tenant, key, deleted, now))
        if len(self._journal) >= 2 * JOURNAL_KEPT:
            del self._journal[:-JOURNAL_KEPT]

    async def acquire(self, tenant: str, key: Key, holder: str, seconds: float) -> Lease:
        row = self._of(tenant).rows.get((key.name, key.revision))
        if row is None:
            raise missing(key)
        now = _now()
        lease = row.record.lease
        if lease is not None and lease.expire_time > now and lease.holder != holder:
            raise leased(key, lease)
        if lease is None or lease.holder != holder:
            row.fence += 1
        lease = Lease(holder, row.fence, now + int(seconds * 1e6))
        row.record = replace(row.record, lease=lease)
        return lease

    async def release(self, tenant: str, key: Key, fence: int) -> None:
        row = self._of(tenant).rows.get((key.name, key.revision))
        if row is None or row.record.lease is None:
            return
        if fence != row.fence:
            raise stale_fence(key, fence, row.fence)
        row.record = replace(row.record, lease=None)

    async def position(self) -> int:
        return self._newest

    async def changes(self, after: int, limit: int) -> list[Change]:
        oldest = self._journal[0].position if self._journal else self._newest + 1
        if after < oldest - 1 or after > self._newest:
            raise too_old(after, oldest)
        begin = after - oldest + 1
        return self._journal[begin : begin + limit]

    async def wait(self, after: int, seconds: float, takes: Callable[[Change], bool]) -> None:
        if self._newest == after:
            await self._waiters.wait(takes, seconds)

    async def compact(self, keep: int) -> None:
        if len(self._journal) > keep:
            del self._journal[: len(self._journal) - keep]
        oldest = time.time() - ANSWERS_KEPT
        for kept in self._tenants.values():
            kept.answers = {name: each for name, each in kept.answers.items() if each[0] >= oldest}

    async def value(self, name: str, initial: bytes) -> bytes:
        return self._values.setdefault(name, initial)

    async def close(self) -> None:
        self._waiters.wake()


def _is_past(row: _Row, after: Place, scan: Scan) -> bool:
    key = row.record.key
    if scan.order != "name":
        time_of = row.order(scan.order)
        if time_of != after.order:
            return time_of < after.order if scan.descending else time_of > after.order
        return (key.name, -key.revision) > (after.name, -after.revision)
    if key.name != after.name:
        return key.name < after.name if scan.descending else key.name > after.name
    return key.revision < after.revision


def _holds(kept: _Tenant, condition: Condition, written: set[tuple[str, int]]) -> bool:
    if isinstance(condition, Exists):
        key = condition.key
        return (key.name, key.revision) in kept.rows or (key.revision == 0 and key.name in kept.current)
    if isinstance(condition, Unchanged):
        row = kept.rows.get((condition.key.name, condition.key.revision))
        return condition.version == (row.record.version if row else 0)
    if isinstance(condition, Means):
        return kept.current.get(condition.name, 0) == condition.revision
    if isinstance(condition, Childless):
        return all((row.record.key.name, row.record.key.revision) in written for row in kept.under(condition.prefix))
    assert isinstance(condition, Unreferenced)
    return not any(
        reference.strength in condition.strengths and (row.record.key.name, row.record.key.revision) not in written
        for row, reference in kept.mentions(condition.name, condition.revision)
    )
