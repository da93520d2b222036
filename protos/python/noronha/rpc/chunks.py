"""How bytes are cut for the wire, how digests are written, and which paths and sizes files may have."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence

from noronha.rpc.errors import DataLoss, InvalidArgument

CHUNK_BYTES = 1 << 20
"""Most bytes of a blob in one message: 1 MiB, well under gRPC's 4 MiB."""

MAX_FILES = 10_000
"""Most files of one upload, version, dataset or source."""

DEFAULT_MAX_MB = 2048
"""Largest size in MiB of a version's or a dataset's file whose definition names none."""

MAX_LIGHTWEIGHT_MB = 10
"""Largest size in MiB of a file in the store for small ones."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def check_digest(value: str, field: str = "digest") -> str:
    """Returns the digest. Raises InvalidArgument ``BAD_DIGEST`` unless it is ``sha256:`` and 64 hex digits."""
    if not _DIGEST.fullmatch(value):
        raise InvalidArgument(
            f"{field} {value[:80]!r} is not 'sha256:' and 64 lower-case hexadecimal digits",
            reason="BAD_DIGEST", violations=[(field, "is not a digest")], value=value[:80],
        )  # fmt: skip
    return value


def digest_of(hexadecimal: str) -> str:
    """Returns the digest for the hexadecimal text of a SHA-256."""
    return f"sha256:{hexadecimal}"


def checksum(data: bytes | memoryview) -> int:
    """Returns the CRC-32 of a chunk, as in zlib."""
    return zlib.crc32(data)


def check_chunk(data: bytes, crc32: int, digest: str) -> bytes:
    """Returns the chunk. Raises DataLoss ``CHECKSUM_MISMATCH`` when it was damaged on its way."""
    if zlib.crc32(data) != crc32:
        raise DataLoss(
            f"a chunk of {digest} was damaged on its way; send it again", reason="CHECKSUM_MISMATCH", digest=digest
        )
    return data


def check_path(path: str, field: str = "path") -> str:
    """Returns the relative file path. Raises InvalidArgument ``BAD_PATH`` when it could leave its folder."""
    why = ""
    try:
        encoded = path.encode("utf-8")
    except UnicodeEncodeError:
        encoded, why = b"", "is not valid UTF-8"
    if not why and (not path or len(encoded) > 1024):
        why = "must have 1 to 1,024 bytes"
    elif not why and any(part in ("", ".", "..") for part in path.split("/")):
        why = "must be relative, without '..', '.' or empty parts"
    elif not why and any(ord(character) < 32 or ord(character) == 127 for character in path):
        why = "holds control characters"
    elif not why and "\\" in path:
        why = "holds a backslash; write '/' between its parts"
    if why:
        raise InvalidArgument(
            f"file path {path[:80]!r} {why}", reason="BAD_PATH", violations=[(field, why)], path=ascii(path[:80])
        )
    return path


def clash_of(paths: Sequence[str]) -> tuple[int, str] | None:
    """Returns the place of a path that cannot be in one folder with the others, and why; None when all can.

    Two spellings of one text count as one path: nobody could tell the files apart.
    """
    spelled = [unicodedata.normalize("NFC", path) for path in paths]
    seen: set[str] = set()
    for index, path in enumerate(spelled):
        if path in seen:
            return index, "comes twice"
        seen.add(path)
    for index, path in enumerate(spelled):
        parts = path.split("/")
        if any("/".join(parts[:length]) in seen for length in range(1, len(parts))):
            return index, "lies below a path that is a file itself"
    return None
