"""The server's end of a stream of chunks: checks them, hashes them, lays them down, and says what has become durable.

Blobs are settled in groups, because flushing to disk costs the same for one as for a thousand: those that fit in one
chunk gather into a pack, larger ones are flushed side by side, and the index notes all of them in one step.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import Executor

from noronha.rpc.chunks import CHUNK_BYTES, check_chunk, check_digest, checksum
from noronha.rpc.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    OutOfRange,
)
from noronha.store import packs
from noronha.store.backend import Location, Session, Stage, StoredBlob
from noronha.store.pieces import Pieces
from noronha.store.stores import Stores, blob_object, pack_object, stage_key
from noronha.store.uploads import LIFETIME
from noronha.v1 import store_pb2

_GROUP_BLOBS = 16
"""Blobs of more than a chunk that wait for their group; each keeps a file open."""

_TELL_BYTES = 16 << 20
"""Kept bytes after which a blob's progress is told again."""

_EXTEND_SECONDS = 60.0
"""Time after which writing moves an upload's expiry on; doing so for each chunk would be a flush to disk for each."""


class _Incoming:
    """A blob that arrives in several chunks."""

    def __init__(self, stage: Stage, digest: str, size: int) -> None:
        self.stage = stage
        self.digest = digest
        self.size = size
        self.told = stage.size
        self.hash = hashlib.sha256()
        self.pieces = Pieces()
        if stage.size > size:
            stage.discard()
            raise DataLoss(
                f"more of {digest} was kept than it has; send it again", reason="CHECKSUM_MISMATCH", digest=digest
            )
        for data in stage.replay():
            self._count(data, checksum(data))

    def _count(self, data: bytes, crc32: int) -> None:
        self.hash.update(data)
        self.pieces.add(data, crc32)

    def append(self, data: bytes, crc32: int) -> None:
        self.stage.append(data)
        self._count(data, crc32)


class Writer:
    """One stream of ``WriteBlobs`` into an upload. Methods block; one thread at a time.

    ``flushers`` is an executor, other than the one these methods run in, that finishes blobs side by side.
    """

    def __init__(self, stores: Stores, session: Session, *, proof: bool, flushers: Executor) -> None:
        self._stores = stores
        self._index = stores.index
        self._objects = stores.of(session.store)
        self._session = session
        self._proof = proof
        self._flushers = flushers
        entries = self._index.entries(session.upload)
        self._sizes = {entry.digest: entry.size for entry in entries}
        self._complete = {entry.digest for entry in entries if entry.complete}
        self._digest = ""
        self._incoming: dict[str, _Incoming] = {}
        self._small: dict[str, tuple[bytes, int]] = {}
        self._small_bytes = 0
        self._whole: dict[str, _Incoming] = {}
        self._extended = time.time()

    def take(self, requests: Sequence[store_pb2.WriteBlobsRequest]) -> list[store_pb2.WriteBlobsResponse]:
        """Takes messages and returns what is to be answered.

        Raises OutOfRange ``WRONG_OFFSET``; DataLoss ``CHECKSUM_MISMATCH``; Aborted ``BLOB_BUSY``; FailedPrecondition
        ``BLOB_NOT_OFFERED``; InvalidArgument; ResourceExhausted ``NO_SPACE``. What came before is settled by
        ``settle``.
        """
        answers = []
        for request in requests:
            answers += self._take(request)
            if self._small_bytes >= packs.MAX_PACK_BYTES or len(self._whole) >= _GROUP_BLOBS:
                answers += self.settle()
        if time.time() - self._extended > _EXTEND_SECONDS:
            self._extended = time.time()
            self._index.extend(self._session.upload, self._extended + LIFETIME)
        return answers

    def _take(self, request: store_pb2.WriteBlobsRequest) -> list[store_pb2.WriteBlobsResponse]:
        if request.digest:
            self._digest = check_digest(request.digest)
        digest = self._digest
        size = self._sizes.get(digest)
        if size is None:
            if not digest and not request.data:
                return []  # a first message may name the upload and nothing else
            raise FailedPrecondition(
                f"{digest or 'a blob without a digest'} was not offered to this upload; open one that names it",
                reason="BLOB_NOT_OFFERED", digest=digest,
            )  # fmt: skip
        if digest in self._complete:
            return [_answer(digest, size, complete=True)]
        if digest in self._small or digest in self._whole:
            return []  # all there; the answer comes with its group
        data = request.data
        if len(data) > CHUNK_BYTES:
            raise InvalidArgument(
                f"a chunk of {len(data)} bytes is larger than {CHUNK_BYTES}; cut it", reason="CHUNK_TOO_LARGE",
                size_bytes=len(data),
            )  # fmt: skip
        check_chunk(data, request.crc32, digest)
        if request.offset == 0 and len(data) == size and digest not in self._incoming and size <= packs.MAX_BLOB_BYTES:
            _check_content(hashlib.sha256(data).hexdigest(), digest)
            self._small[digest] = (data, request.crc32)
            self._small_bytes += size
            return []
        return self._take_part(digest, size, request.offset, data, request.crc32)

    def _take_part(
        self, digest: str, size: int, offset: int, data: bytes, crc32: int
    ) -> list[store_pb2.WriteBlobsResponse]:
        blob = self._incoming.get(digest)
        if blob is None:
            if len(self._incoming) >= _GROUP_BLOBS:
                oldest = next(iter(self._incoming))
                self._incoming.pop(oldest).stage.close()
            stage = self._objects.stage(stage_key(self._session.upload, digest))
            try:
                blob = self._incoming[digest] = _Incoming(stage, digest, size)
            except BaseException:
                stage.close()
                raise
        if offset != blob.stage.size:
            raise OutOfRange(
                f"{digest} has {blob.stage.size} bytes so far; go on there, not at {offset}", reason="WRONG_OFFSET",
                digest=digest, committed_offset=blob.stage.size,
            )  # fmt: skip
        if offset + len(data) > size:
            raise InvalidArgument(
                f"{digest} was offered with {size} bytes and more arrive", reason="BLOB_TOO_LONG", digest=digest
            )
        blob.append(data, crc32)
        if blob.stage.size < size:
            kept = blob.stage.kept
            if kept - blob.told < _TELL_BYTES:
                return []
            blob.told = kept
            return [_answer(digest, kept)]
        del self._incoming[digest]
        try:
            _check_content(blob.hash.hexdigest(), digest)
        except DataLoss:
            blob.stage.discard()
            raise
        self._whole[digest] = blob
        return []

    @property
    def unsettled(self) -> bool:
        """Whether blobs wait for their group."""
        return bool(self._small or self._whole)

    def settle(self) -> list[store_pb2.WriteBlobsResponse]:
        """Makes durable every blob that is whole, and returns an answer for each.

        Raises ResourceExhausted, NotFound.
        """
        if not self.unsettled:
            return []
        small, whole = self._small, list(self._whole.values())
        self._small, self._small_bytes, self._whole = {}, 0, {}
        blobs: list[StoredBlob] = []
        failures: list[NoronhaError] = []
        finishing = [self._flushers.submit(self._finish, blob) for blob in whole]
        try:
            blobs += self._pack(small)
        except NoronhaError as error:
            failures.append(error)
        for each in finishing:
            try:
                blobs.append(each.result())
            except NoronhaError as error:
                failures.append(error)
        surplus = self._index.complete(self._session.upload, blobs, proof=self._proof)
        unused(self._stores, surplus)
        if failures:
            raise failures[0]
        if self._index.find_upload(self._session.upload) is None:
            raise NotFound(f"upload {self._session.upload} was given up meanwhile", upload=self._session.upload)
        self._complete.update(blob.digest for blob in blobs)
        return [_answer(blob.digest, blob.location.length, complete=True) for blob in blobs]

    def _finish(self, blob: _Incoming) -> StoredBlob:
        name = blob_object(self._session.tenant, blob.digest)
        try:
            blob.stage.finish(name)
        finally:
            blob.stage.close()
        return StoredBlob(blob.digest, Location(self._session.store, name, 0, blob.size), blob.pieces.packed())

    def _pack(self, small: dict[str, tuple[bytes, int]]) -> list[StoredBlob]:
        if not small:
            return []
        if len(small) == 1:
            ((digest, (data, _)),) = small.items()
            name = blob_object(self._session.tenant, digest)
            parts, locations = [data], [Location(self._session.store, name, 0, len(data))]
        else:
            name = pack_object(self._session.tenant)
            parts, locations = packs.layout(
                self._session.store, name, [(digest, data) for digest, (data, _) in small.items()]
            )
        self._objects.put(name, parts)
        return [
            StoredBlob(digest, location, crc32.to_bytes(4, "little"))
            for (digest, (_, crc32)), location in zip(small.items(), locations, strict=True)
        ]

    def close(self) -> None:
        """Ends the writing; what arrived of blobs that are not whole stays for the next stream."""
        for blob in [*self._incoming.values(), *self._whole.values()]:
            blob.stage.close()
        self._incoming.clear()
        self._whole.clear()


def unused(stores: Stores, locations: Sequence[Location]) -> int:
    """Deletes the objects of these places that hold nothing else any more, and returns how many."""
    deleted = 0
    for store, name in {(each.store, each.object) for each in locations if each.object}:
        if not stores.index.contents(store, name):
            stores.of(store).delete(name)
            deleted += 1
    return deleted


def _answer(digest: str, committed: int, *, complete: bool = False) -> store_pb2.WriteBlobsResponse:
    return store_pb2.WriteBlobsResponse(digest=digest, committed_offset=committed, complete=complete)


def _check_content(hexadecimal: str, digest: str) -> None:
    if digest != f"sha256:{hexadecimal}":
        raise DataLoss(
            f"what arrived is not {digest}; the file changed while it was read, or was damaged on its way",
            reason="CHECKSUM_MISMATCH", digest=digest,
        )  # fmt: skip
