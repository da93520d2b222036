"""Checksums of a blob's pieces, by which any part of it can be verified without reading the whole."""

from __future__ import annotations

import struct
import zlib

from noronha.rpc.chunks import CHUNK_BYTES

PIECE_BYTES = CHUNK_BYTES
"""Size of a piece, the last one of a blob excepted.

The same as the largest chunk, whose checksum is then the piece's too.
"""


class Pieces:
    """Gathers the checksums of a blob's pieces while its bytes go by."""

    def __init__(self) -> None:
        self._whole: list[int] = []
        self._crc = 0
        self._filled = 0

    def add(self, data: bytes, crc32: int) -> None:
        """Takes the next bytes and their CRC-32."""
        if self._filled == 0 and len(data) <= PIECE_BYTES:
            self._crc, self._filled = crc32, len(data)
            self._turn()
            return
        view = memoryview(data)
        while view:
            part = view[: PIECE_BYTES - self._filled]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += len(part)
            view = view[len(part) :]
            self._turn()

    def _turn(self) -> None:
        if self._filled == PIECE_BYTES:
            self._whole.append(self._crc)
            self._crc = self._filled = 0

    def packed(self) -> bytes:
        """Returns the checksums, four bytes each, little-endian."""
        last = [self._crc] if self._filled else []
        return struct.pack(f"<{len(self._whole) + len(last)}I", *self._whole, *last)


def unpacked(packed: bytes) -> tuple[int, ...]:
    """Returns the checksums of ``Pieces.packed``."""
    return struct.unpack(f"<{len(packed) // 4}I", packed)
