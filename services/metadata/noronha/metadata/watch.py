"""Watches: the present state, a bookmark, and changes as they happen.

A watch holds no state of what it told: it goes through the journal, which holds names, and tells what the record is
by then. So a slow reader costs nothing but its place in the journal; states in between are skipped, the last is not.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple

from noronha.chassis.principals import Principal
from noronha.metadata import documents, filters, kinds
from noronha.metadata.backend import Change, Key, Record, Scan, fits, too_old
from noronha.metadata.catalog import Catalog
from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument
from noronha.v1 import metadata_pb2

MAX_NAMES = 100
BOOKMARK_SECONDS = 20.0
"""Time between bookmarks; the contract promises one every 30 s."""

_CHANGES_AT_ONCE = 500
_RECORDS_AT_ONCE = 100
_TASKS = ("build", "training", "notebook")


class _Target(NamedTuple):
    """What a watch follows: a kind, the parts of its names, and a revision."""

    kind: str
    shape: tuple[str, ...]
    revision: int | None

    @property
    def exact(self) -> bool:
        return "-" not in self.shape

    def takes(self, key: Key) -> bool:
        return key.kind == self.kind and self.revision in (None, key.revision) and fits(self.shape, key.name)

    @property
    def prefix(self) -> str:
        known = self.shape[: self.shape.index("-")] if "-" in self.shape else self.shape[:-1]
        return "/".join(known) + "/"


def _targets(request: Any) -> list[_Target]:
    if not 1 <= len(request.names) <= MAX_NAMES:
        why = f"has {len(request.names)} entries; 1 to {MAX_NAMES} are allowed"
        raise InvalidArgument(f"names {why}", reason="BAD_NAMES", violations=[("names", why)])
    targets = []
    for name in request.names:
        parsed = names.parse(name, field="names", wildcard=True)
        parts, revision = tuple(parsed.bare.split("/")), parsed.revision
        if parsed.kind == "deployment_revision":
            parts, revision = parts[:-1], None if parts[-1] == "-" else int(parts[-1])
        targets.append(_Target(parsed.kind, parts, revision))
    return targets


def _token(catalog: Catalog, position: int) -> str:
    return base64.urlsafe_b64encode(f"{catalog.journal}:{position}".encode()).decode()


async def _position_of(catalog: Catalog, token: str) -> int:
    """Returns the position of a resume token. Raises InvalidArgument ``BAD_RESUME_TOKEN``; OutOfRange."""
    try:
        journal, separator, number = base64.urlsafe_b64decode(token.encode("ascii")).decode("ascii").partition(":")
        position = int(number)
    except (ValueError, binascii.Error):
        separator, journal, position = "", "", -1
    if not separator or position < 0:
        raise InvalidArgument(
            "resume_token is not one of ours; start afresh without it",
            reason="BAD_RESUME_TOKEN", violations=[("resume_token", "is not one of ours")],
        )  # fmt: skip
    if journal != catalog.journal:
        raise too_old(position, 0)
    return position


class Watch:
    """One watch; iterate over ``steps()``."""

    def __init__(self, catalog: Catalog, caller: Principal, request: Any, stopping: asyncio.Event) -> None:
        self._catalog = catalog
        self._caller = caller
        self._request = request
        self._stopping = stopping
        self._targets = _targets(request)
        self._takes = filters.matcher(
            filters.parse(request.filter, *{kinds.MESSAGES[target.kind] for target in self._targets})
        )
        self._bookmarked = time.monotonic()
        self._chests: set[str] = set()
        """Chests that were told: of others' not even the deletion is."""
        self._followed: _Target | None = None
        """The one task with whose end the watch ends."""

    async def steps(self) -> AsyncGenerator[Any, None]:
        """Yields what happened. Raises InvalidArgument; OutOfRange ``RESUME_TOKEN_TOO_OLD``."""
        await self._settle_task()
        if self._request.resume_token:
            position = await _position_of(self._catalog, self._request.resume_token)
            await self._catalog.records.changes(position, 1)
        else:
            position = await self._catalog.records.position()
            async for record in self._present():
                yield metadata_pb2.WatchResponse(changed=self._wrapped(record))
        yield self._bookmark(position)
        over = await self._has_ended()
        async with contextlib.aclosing(self._changes(position, over)) as steps:
            async for step in steps:
                yield step

    async def _settle_task(self) -> None:
        """Finds the one task that is watched, if it is one; a bare tag stands for its newest build."""
        if len(self._targets) != 1:
            return
        (target,) = self._targets
        if target.kind not in _TASKS or not target.exact:
            return
        if target.kind == "build" and target.revision is None:
            revisions = await self._catalog.records.revisions(self._caller.tenant, "/".join(target.shape))
            if not revisions:
                return
            target = target._replace(revision=revisions[0][0])
            self._targets = [target]
        self._followed = target

    async def _has_ended(self) -> bool:
        if self._followed is None:
            return False
        record = await self._catalog.records.get(
            self._caller.tenant, "/".join(self._followed.shape), self._followed.revision
        )
        return record is not None and kinds.has_ended(record.key.kind, kinds.read(record.key.kind, record.body))

    async def _present(self) -> AsyncIterator[Record]:
        for index, target in enumerate(self._targets):
            before = self._targets[:index]
            async for record in self._records_of(target):
                if not any(other.takes(record.key) for other in before) and self._shows(record):
                    yield record

    async def _records_of(self, target: _Target) -> AsyncIterator[Record]:
        tenant, records = self._caller.tenant, self._catalog.records
        if target.exact:
            name = "/".join(target.shape)
            wanted = [target.revision] if target.revision is not None else [
                revision for revision, _ in await records.revisions(tenant, name)
            ]  # fmt: skip
            for revision in wanted:
                record = await records.get(tenant, name, revision)
                if record is not None:
                    yield record
            return
        scan = Scan(target.kind, prefix=target.prefix, shape=target.shape, every_revision=True, limit=_RECORDS_AT_ONCE)
        while True:
            page = await records.scan(tenant, scan)
            for record in page.records:
                if target.takes(record.key):
                    yield record
            if page.following is None or self._stopping.is_set():
                return
            scan = Scan(**{**scan.__dict__, "after": page.following})

    def _shows(self, record: Record) -> bool:
        message = kinds.read(record.key.kind, record.body)
        if record.key.kind == "chest":
            if message.owner != self._caller.subject:
                return False
            self._chests.add(record.key.name)
        return not self._request.filter or self._takes(documents.of(message))

    def _wrapped(self, record: Record) -> Any:
        return kinds.wrap(record.key.kind, kinds.read(record.key.kind, record.body))

    def _bookmark(self, position: int) -> Any:
        self._bookmarked = time.monotonic()
        return metadata_pb2.WatchResponse(
            bookmark=metadata_pb2.WatchResponse.Bookmark(), resume_token=_token(self._catalog, position)
        )

    async def _changes(self, position: int, over: bool) -> AsyncGenerator[Any, None]:
        """Yields what changes after a position. When the one task that is watched is ``over``, what the journal already
        holds is told still: the end itself may be in it."""
        records = self._catalog.records
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while not stopping.done():
                changes = await records.changes(position, _CHANGES_AT_ONCE)
                if changes:
                    async for step in self._told(changes):
                        yield step
                    position = changes[-1].position
                    if self._followed is not None and await self._ended_by(changes):
                        return
                    if time.monotonic() - self._bookmarked >= BOOKMARK_SECONDS:
                        yield self._bookmark(position)
                    continue
                if over:
                    return
                left = self._bookmarked + BOOKMARK_SECONDS - time.monotonic()
                if left <= 0:
                    yield self._bookmark(position)
                    continue
                waiting = asyncio.create_task(records.wait(position, left, self._cares_for))
                try:
                    await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    waiting.cancel()
        finally:
            stopping.cancel()

    def _cares_for(self, change: Change) -> bool:
        return change.tenant == self._caller.tenant and any(target.takes(change.key) for target in self._targets)

    async def _told(self, changes: list[Change]) -> AsyncIterator[Any]:
        """Yields what the changed records are by now; of several changes of one record the last counts."""
        last: dict[Key, Change] = {}
        for change in changes:
            if self._cares_for(change):
                last.pop(change.key, None)
                last[change.key] = change
        for key, change in last.items():
            record = await self._catalog.records.get(self._caller.tenant, key.name, key.revision)
            step = metadata_pb2.WatchResponse(
                time=documents.timestamp(change.time), resume_token=_token(self._catalog, change.position)
            )
            if record is not None and self._shows(record):
                step.changed.CopyFrom(self._wrapped(record))
            elif key.kind == "chest" and key.name not in self._chests:
                continue
            else:
                step.deleted = kinds.full_name(key)
            yield step

    async def _ended_by(self, changes: list[Change]) -> bool:
        """Says whether the one task that is watched has ended, or was deleted, by these changes."""
        followed = self._followed
        assert followed is not None
        if not any(change.tenant == self._caller.tenant and followed.takes(change.key) for change in changes):
            return False
        record = await self._catalog.records.get(self._caller.tenant, "/".join(followed.shape), followed.revision)
        return record is None or kinds.has_ended(record.key.kind, kinds.read(record.key.kind, record.body))
