"""Drafts of commits: rules read through one and write into it, and it becomes one commit.

A rule looks at what is there and notes down what it relies on. When any of that is no longer so by the time of the
commit, nothing is written and the rule is asked again, so that its error, if there is one, tells the truth.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import Message

from noronha.chassis import request_ids
from noronha.chassis.principals import Principal
from noronha.metadata import documents, kinds
from noronha.metadata.backend import (
    Commit,
    Committed,
    Condition,
    Conflict,
    Delete,
    Exists,
    Key,
    Lease,
    Put,
    Records,
    Request,
    Unchanged,
    missing,
)
from noronha.rpc.errors import Aborted, InvalidArgument, NoronhaError
from noronha.rpc.names import Name

MAX_RECORD_BYTES = 3 << 20
"""Most bytes of one record: 3 MiB, so that it fits into a message of gRPC's 4 MiB whatever comes beside it."""

_PATIENCE = 10.0
"""Seconds for which a change is tried again while others interfere; each time at least one of them gets through."""

M = TypeVar("M", bound=Message)


def new_etag() -> str:
    """Returns an etag that no state of any record had."""
    return base64.urlsafe_b64encode(os.urandom(9)).decode()


class Found(NamedTuple):
    """A resource as a draft sees it."""

    key: Key
    message: Any
    version: int
    """Version of its record; 0 for one that the draft itself makes."""
    lease: Lease | None


class Draft:
    """One commit in the making."""

    def __init__(self, records: Records, tenant: str, *, hopeful: bool = False) -> None:
        self.records = records
        self.tenant = tenant
        self.hopeful = hopeful
        """Whether names are taken to be free without a look: the commit judges it anyway, and seldom otherwise."""
        self.now = time.time_ns() // 1000
        self._writes: dict[Key, Put | Delete] = {}
        self._messages: dict[Key, Any] = {}
        self._conditions: list[Condition] = []

    # Reading

    async def find(self, key: Key) -> Found | None:
        """Returns a resource; a key of a revisioned kind without revision means what the bare name means.

        What the draft has written is seen.
        """
        if key in self._writes:
            return Found(key, self._messages[key], 0, None) if key in self._messages else None
        revision = None if key.revision == 0 else key.revision
        record = await self.records.get(self.tenant, key.name, revision)
        if revision is None:
            found = self._drafted(key.name)
            if found is not None and (record is None or record.key.revision < found.key.revision):
                return found
        if record is None or isinstance(self._writes.get(record.key), Delete):
            return None
        if record.key in self._messages:
            return Found(record.key, self._messages[record.key], 0, None)
        return Found(record.key, kinds.read(key.kind, record.body), record.version, record.lease)

    def _drafted(self, name: str) -> Found | None:
        for key, write in self._writes.items():
            if key.name == name and isinstance(write, Put) and write.current:
                return Found(key, self._messages[key], 0, None)
        return None

    async def read(self, name: Name) -> Found:
        """Returns a resource. Raises NotFound."""
        key = kinds.key_of(name)
        found = await self.find(key)
        if found is None:
            raise missing(key)
        return found

    async def refer(self, name: Name) -> Found:
        """Returns a resource that is about to be referred to, and makes its existence a condition. Raises NotFound."""
        found = await self.read(name)
        if found.version:
            self.require(Exists(found.key))
        return found

    async def next_fence(self, key: Key) -> int:
        """Returns the fence of the lease that a record is created with.

        One made in the place of another, which the draft deletes, goes on where that was: whoever held it is kept out.
        """
        old = await self.records.get(self.tenant, key.name, key.revision or None) if self.has_written(key) else None
        return 1 if old is None else old.fence + 1

    def has_written(self, key: Key) -> bool:
        """Says whether the draft writes or deletes a record."""
        return key in self._writes

    # Writing

    def require(self, condition: Condition) -> None:
        """Notes something that must be so when the commit happens."""
        if condition not in self._conditions:
            self._conditions.append(condition)

    def create(self, key: Key, message: Any, *, current: bool = True, lease: tuple[str, float] | None = None) -> None:
        """Writes a record that must not exist; times and etag are set here."""
        now = documents.timestamp(self.now)
        message.create_time.CopyFrom(now)
        self._put(key, message, None, expect=0, current=current, lease=lease, fence=None)

    def replace(self, found: Found, message: Any, *, current: bool | None = None, fence: int | None = None) -> None:
        """Writes a record that must still be what was found; ``current`` None leaves what its bare name means."""
        is_current = found.key.revision == 0 if current is None else current
        self._put(found.key, message, found.message, expect=found.version, current=is_current, lease=None, fence=fence)

    def _put(
        self,
        key: Key,
        message: Any,
        old: Any,
        *,
        expect: int,
        current: bool,
        lease: tuple[str, float] | None,
        fence: int | None,
    ) -> None:
        if kinds.has_field(key.kind, "update_time"):
            message.update_time.CopyFrom(documents.timestamp(self.now))
        if kinds.has_field(key.kind, "etag"):
            message.etag = new_etag()
        before = self._writes.get(key)
        body = message.SerializeToString()
        if len(body) > MAX_RECORD_BYTES:
            name = kinds.full_name(key)
            raise InvalidArgument(
                f"{name} would be a record of {len(body):,} bytes; at most {MAX_RECORD_BYTES:,} are kept: shorten its"
                " details or the names of its files",
                reason="RECORD_TOO_LARGE", name=name, size_bytes=len(body),
            )  # fmt: skip
        references = kinds.references_of(key.kind, message)
        digests = kinds.digests_of(key.kind, message)
        put = Put(
            key,
            body,
            documents.text_of(message),
            documents.microseconds(message.create_time),
            self.now,
            text=kinds.search_text(key, message),
            references=None if old is not None and kinds.references_of(key.kind, old) == references else references,
            digests=None if old is not None and kinds.digests_of(key.kind, old) == digests else digests,
            expect=expect,
            current=current,
            fence=fence,
            lease=lease,
        )
        if isinstance(before, Put):
            # Written twice in one commit: what was there before it counts for both.
            put = dataclasses.replace(
                put, expect=before.expect, fence=before.fence if fence is None else fence, lease=before.lease or lease,
                current=before.current or current, references=references, digests=digests,
            )  # fmt: skip
        elif isinstance(before, Delete):
            # Deleted and made anew in one commit: what was there goes as the new one comes.
            put = dataclasses.replace(put, expect=before.expect, fence=before.fence)
        self._writes[key] = put
        self._messages[key] = message

    def delete(self, key: Key, version: int | None, *, current: int | None = None, fence: int | None = None) -> None:
        """Deletes a record that must still have this version; ``current`` is what its bare name means from then on."""
        self._messages.pop(key, None)
        self._writes[key] = Delete(key, expect=version, fence=fence, current=current)

    async def commit(self, request: Request | None = None) -> Committed:
        """Commits what was written. Raises Conflict when something it relies on is no longer so."""
        if not self._writes:
            return Committed(await self.records.position())
        commit = Commit(tuple(self._writes.values()), tuple(self._conditions), request)
        return await self.records.commit(self.tenant, commit)


class Once(NamedTuple):
    """A client's request id with what tells its repeat from a reuse."""

    identity: str
    fingerprint: bytes


def once_of(caller: Principal, request: Any) -> Once | None:
    """Returns what makes a repeat of this request harmless, None when it has no id."""
    if not request.request_id:
        return None
    request_ids.check(request.request_id)
    return Once(f"{caller.identity}/{request.request_id}", request_ids.fingerprint(request, caller))


async def settle(
    records: Records,
    tenant: str,
    once: Once | None,
    answer: type[M],
    attempt: Callable[[Draft], Awaitable[M]],
) -> M:
    """Makes a change: lets ``attempt`` fill a draft and commits it, again while others interfere.

    A repeated request is answered as the first time. Raises what ``attempt`` raises, AlreadyExists
    ``REQUEST_ID_REUSED``, and Aborted ``BUSY`` when others interfere without end.
    """
    deadline = time.monotonic() + _PATIENCE
    hopeful = True
    while time.monotonic() < deadline:
        draft = Draft(records, tenant, hopeful=hopeful)
        hopeful = False
        try:
            message = await attempt(draft)
        except NoronhaError:
            # A repeat finds its own traces, such as a name that is used; what it got the first time still stands.
            first = await _first_answer(records, tenant, once)
            if first is None:
                raise
            return answer.FromString(first)
        request = None
        if once is not None:
            request = Request(once.identity, once.fingerprint, message.SerializeToString())
        try:
            committed = await draft.commit(request)
        except Conflict:
            continue
        if committed.repeated is not None:
            return answer.FromString(committed.repeated)
        return message
    raise Aborted("too many others change the same things; try again in a moment", reason="BUSY")


async def _first_answer(records: Records, tenant: str, once: Once | None) -> bytes | None:
    if once is None:
        return None
    return await records.answered(tenant, Request(once.identity, once.fingerprint, b""))


def check_etag(sent: str, found: Found) -> None:
    """Raises Aborted ``STALE_ETAG`` when an etag was sent and is not the record's."""
    if sent and sent != found.message.etag:
        name = kinds.full_name(found.key)
        raise Aborted(f"{name} has changed since it was read; read it again", reason="STALE_ETAG", name=name)


def unchanged(draft: Draft, found: Found) -> None:
    """Makes it a condition that a resource is still what was found."""
    if found.version:
        draft.require(Unchanged(found.key, found.version))
