"""Making a lost index anew from the stores: every object there says whose it is and what it holds."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator

from noronha.rpc.chunks import checksum
from noronha.rpc.errors import NoronhaError
from noronha.store import packs
from noronha.store.backend import Location, Objects, Reader, StoredBlob
from noronha.store.pieces import PIECE_BYTES, Pieces
from noronha.store.stores import Stores, digest_of, is_pack, tenant_of

log = logging.getLogger("noronha")


def is_needed(stores: Stores) -> bool:
    """Says whether the stores may hold what a new index does not know.

    An index beside empty stores knows all there is.
    """
    if stores.index.is_settled():
        return False
    if any(True for objects in stores.objects.values() for _ in objects.list()):
        return True
    stores.index.settle()
    return False


def adopt(stores: Stores) -> None:
    """Reads every object and records the blobs that are whole.

    Begun again where it was interrupted, it repeats harmlessly.
    """
    count = 0
    log.warning("the index is new and the stores are not empty: making it anew from what they hold")
    for store, objects in stores.objects.items():
        for found in list(objects.list()):
            blobs = list(_whole(store, objects, found.name, found.size))
            stores.index.adopt(tenant_of(found.name), blobs)
            count += len(blobs)
    stores.index.settle()
    log.warning("the index is made: %d blobs", count)


def _whole(store: str, objects: Objects, name: str, size: int) -> Iterator[StoredBlob]:
    try:
        reader = objects.open(name)
    except NoronhaError as error:
        log.error("%s of %s cannot be read: %s", name, store, error)
        return
    try:
        for digest, offset, length in _held(reader, name, size):
            pieces = _pieces(reader, digest, offset, length)
            if pieces is None:
                log.error("%s in %s of %s is damaged", digest, name, store)
            else:
                yield StoredBlob(digest, Location(store, name, offset, length), pieces)
    except NoronhaError as error:
        log.error("%s of %s cannot be read: %s", name, store, error)
    finally:
        reader.close()


def _held(reader: Reader, name: str, size: int) -> list[tuple[str, int, int]]:
    """Returns digest, offset and length of the blobs that an object says it holds."""
    single = digest_of(name)
    if single is not None:
        return [(single, 0, size)]
    return packs.contents(reader, size) if is_pack(name) else []


def _pieces(reader: Reader, digest: str, offset: int, length: int) -> bytes | None:
    """Returns the checksums of a blob's pieces, None when it is not what its digest says."""
    content, pieces = hashlib.sha256(), Pieces()
    for start in range(0, length, PIECE_BYTES):
        data = reader.read(offset + start, min(PIECE_BYTES, length - start))
        content.update(data)
        pieces.add(data, checksum(data))
    return pieces.packed() if digest == f"sha256:{content.hexdigest()}" else None
