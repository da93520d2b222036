"""Packs: objects that hold many small blobs, so that a version of a thousand files costs one object and one flush.

A pack is the blobs' bytes one after another, then a table of contents (SHA-256, offset and length of each), its
number of rows and a mark. The index knows where each blob lies; the table lets it be made anew from the objects
alone.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from noronha.store.backend import Location, Reader

MAX_BLOB_BYTES = 1 << 20
"""Largest blob that is packed: what travels in one chunk."""

MAX_PACK_BYTES = 8 << 20
"""Bytes of blobs after which a pack is closed."""

_ROW = struct.Struct("<32sQQ")
_END = struct.Struct("<Q8s")
_MARK = b"NHAPACK1"


def layout(store: str, name: str, blobs: Sequence[tuple[str, bytes]]) -> tuple[list[bytes], list[Location]]:
    """Returns the parts of the pack ``name`` of these blobs (digest, bytes), and where each of them lies in it."""
    parts, rows, locations = [], [], []
    offset = 0
    for digest, data in blobs:
        parts.append(data)
        rows.append(_ROW.pack(bytes.fromhex(digest.partition(":")[2]), offset, len(data)))
        locations.append(Location(store, name, offset, len(data)))
        offset += len(data)
    return [*parts, *rows, _END.pack(len(rows), _MARK)], locations


def contents(reader: Reader, size: int) -> list[tuple[str, int, int]]:
    """Returns digest, offset and length of the blobs of a pack of ``size`` bytes; nothing when it is not a pack."""
    if size < _END.size:
        return []
    count, mark = _END.unpack(reader.read(size - _END.size, _END.size))
    table = count * _ROW.size
    if mark != _MARK or table > size - _END.size:
        return []
    rows = _ROW.iter_unpack(reader.read(size - _END.size - table, table))
    return [(f"sha256:{digest.hex()}", offset, length) for digest, offset, length in rows]
