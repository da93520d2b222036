"""The port of Metadata: what it asks of whatever keeps its records.

A backend knows no resource, no rule and no wire format. It keeps named bodies with what is needed to find them, and
makes commits: several writes that happen together or not at all, under conditions that are judged at the one point in
the order of all commits at which the commit happens. Nothing else needs to be atomic, so a store whose only strength is
a unique key can carry it: there the journal's next entry is the commit, and records follow from it.

Every commit is durable before it is answered. Every method may be called concurrently, and one tenant never sees
another's records. Errors are those of ``noronha.rpc.errors``; a server that cannot be reached is Unavailable, a full
disk ResourceExhausted ``NO_SPACE``.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from noronha.metadata.filters import EVERYTHING, Node
from noronha.rpc.errors import Aborted, AlreadyExists, FailedPrecondition, NotFound, OutOfRange

ANSWERS_KEPT = 24 * 3600.0
"""Seconds for which the answer to a request id is kept."""

JOURNAL_KEPT = 100_000
"""Changes that the journal keeps at least; older ones may be compacted away."""


class Key(NamedTuple):
    """What identifies a record."""

    kind: str
    """Kind of resource, as the field names of ``Resource``."""
    name: str
    """Full name without a revision."""
    revision: int = 0
    """Number of the revision from 1; 0 for kinds without revisions."""


class Strength(enum.IntEnum):
    """What a reference does to the deletion of what it points at."""

    TRACE = 0
    """Nothing: it is kept to tell where things came from."""
    CLEARED = 1
    """It is taken out of its source by the same commit."""
    BINDING = 2
    """It forbids the deletion."""
    FOLLOWING = 3
    """It forbids the deletion; where that is forced, its source is deleted by the same commit."""


GUARDED = (Strength.CLEARED, Strength.BINDING, Strength.FOLLOWING)
"""Strengths of references that a deletion must not leave behind unless forced."""


class Reference(NamedTuple):
    """A record's mention of another one."""

    relation: str
    """Field of the source that holds it."""
    target: Key
    """What it points at; revision 0 for kinds without revisions."""
    strength: Strength = Strength.TRACE


@dataclass(frozen=True)
class Lease:
    """The right to write one record."""

    holder: str
    fence: int
    """Raised by each new holder, and never lowered as long as the record exists."""
    expire_time: int
    """Microseconds since the epoch."""


@dataclass(frozen=True)
class Record:
    """A record as it is kept."""

    key: Key
    version: int
    """Position in the journal of the change that made it so: never used twice, also after a deletion."""
    body: bytes
    lease: Lease | None = None
    """The lease in force, also one that ran out and that nobody took since."""
    fence: int = 0
    """Highest fence that a lease of it had, also one given back; 0 when it had none."""


@dataclass(frozen=True)
class Put:
    """Writes a record."""

    key: Key
    body: bytes
    document: str
    """JSON object that filters see: as ``json.dumps`` writes it, with ``ensure_ascii=False``."""
    create_time: int
    """Microseconds since the epoch; lists can be ordered by it."""
    update_time: int
    """Microseconds since the epoch; lists can be ordered by it."""
    text: str = ""
    """What searches look at, case folded."""
    references: tuple[Reference, ...] | None = ()
    """What it mentions; None leaves what is kept."""
    digests: tuple[str, ...] | None = ()
    """Blobs it refers to; None leaves what is kept."""
    expect: int | None = None
    """Version the record must have; 0: it must not exist; None: don't care."""
    current: bool = True
    """Whether a bare name means this revision from now on."""
    fence: int | None = None
    """Fence of the writer's lease; 0: there must be no lease in force; None: leases are not looked at."""
    lease: tuple[str, float] | None = None
    """Holder and seconds of a lease that is taken with the write."""


@dataclass(frozen=True)
class Delete:
    """Deletes a record. Deleting what is not there breaks the condition, unless ``expect`` is None."""

    key: Key
    expect: int | None = None
    fence: int | None = None
    current: int | None = None
    """Revision that the bare name means once this one is gone; None: it was not the current one, or was the last."""


@dataclass(frozen=True)
class Exists:
    """The record exists; a key of a revisioned kind with revision 0 means any revision."""

    key: Key


@dataclass(frozen=True)
class Unchanged:
    """The record has this version; 0: it does not exist."""

    key: Key
    version: int


@dataclass(frozen=True)
class Unreferenced:
    """No record, but those that the commit writes or deletes, refers to the target with one of these strengths."""

    name: str
    """Name of the target, or a prefix of names that ends in ``/``."""
    revision: int | None = None
    """Revision of the target; None for any."""
    strengths: tuple[Strength, ...] = GUARDED


@dataclass(frozen=True)
class Childless:
    """No record has a name that begins with ``prefix``, other than those that the commit writes or deletes."""

    prefix: str


@dataclass(frozen=True)
class Means:
    """The bare name means this revision; 0: it means nothing."""

    name: str
    revision: int


Condition = Exists | Unchanged | Unreferenced | Childless | Means


@dataclass(frozen=True)
class Request:
    """A client's request, remembered with its answer in the commit that it led to."""

    identity: str
    """The request id and whose it is."""
    fingerprint: bytes
    """Digest of the request's body."""
    answer: bytes


@dataclass(frozen=True)
class Commit:
    """Writes that happen together or not at all. Each key is written at most once."""

    writes: tuple[Put | Delete, ...]
    conditions: tuple[Condition, ...] = ()
    request: Request | None = None


@dataclass(frozen=True)
class Committed:
    """What a commit did."""

    position: int
    """Position of its last change."""
    repeated: bytes | None = None
    """The first answer, when the request had been answered before; then nothing was written."""
    leases: dict[Key, Lease] = field(default_factory=dict)
    """Leases taken with the writes."""


class Conflict(Aborted):
    """A condition did not hold when its commit's turn came; ``broken`` is what was wanted. Read again and retry."""

    default_reason = "CONFLICT"

    def __init__(self, broken: Condition) -> None:
        super().__init__("somebody changed this meanwhile; read it again and retry")
        self.broken = broken


@dataclass(frozen=True)
class Change:
    """One entry of the journal."""

    position: int
    tenant: str
    key: Key
    deleted: bool
    time: int
    """Microseconds since the epoch."""


class Place(NamedTuple):
    """Where a scan stands: after this record in its order."""

    order: int
    """The time it is ordered by, 0 when ordered by name."""
    name: str
    revision: int


@dataclass(frozen=True)
class Scan:
    """A range of records in order."""

    kind: str
    prefix: str = ""
    """What names begin with."""
    shape: tuple[str, ...] = ()
    """Parts of the names between the slashes, with ``-`` for any; empty takes every name of the kind."""
    every_revision: bool = False
    """Whether all revisions are taken, newest first within a name, instead of those that bare names mean."""
    filter: Node = EVERYTHING
    order: str = "name"
    """``name``, ``create_time`` or ``update_time``; equal times are ordered by name."""
    descending: bool = False
    after: Place | None = None
    limit: int = 50
    max_bytes: int = 2 << 20
    """Bytes of bodies that a page does not exceed, unless its first record alone does."""
    max_seconds: float = 1.0
    """Time after which a page ends early, so that no filter holds a reader for long."""


@dataclass(frozen=True)
class Page:
    """Records of a scan."""

    records: list[Record]
    following: Place | None
    """Where to go on; None at the end."""


class Mention(NamedTuple):
    """A reference, seen from its target."""

    source: Key
    version: int
    """Version of the source."""
    reference: Reference


class Records(Protocol):
    """Named records with compare-and-set, found by name, filter and reference, and a journal of their changes."""

    async def get(self, tenant: str, name: str, revision: int | None = None) -> Record | None:
        """Returns a record; without a revision, what the bare name means; None when there is none."""
        ...

    async def highest(self, tenant: str, name: str) -> int:
        """Returns the highest revision number that a name ever had, also before it was deleted; 0 when it had none.

        What refers to a revision by its number must never come to mean another one.
        """
        ...

    async def scan(self, tenant: str, scan: Scan) -> Page:
        """Returns a page of records; a page may be short or empty and still not be the last."""
        ...

    async def below(self, tenant: str, prefix: str) -> list[tuple[Key, int]]:
        """Returns key and version of every record whose name begins with ``prefix``, in the order of names."""
        ...

    async def revisions(self, tenant: str, name: str) -> list[tuple[int, int]]:
        """Returns revision and version of every record of a name, newest first."""
        ...

    async def mentions(self, tenant: str, name: str, revision: int | None = None) -> list[Mention]:
        """Returns the references to a name, or to one revision of it, ordered by source.

        A name that ends in ``/`` stands for everything below it.
        """
        ...

    async def search(
        self, tenant: str, text: str, kinds: Sequence[str], after: Place | None, limit: int, filter: Node
    ) -> Page:
        """Returns records of some kinds, as bare names mean them, whose text holds a folded text; ordered by name."""
        ...

    def digests(self, tenant: str) -> AsyncIterator[list[str]]:
        """Yields every blob that a record refers to, ordered, without repeats, of one moment."""
        ...

    async def answered(self, tenant: str, request: Request) -> bytes | None:
        """Returns the answer that a request got before, None when it got none.

        Raises AlreadyExists ``REQUEST_ID_REUSED`` when its fingerprint is another.
        """
        ...

    async def commit(self, tenant: str, commit: Commit) -> Committed:
        """Judges the conditions and makes the writes, in one step, durably.

        The request is looked at first, then ``expect`` and ``fence`` of the writes in their order, then the conditions.
        Raises AlreadyExists ``REQUEST_ID_REUSED``; Aborted ``STALE_FENCE``; FailedPrecondition ``LEASED``; Conflict.
        """
        ...

    async def acquire(self, tenant: str, key: Key, holder: str, seconds: float) -> Lease:
        """Takes or renews the lease of a record; a holder whose own lease ran out and was not taken since renews it.

        Raises NotFound; FailedPrecondition ``LEASED`` while somebody else's is in force.
        """
        ...

    async def release(self, tenant: str, key: Key, fence: int) -> None:
        """Gives a lease back; harmless for a record that is gone or free. Raises Aborted ``STALE_FENCE``."""
        ...

    async def position(self) -> int:
        """Returns the position of the newest change, 0 before the first."""
        ...

    async def changes(self, after: int, limit: int) -> list[Change]:
        """Returns changes of all tenants past a position, in order. Raises OutOfRange once they were compacted away."""
        ...

    async def wait(self, after: int, seconds: float, takes: Callable[[Change], bool]) -> None:
        """Returns once there is a change past a position that ``takes`` accepts, or after some time.

        It may return earlier; who waits looks at the changes and waits again.
        """
        ...

    async def compact(self, keep: int) -> None:
        """Lets go of all but the newest changes of the journal, and of answers that are too old."""
        ...

    async def value(self, name: str, initial: bytes) -> bytes:
        """Returns the value of the mesh's own kept under a name, such as a key; ``initial`` when there was none."""
        ...

    async def close(self) -> None:
        """Lets go of everything; what was committed stays."""
        ...


def judge_request(kept_fingerprint: bytes, request: Request) -> None:
    """Raises AlreadyExists ``REQUEST_ID_REUSED`` unless a request that was answered before is the same again."""
    if kept_fingerprint != request.fingerprint:
        raise AlreadyExists(
            "this request_id was used for another request; send a fresh one", reason="REQUEST_ID_REUSED"
        )


def judge_fence(key: Key, lease: Lease | None, highest: int, fence: int | None, now: int) -> None:
    """Raises Aborted ``STALE_FENCE`` or FailedPrecondition ``LEASED`` unless a write with this fence may go on.

    ``highest`` is the highest fence that the record ever had, ``now`` in microseconds since the epoch.
    """
    if fence is None:
        return
    if fence == 0:
        if lease is not None and lease.expire_time > now:
            raise leased(key, lease)
    elif fence != highest:
        raise stale_fence(key, fence, highest)


def stale_fence(key: Key, fence: int, highest: int) -> Aborted:
    """Returns the error for a fence that is not the record's newest."""
    return Aborted(
        f"the lease of {key.name} has passed on: its fence is {highest}, not {fence}; acquire it again",
        reason="STALE_FENCE", name=key.name, fence=highest,
    )  # fmt: skip


def leased(key: Key, lease: Lease) -> FailedPrecondition:
    """Returns the error for a record whose lease somebody else holds."""
    return FailedPrecondition(
        f"{key.name} is leased by {lease.holder}; wait until the lease runs out or is given back",
        reason="LEASED", name=key.name, holder=lease.holder,
    )  # fmt: skip


def missing(key: Key) -> NotFound:
    """Returns the error for a record that is not there."""
    name = f"{key.name}{'/' if key.kind == 'deployment_revision' else '@'}{key.revision}" if key.revision else key.name
    return NotFound(f"{name} does not exist", name=name)


def too_old(after: int, oldest: int) -> OutOfRange:
    """Returns the error for a position that the journal no longer reaches back to."""
    return OutOfRange(
        "the journal no longer reaches back that far; start afresh",
        reason="RESUME_TOKEN_TOO_OLD", position=after, oldest=oldest,
    )  # fmt: skip


def fits(shape: Sequence[str], name: str) -> bool:
    """Says whether a name has the parts of a shape, in which ``-`` stands for any."""
    parts = name.split("/")
    return len(parts) == len(shape) and all(want in ("-", part) for want, part in zip(shape, parts, strict=True))
