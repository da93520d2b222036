"""The ports of Store: ``Objects``, where bytes lie, and ``Index``, what is known of them.

Splitting the two keeps every rule of Store (verification, sessions, holds, packing, garbage) in one place whatever
the bytes lie on: a new kind of storage brings ``Objects`` and nothing else.

Methods of both block, may be called from any thread and by several at once, and raise the classes of
``noronha.rpc.errors``: ResourceExhausted ``NO_SPACE`` when there is no room, FailedPrecondition ``STORE_READ_ONLY``
when writing is not allowed, Unavailable ``STORE_UNAVAILABLE`` when the storage does not answer. Store calls them in
threads of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Location(NamedTuple):
    """Where the bytes of a blob lie: a range of an object of a store. An empty blob has no object."""

    store: str
    object: str
    offset: int
    length: int


@dataclass(frozen=True)
class StoredBlob:
    """A blob that is whole and durable."""

    digest: str
    location: Location
    pieces: bytes
    """CRC-32 of each piece of 1 MiB, four bytes each, little-endian."""
    damaged: bool = False
    """Whether a reader found that its bytes are no longer right. It is read no more until it is uploaded again."""


@dataclass(frozen=True)
class Session:
    """An upload as the index keeps it."""

    upload: str
    tenant: str
    identity: str
    """Kind and subject of the principal that opened it."""
    storage_class: int
    store: str
    """Name of the store that takes its bytes."""
    expire_time: float
    """Seconds since the epoch."""
    sealed: bool = False
    request_id: str = ""
    fingerprint: str = ""
    """Digest of the body that came with the request id."""


class Entry(NamedTuple):
    """A blob of an upload."""

    digest: str
    size: int
    complete: bool
    """Whether the upload holds it: it is there and, for a task, the task wrote it itself."""


class Found(NamedTuple):
    """An object that a store holds."""

    name: str
    size: int
    age: float
    """Seconds since it was written."""


class Deletion(NamedTuple):
    """What became of blobs that were to be deleted."""

    deleted: list[Location]
    held: list[str]
    """Digests that an upload in force holds."""


class Stage(Protocol):
    """An object on its way in: bytes in order, by one writer. Not thread-safe."""

    @property
    def size(self) -> int:
        """Bytes taken so far."""
        ...

    @property
    def kept(self) -> int:
        """Bytes that are kept whatever happens next, a power cut included; at most ``size``."""
        ...

    def replay(self) -> Iterator[bytes]:
        """Yields the bytes taken so far, for the checksums of a writer that goes on where another one stopped."""
        ...

    def append(self, data: bytes) -> None:
        """Takes bytes."""
        ...

    def finish(self, name: str) -> None:
        """Makes what was taken the object ``name``, durable before it returns, all of it or nothing; ends the stage."""
        ...

    def close(self) -> None:
        """Ends the writing and keeps what was taken, for another writer. Harmless after ``finish`` and ``discard``."""
        ...

    def discard(self) -> None:
        """Ends the writing and forgets what was taken."""
        ...


class Reader(Protocol):
    """An object being read. Not thread-safe; mostly read from front to back."""

    def read(self, offset: int, length: int) -> bytes:
        """Returns bytes, fewer only where the object ends. Raises DataLoss when the storage cannot read them."""
        ...

    def close(self) -> None:
        """Ends the reading."""
        ...


class Objects(Protocol):
    """Named, immutable runs of bytes.

    Store makes the names: parts of ASCII letters, digits and ``._%-`` joined by ``/``, each name used for one object
    only, so that an object is never replaced and a deletion never meets a later object. Object and stage names have
    separate spaces.
    """

    def stage(self, key: str) -> Stage:
        """Opens the stage ``key`` where it stands, a new one at 0.

        Raises Aborted ``BLOB_BUSY`` while another has it open.
        """
        ...

    def staged(self, key: str) -> int:
        """Returns the bytes that the stage ``key`` holds, 0 when there is none."""
        ...

    def discard(self, key: str) -> None:
        """Forgets the stage ``key``; harmless when there is none. Under a writer it goes when the writer ends."""
        ...

    def hand_over(self, key: str, to: str) -> bool:
        """Makes what the stage ``key`` took the beginning of the stage ``to``, in one step, and says whether it did.

        It does not when there is nothing, or when ``to`` took something itself. Raises Aborted ``BLOB_BUSY`` while
        either has a writer.
        """
        ...

    def stages(self) -> Iterator[Found]:
        """Yields the stages there are."""
        ...

    def put(self, name: str, parts: Sequence[bytes]) -> None:
        """Writes a small object in one go, durable before it returns, all of it or nothing."""
        ...

    def open(self, name: str) -> Reader:
        """Opens an object. Raises NotFound."""
        ...

    def size(self, name: str) -> int | None:
        """Returns the size of an object in bytes, None when it is not there."""
        ...

    def lost(self, names: Iterable[str]) -> list[str]:
        """Returns those objects that are not there, as far as a look costs little; slow stores may say none."""
        ...

    def delete(self, name: str) -> None:
        """Deletes an object; harmless when it is not there. Those who read it go on, or are told NotFound."""
        ...

    def list(self) -> Iterator[Found]:
        """Yields the objects there are; what comes or goes meanwhile may be in it or not."""
        ...

    def free_bytes(self) -> int | None:
        """Returns the room left in bytes, None where nobody can tell."""
        ...

    def close(self) -> None:
        """Lets go of everything."""
        ...


class Index(Protocol):
    """What is known of blobs and uploads. Each method is one atomic step and durable before it returns.

    An upload *holds* the blobs of its entries, complete or not, from its opening to its expiry, its abortion or its
    removal by ``expire``. Opening and ``delete_unheld`` never overlap: a blob that an opening found cannot be deleted
    under it.
    """

    def open_upload(self, session: Session, entries: Sequence[tuple[str, int]], *, proven: bool, now: float) -> Session:
        """Keeps a session and its entries (digest, size); those whose blob its store holds are complete.

        With ``proven`` only blobs that the session's identity wrote count. A request id that the identity used before
        answers the session of then, unless that one has expired by ``now``. Raises AlreadyExists
        ``REQUEST_ID_REUSED`` when that one's fingerprint differs; InvalidArgument ``WRONG_SIZE`` when a blob that
        counts has another size.
        """
        ...

    def find_upload(self, upload: str) -> Session | None:
        """Returns a session, None when there is none."""
        ...

    def entries(self, upload: str) -> list[Entry]:
        """Returns the entries of an upload in the order offered, each as it stands now."""
        ...

    def objects_of(self, upload: str) -> dict[str, list[str]]:
        """Returns the objects, by store, in which an upload's complete blobs lie."""
        ...

    def complete(self, upload: str, blobs: Sequence[StoredBlob], *, proof: bool) -> list[Location]:
        """Records blobs that an upload brought, and completes its entries; a damaged blob is replaced.

        ``proof`` notes that the upload's identity wrote them. Returns the places not needed: of blobs that were
        there, and of damaged ones. An upload that is gone makes all of them not needed.
        """
        ...

    def extend(self, upload: str, expire_time: float, *, seal: bool = False) -> None:
        """Moves an upload's expiry on, never back; ``seal`` also keeps it from being aborted."""
        ...

    def abort(self, upload: str) -> bool:
        """Removes an upload unless it is sealed; says whether it was there and is gone."""
        ...

    def expire(self, as_of: float) -> list[str]:
        """Removes the uploads that had expired at ``as_of`` and returns which."""
        ...

    def count_expired(self, as_of: float) -> int:
        """Counts what ``expire`` would remove."""
        ...

    def find(self, tenant: str, digest: str) -> StoredBlob | None:
        """Returns a blob, a whole one before a damaged one."""
        ...

    def sizes(self, tenant: str, digests: Iterable[str]) -> list[tuple[str, int]]:
        """Returns digest and size of those blobs that are there and whole, in the order asked."""
        ...

    def mark_damaged(self, tenant: str, blob: StoredBlob) -> None:
        """Notes that a blob is damaged, unless it has moved or been replaced since."""
        ...

    def delete_unheld(self, tenant: str, digests: Iterable[str], *, as_of: float) -> Deletion:
        """Forgets blobs that no upload held at ``as_of`` or holds now; what is not there is passed over."""
        ...

    def tenants(self) -> list[str]:
        """Returns the tenants that have blobs."""
        ...

    def scan(self, tenant: str) -> Iterator[tuple[str, int, bool]]:
        """Yields digest, size and whether an upload holds it of every blob of a tenant, by digest, in several steps."""
        ...

    def contents(self, store: str, object: str) -> list[tuple[str, StoredBlob]]:
        """Returns the blobs (tenant, blob) that lie in an object."""
        ...

    def move(self, tenant: str, blob: StoredBlob, to: Location) -> bool:
        """Gives a blob another place if it still lies where ``blob`` says; says whether it did."""
        ...

    def adopt(self, tenant: str, blobs: Sequence[StoredBlob]) -> None:
        """Records whole blobs that were found in a store; those it knows stay as they are."""
        ...

    def is_settled(self) -> bool:
        """Says whether the index knows all that the stores held when it was made."""
        ...

    def settle(self) -> None:
        """Notes that it does."""
        ...

    def collecting(self) -> AbstractContextManager[None]:
        """Keeps any other collection out. Raises Aborted ``COLLECTING`` when one is under way."""
        ...

    def close(self) -> None:
        """Lets go of everything."""
        ...
