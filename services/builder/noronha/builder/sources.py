"""Where a build's files come from: blobs that a client uploaded, or a folder that a repository was exported to."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from noronha.chassis.peers import Peers
from noronha.rpc import chunks
from noronha.rpc.errors import DataLoss, FailedPrecondition, InvalidArgument
from noronha.v1 import store_pb2
from noronha.v1.file_pb2 import File

_PIECE = 1 << 20


def check_files(files: Iterable[File]) -> list[File]:
    """Returns the files sorted by path.

    Raises InvalidArgument ``BAD_PATH``, ``BAD_DIGEST``, ``DUPLICATE_PATH``, ``TOO_MANY_FILES``.
    """
    found: list[File] = []
    for file in files:
        chunks.check_path(file.path, "files.path")
        chunks.check_digest(file.digest, "files.digest")
        found.append(file)
        if len(found) > chunks.MAX_FILES:
            raise too_many()
    if clash := chunks.clash_of([file.path for file in found]):
        index, why = clash
        raise InvalidArgument(
            f"{found[index].path!r} {why}; rename one of them", reason="DUPLICATE_PATH",
            violations=[(f"files[{index}].path", why)], path=found[index].path,
        )  # fmt: skip
    return sorted(found, key=lambda file: file.path)


def too_many() -> InvalidArgument:
    """Returns the error for a source with too many files."""
    return InvalidArgument(
        f"a source has at most {chunks.MAX_FILES} files; list what is not needed in .dockerignore",
        reason="TOO_MANY_FILES",
    )


class UploadedTree:
    """Files whose bytes Store keeps."""

    def __init__(self, peers: Peers, files: Sequence[File]) -> None:
        """Takes files that ``check_files`` returned."""
        self.files = files
        self._peers = peers

    async def read(self, file: File) -> bytes:
        """Returns a file's content, verified."""
        return b"".join([piece async for piece in self._pieces(file)])

    async def write(self, file: File, target: Path) -> None:
        """Writes a file's content to a new file, verified."""
        with open(target, "xb") as out:
            async for piece in self._pieces(file):
                out.write(piece)

    async def _pieces(self, file: File) -> AsyncIterator[bytes]:
        found = hashlib.sha256()
        answers = self._peers.store.ReadBlob(store_pb2.ReadBlobRequest(digest=file.digest))
        async for answer in answers:
            piece = chunks.check_chunk(answer.data, answer.crc32, file.digest)
            found.update(piece)
            yield piece
        _check(file, found.hexdigest())


class FolderTree:
    """Files of a folder of the builder's own, which nobody else writes to."""

    def __init__(self, folder: Path, files: Sequence[File]) -> None:
        """Takes a folder that holds each file under its path."""
        self.files = files
        self._folder = folder

    async def read(self, file: File) -> bytes:
        """Returns a file's content, verified."""
        content = await asyncio.to_thread((self._folder / file.path).read_bytes)
        _check(file, hashlib.sha256(content).hexdigest())
        return content

    async def write(self, file: File, target: Path) -> None:
        """Writes a file's content to a new file, verified."""
        await asyncio.to_thread(self._copy, file, target)

    def _copy(self, file: File, target: Path) -> None:
        found = hashlib.sha256()
        with open(self._folder / file.path, "rb") as source, open(target, "xb") as out:
            while piece := source.read(_PIECE):
                found.update(piece)
                out.write(piece)
        _check(file, found.hexdigest())


def _check(file: File, hexadecimal: str) -> None:
    if chunks.digest_of(hexadecimal) != file.digest:
        raise DataLoss(
            f"the bytes of {file.path} are not those that were packed; upload the project again",
            reason="CHECKSUM_MISMATCH", path=file.path, digest=file.digest,
        )  # fmt: skip


def no_source(why: str) -> FailedPrecondition:
    """Returns the error for a build that names nothing to build from."""
    return FailedPrecondition(why, reason="NO_SOURCE")
