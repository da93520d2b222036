"""Folders that files are unpacked into, without a path ever leading out of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from noronha.rpc.disk import is_full
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NoronhaError, ResourceExhausted

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_RESERVED_BYTES = 8 << 20


class Unpacking:
    """Files gathered in a private folder beside ``target``, put in place by ``publish``, gone when left without it.

    Paths must have passed ``noronha.rpc.chunks.check_path``; each part is opened below the one before, links are not
    followed. Methods may be called from several threads. Raises InvalidArgument ``NOT_A_FOLDER``, FailedPrecondition
    ``UNWRITABLE``, ResourceExhausted ``NO_SPACE``.
    """

    def __init__(self, target: Path, *, durable: bool) -> None:
        self._target = Path(os.path.realpath(target))
        self._durable = durable
        self._paths: list[str] = []
        if self._target.exists() and not self._target.is_dir():
            raise InvalidArgument(f"{target} is a file; name a folder", reason="NOT_A_FOLDER", path=target)

    def __enter__(self) -> Unpacking:
        with _typed(self._target):
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._whole = self._can_appear_whole()
            place = self._target.parent if self._whole else self._target
            self._private = Path(tempfile.mkdtemp(prefix=".nha-", dir=place))
            # A folder inside, because the outer one is private and this one is to be as open as folders usually are.
            self._files = self._private / "files"
            self._files.mkdir()
            self._root = os.open(self._files, _FOLDER)
        return self

    def _can_appear_whole(self) -> bool:
        """Whether the target can be replaced by renaming a folder onto it: not where it holds something, is a mount
        point, or lies in a folder of somebody else's."""
        try:
            parent, target = os.stat(self._target.parent), os.stat(self._target)
        except FileNotFoundError:
            return True
        return (
            parent.st_dev == target.st_dev
            and os.access(self._target.parent, os.W_OK)
            and not any(os.scandir(self._target))
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)
        shutil.rmtree(self._private, ignore_errors=True)

    @contextlib.contextmanager
    def create(self, path: str, size: int, *, executable: bool) -> Iterator[Callable[[bytes], None]]:
        """Makes a file that is to have ``size`` bytes, and yields what appends bytes to it."""
        *folders, name = path.split("/")

        def write(data: bytes) -> None:
            view = memoryview(data)
            with _typed(self._target):
                while view:
                    view = view[os.write(descriptor, view) :]

        with _below(self._root, folders, self._target) as folder:
            with _typed(self._target):
                descriptor = os.open(name, _NEW, 0o777 if executable else 0o666, dir_fd=folder)
            try:
                _reserve(descriptor, size, self._target)
                yield write
                if self._durable:
                    with _typed(self._target):
                        os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._paths.append(path)

    def publish(self) -> None:
        """Puts the files in place: the folder in one step where the target is absent or empty, else file by file."""
        with _typed(self._target):
            if self._whole:
                try:
                    os.rename(self._files, self._target)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                        raise
                    self._merge()  # somebody put something there meanwhile
                if self._durable:
                    _flush(self._target.parent)
            else:
                self._merge()

    def _merge(self) -> None:
        target = os.open(self._target, _FOLDER)
        try:
            for path in self._paths:
                *folders, name = path.split("/")
                with (
                    _below(self._root, folders, self._target) as source,
                    _below(target, folders, self._target) as place,
                ):
                    try:
                        os.rename(name, name, src_dir_fd=source, dst_dir_fd=place)
                    except IsADirectoryError:
                        raise FailedPrecondition(
                            f"{self._target / path} is a folder; move it away", reason="UNWRITABLE", path=path
                        ) from None
                    if self._durable:
                        os.fsync(place)
        finally:
            os.close(target)


def _reserve(descriptor: int, size: int, target: Path) -> None:
    """Takes the room of a large file at once: a full disk shows before the bytes travel, and writing is faster."""
    if size >= _RESERVED_BYTES:
        with _typed(target):
            try:
                os.posix_fallocate(descriptor, 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise


@contextlib.contextmanager
def _below(root: int, folders: list[str], target: Path) -> Iterator[int]:
    """Opens a folder below an open one, making what is missing."""
    current = os.dup(root)
    try:
        for name in folders:
            with _typed(target):
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, dir_fd=current)
                inner = os.open(name, _FOLDER, dir_fd=current)
            os.close(current)
            current = inner
        yield current
    finally:
        os.close(current)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, _FOLDER)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _typed(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _error(target, error) from error


def _error(target: Path, error: OSError) -> NoronhaError:
    if is_full(error):
        return ResourceExhausted(
            f"no space left for {target}: {error.strerror}; free some or choose another disk",
            reason="NO_SPACE",
            path=target,
        )
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return FailedPrecondition(
            f"{target} holds a file or a link where a folder is needed; move it away", reason="UNWRITABLE", path=target
        )
    return FailedPrecondition(f"cannot write into {target}: {error.strerror}", reason="UNWRITABLE", path=target)
