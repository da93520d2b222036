"""Reading blobs, verified: nobody is ever given the whole of a blob that is not what its digest says."""

from __future__ import annotations

import hashlib
import logging
import zlib

from noronha.rpc.chunks import check_digest
from noronha.rpc.errors import DataLoss, InvalidArgument, NotFound, OutOfRange
from noronha.store import backend
from noronha.store.backend import StoredBlob
from noronha.store.pieces import PIECE_BYTES, unpacked
from noronha.store.stores import Stores
from noronha.v1 import store_pb2

_BATCH_PIECES = 2
"""Pieces read in one go: enough to keep the disk busy, few enough for many readers at once."""

log = logging.getLogger("noronha")


class Reader:
    """One ``ReadBlob``: gives a blob, or a part of it, in verified batches. Methods block; one thread at a time.

    Each piece is held against its checksum before any of it is given. When the whole blob is read, its last batch is
    given only after the digest of everything was right. A blob that is wrong is set aside, so that uploading it again
    heals it.
    """

    def __init__(self, stores: Stores, tenant: str, digest: str, offset: int, limit: int) -> None:
        """Raises InvalidArgument, NotFound, OutOfRange, DataLoss ``CHECKSUM_MISMATCH``."""
        self._stores = stores
        self._tenant = tenant
        if offset < 0 or limit < 0:
            raise InvalidArgument("offset and limit are at least 0", reason="BAD_RANGE", offset=offset, limit=limit)
        self._object: backend.Reader | None = None
        self._blob = self._open(check_digest(digest))
        self._size = self._blob.location.length
        if offset > self._size:
            self.close()
            raise OutOfRange(
                f"{digest} has {self._size} bytes; nothing begins at {offset}", reason="OFFSET_PAST_END",
                digest=digest, size_bytes=self._size,
            )  # fmt: skip
        self._begin = offset
        self._end = min(self._size, offset + limit) if limit else self._size
        self._pieces = unpacked(self._blob.pieces)
        self._next = offset // PIECE_BYTES
        self._hash = hashlib.sha256() if self._begin == 0 and self._end == self._size else None
        self._first = True

    def _open(self, digest: str) -> StoredBlob:
        """Finds the blob and opens its object. A blob that is being moved to another object is looked up again."""
        gone: StoredBlob | None = None
        while True:
            blob = self._stores.index.find(self._tenant, digest)
            if blob is None:
                raise NotFound(f"{digest} is not in the store", digest=digest)
            if blob.damaged:
                raise _damaged(digest)
            if not blob.location.object:
                return blob
            if blob == gone:
                raise self._set_aside(blob, "its object is gone")
            try:
                self._object = self._stores.of(blob.location.store).open(blob.location.object)
                return blob
            except NotFound:
                gone = blob

    def next(self) -> list[store_pb2.ReadBlobResponse]:
        """Returns the next answers, nothing at the end. Raises DataLoss ``CHECKSUM_MISMATCH``."""
        answers: list[store_pb2.ReadBlobResponse] = []
        while len(answers) < _BATCH_PIECES and self._next * PIECE_BYTES < self._end:
            start = self._next * PIECE_BYTES
            data = self._piece(start)
            head, tail = max(0, self._begin - start), min(len(data), self._end - start)
            crc32 = self._pieces[self._next]
            if head or tail < len(data):
                data = data[head:tail]
                crc32 = zlib.crc32(data)
            if data:
                answers.append(store_pb2.ReadBlobResponse(data=data, offset=start + head, crc32=crc32))
            self._next += 1
        if self._first:
            self._first = False
            if not answers:
                answers.append(store_pb2.ReadBlobResponse(offset=self._begin))
            answers[0].size_bytes = self._size
        if self._hash is not None and self._next * PIECE_BYTES >= self._size:
            if f"sha256:{self._hash.hexdigest()}" != self._blob.digest:
                raise self._set_aside(self._blob, "its digest differs")
            self._hash = None
        return answers

    def _piece(self, start: int) -> bytes:
        assert self._object is not None  # only an empty blob has none, and it has no pieces
        length = min(PIECE_BYTES, self._size - start)
        try:
            data = self._object.read(self._blob.location.offset + start, length)
        except DataLoss as error:
            raise self._set_aside(self._blob, error.message) from error
        if len(data) != length or zlib.crc32(data) != self._pieces[self._next]:
            raise self._set_aside(self._blob, f"the piece at {start} differs")
        if self._hash is not None:
            self._hash.update(data)
        return data

    def _set_aside(self, blob: StoredBlob, why: str) -> DataLoss:
        log.error("%s in %s of %s is damaged: %s", blob.digest, blob.location.object, blob.location.store, why)
        self._stores.index.mark_damaged(self._tenant, blob)
        return _damaged(blob.digest)

    def close(self) -> None:
        """Ends the reading."""
        if self._object is not None:
            self._object.close()
            self._object = None


def _damaged(digest: str) -> DataLoss:
    return DataLoss(
        f"the stored bytes of {digest} are damaged; upload the same file again to heal it",
        reason="CHECKSUM_MISMATCH", digest=digest,
    )  # fmt: skip
