"""Files of this machine, opened so that what is digested is what is sent.

Only regular files are taken: anything else could block for ever, never end, or not be content at all. The last part
of a path is never followed when it is a symbolic link; who lists files decides about links and hands over where they
lead. A file that changes between its first and its last byte read is refused, since nobody could say which content
was meant.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from noronha.rpc.chunks import CHUNK_BYTES, digest_of
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NotFound

_OPENING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class LocalFile:
    """A file that was read to its end once."""

    path: str
    """Path that it has among the files it is uploaded with."""
    source: Path
    digest: str
    size: int
    executable: bool
    state: tuple[int, ...]
    """Device, inode, size and time of change at that moment."""


@contextmanager
def opened(source: Path) -> Iterator[int]:
    """Opens a regular file and yields its descriptor. Raises NotFound, InvalidArgument ``NOT_A_FILE``,
    FailedPrecondition ``UNREADABLE``."""
    try:
        descriptor = os.open(source, _OPENING)
    except FileNotFoundError:
        raise NotFound(f"there is no file {source}", path=source) from None
    except OSError as error:
        if Path(source).is_symlink():
            raise _no_file(source, "a symbolic link; name the file it leads to") from None
        if not _is_regular(source):
            raise _no_file(source, "no regular file (a socket or a device)") from None
        raise FailedPrecondition(f"cannot read {source}: {error.strerror}", reason="UNREADABLE", path=source) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device"}
            raise _no_file(source, kinds.get(stat.S_IFMT(mode), "no regular file"))
        yield descriptor
    finally:
        os.close(descriptor)


def digested(path: str, source: Path, *, told: Callable[[int], None] | None = None) -> LocalFile:
    """Reads a file to its end. ``told`` receives the number of bytes of each step. Raises as ``opened``, and
    FailedPrecondition ``FILE_CHANGED``."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with opened(source) as descriptor:
        before = os.fstat(descriptor)
        count = 0
        while size := os.readv(descriptor, [buffer]):
            digest.update(view[:size])
            count += size
            if told is not None:
                told(size)
            if count > before.st_size:
                break
        after = os.fstat(descriptor)
    if count != before.st_size or state_of(before) != state_of(after):
        raise changed(source)
    return LocalFile(
        path, source, digest_of(digest.hexdigest()), count, bool(before.st_mode & stat.S_IXUSR), state_of(before)
    )


def chunks(file: LocalFile, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yields offset and bytes of a file's chunks from ``offset`` on. Raises as ``opened``, and FailedPrecondition
    ``FILE_CHANGED`` before the last chunk when it is no longer the file that was digested."""
    with opened(file.source) as descriptor:
        while offset < file.size:
            data = os.pread(descriptor, CHUNK_BYTES, offset)
            last = offset + len(data) >= file.size
            if not data or offset + len(data) > file.size or (last and state_of(os.fstat(descriptor)) != file.state):
                raise changed(file.source)
            yield offset, data
            offset += len(data)


def check_unchanged(file: LocalFile) -> None:
    """Raises FailedPrecondition ``FILE_CHANGED`` unless a file's content is still what was digested."""
    if digested(file.path, file.source).digest != file.digest:
        raise changed(file.source)


def state_of(status: os.stat_result) -> tuple[int, ...]:
    """Returns what changes when a file's content does: device, inode, size, time of change."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def changed(source: Path) -> FailedPrecondition:
    """Returns the error for a file that changed while it was read."""
    return FailedPrecondition(
        f"{source} changed while it was being read; try again once nothing writes it",
        reason="FILE_CHANGED",
        path=source,
    )


def _is_regular(source: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(source, follow_symlinks=False).st_mode)
    except OSError:
        return True


def _no_file(source: Path, why: str) -> InvalidArgument:
    return InvalidArgument(f"{source} is {why}; only regular files can be stored", reason="NOT_A_FILE", path=source)
