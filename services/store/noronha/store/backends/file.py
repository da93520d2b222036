"""Objects as files of a folder: ``objects/`` holds what is whole, ``staging/`` what is on its way.

An object appears by the renaming of a file that is on disk already, and its folder's entry is flushed before anybody
is told, so after a crash an object is there and whole or not there. The bytes of a stage are flushed beside the
writing, every few megabytes, so that finishing a large object does not wait for all of it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from noronha.rpc.disk import is_full
from noronha.rpc.errors import (
    Aborted,
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NoronhaError,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from noronha.store.backend import Found, Reader, Stage

_FLUSH_BYTES = 32 << 20
_REPLAY_BYTES = 1 << 20
_APPENDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME = re.compile(r"[A-Za-z0-9%_-][A-Za-z0-9._%-]*(?:/[A-Za-z0-9%_-][A-Za-z0-9._%-]*)*")


class FileObjects:
    """Objects below the folder that ``url`` names, ``file:/folder``; ``file:`` alone means ``objects`` in ``state``.

    Raises FailedPrecondition ``STORE_READ_ONLY``, ResourceExhausted ``NO_SPACE``, InvalidArgument ``BAD_SETTING``.
    """

    def __init__(self, url: str, state: Path) -> None:
        self.root = _folder(url, state)
        self._objects = self.root / "objects"
        self._staging = self.root / "staging"
        self._flusher = ThreadPoolExecutor(2, thread_name_prefix="store-flush")
        self._known: set[Path] = set()
        self._making = threading.Lock()
        with _typed(self.root):
            for folder in (self.root, self._objects, self._staging):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Permission bits do not tell a read-only mount or a full disk from a usable one; a file does.
            probe = self._staging / f"probe.{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
            for folder in (self.root.parent, self.root):
                _flush_folder(folder)

    def stage(self, key: str) -> Stage:
        path = self._place(self._staging, key)
        while True:
            with _typed(path):
                self._make(path.parent)
                try:
                    descriptor = os.open(path, _APPENDING, 0o600)
                except FileNotFoundError:
                    continue  # the folder was empty and has just been dropped
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Whoever had it open may have finished or discarded it between the opening and the lock.
                    if os.fstat(descriptor).st_nlink > 0 and _is(path, descriptor):
                        return _FileStage(self, path, descriptor)
                except BlockingIOError:
                    os.close(descriptor)
                    raise Aborted(
                        "another stream writes this blob; wait until it has ended", reason="BLOB_BUSY"
                    ) from None
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def staged(self, key: str) -> int:
        with _typed(self._staging):
            try:
                return self._place(self._staging, key).stat().st_size
            except FileNotFoundError:
                return 0

    def hand_over(self, key: str, to: str) -> bool:
        # Both are locked while the name changes. Who opened either of them before finds afterwards that what it opened
        # is no longer what its path names, and opens that anew.
        source = self.stage(key)
        try:
            if source.size == 0:
                source.discard()
                return False
            target = self.stage(to)
            try:
                if target.size > 0:
                    return False
                with _typed(self._staging):
                    os.rename(self._place(self._staging, key), self._place(self._staging, to))
                return True
            finally:
                target.close()
        finally:
            source.close()
            self.drop_empty(self._place(self._staging, key).parent)

    def discard(self, key: str) -> None:
        path = self._place(self._staging, key)
        with _typed(path):
            path.unlink(missing_ok=True)
            self.drop_empty(path.parent)

    def drop_empty(self, folder: Path) -> None:
        """Removes a folder of stages once it is empty; it is made again when one is opened."""
        with self._making, contextlib.suppress(OSError):
            if folder != self._staging:
                folder.rmdir()
                self._known.discard(folder)

    def stages(self) -> Iterator[Found]:
        return self._walk(self._staging)

    def put(self, name: str, parts: Sequence[bytes]) -> None:
        target = self._place(self._objects, name)
        partial = self._staging / f"put.{uuid.uuid4().hex}"
        with _typed(target):
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                with open(descriptor, "wb", buffering=0) as file:
                    _write(file.fileno(), b"".join(parts))
                    os.fsync(file.fileno())
                self._publish(partial, target)
            except BaseException:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise

    def open(self, name: str) -> Reader:
        path = self._place(self._objects, name)
        with _typed(path):
            try:
                return _FileReader(path, os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError:
                raise NotFound(f"there is no object {name}") from None

    def size(self, name: str) -> int | None:
        with _typed(self._objects):
            try:
                return self._place(self._objects, name).stat().st_size
            except FileNotFoundError:
                return None

    def lost(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self.size(name) is None]

    def delete(self, name: str) -> None:
        path = self._place(self._objects, name)
        with _typed(path):
            path.unlink(missing_ok=True)

    def list(self) -> Iterator[Found]:
        return self._walk(self._objects)

    def free_bytes(self) -> int | None:
        with _typed(self.root):
            return shutil.disk_usage(self.root).free

    def close(self) -> None:
        self._flusher.shutdown()

    def flush_beside(self, descriptor: int) -> Future[None]:
        """Begins to flush a file, in another thread."""
        return self._flusher.submit(os.fdatasync, descriptor)

    def publish(self, partial: Path, name: str) -> None:
        """Makes a flushed file the object ``name``, durably."""
        self._publish(partial, self._place(self._objects, name))

    def _publish(self, partial: Path, target: Path) -> None:
        self._make(target.parent)
        os.rename(partial, target)
        _flush_folder(target.parent)

    @staticmethod
    def _place(folder: Path, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise Internal(f"{name!r} is no name of an object")
        return folder / name

    def _make(self, folder: Path) -> None:
        """Makes a folder below the root; an entry of a new folder is on disk before anything is put into it."""
        if folder in self._known and folder.is_dir():
            return
        with self._making:
            missing = []
            each = folder
            while not each.is_dir():
                missing.append(each)
                each = each.parent
            for new in reversed(missing):
                new.mkdir(mode=0o700, exist_ok=True)
                _flush_folder(new.parent)
            self._known.add(folder)

    def _walk(self, folder: Path) -> Iterator[Found]:
        pending = [folder]
        while pending:
            with _typed(folder):
                try:
                    children = list(os.scandir(pending.pop()))
                except FileNotFoundError:
                    continue
            for child in children:
                try:
                    found = child.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    pending.append(Path(child.path))
                else:
                    name = os.path.relpath(child.path, folder)
                    yield Found(name, found.st_size, time.time() - found.st_mtime)


class _FileStage:
    """A stage: a file that grows, locked by its writer."""

    def __init__(self, objects: FileObjects, path: Path, descriptor: int) -> None:
        self._objects = objects
        self._path = path
        self._descriptor = descriptor
        with _typed(path):
            self.size = os.fstat(descriptor).st_size
        self._kept = 0
        self._flushing: tuple[int, Future[None]] | None = None

    @property
    def kept(self) -> int:
        if self._flushing is not None and self._flushing[1].done():
            self._flushed()
        return self._kept

    def _flushed(self) -> None:
        """Waits for the flush that was begun, if any."""
        if self._flushing is not None:
            size, flush = self._flushing
            self._flushing = None
            with _typed(self._path):
                try:
                    flush.result()
                except OSError:
                    # The system forgets what it could not write, and the next flush would not say so.
                    self._path.unlink(missing_ok=True)
                    raise
            self._kept = size

    def replay(self) -> Iterator[bytes]:
        position = 0
        while position < self.size:
            with _typed(self._path):
                data = os.pread(self._descriptor, _REPLAY_BYTES, position)
            if not data:
                raise DataLoss(f"{self._path} became shorter while it was written", reason="CHECKSUM_MISMATCH")
            position += len(data)
            yield data

    def append(self, data: bytes) -> None:
        with _typed(self._path):
            _write(self._descriptor, data)
        self.size += len(data)
        if self.size - self.kept >= _FLUSH_BYTES and self._flushing is None:
            self._flushing = (self.size, self._objects.flush_beside(self._descriptor))

    def finish(self, name: str) -> None:
        self._flushed()
        with _typed(self._path):
            os.fchmod(self._descriptor, 0o400)
            try:
                os.fsync(self._descriptor)
            except OSError:
                self._path.unlink(missing_ok=True)
                raise
            self._objects.publish(self._path, name)
        self._let_go()
        self._objects.drop_empty(self._path.parent)

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(NoronhaError):
                self._flushed()
            self._let_go()

    def discard(self) -> None:
        with contextlib.suppress(NoronhaError):
            self._flushed()
        with _typed(self._path):
            self._path.unlink(missing_ok=True)
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _FileReader:
    """An object's file."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self, offset: int, length: int) -> bytes:
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length:
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data
        except OSError as error:
            raise DataLoss(
                f"the disk cannot read {self._path}: {error.strerror}", reason="CHECKSUM_MISMATCH", path=self._path
            ) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _folder(url: str, state: Path) -> Path:
    path = urllib.parse.unquote(url.partition(":")[2])
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host or not slash:
            raise InvalidArgument(
                f"store.backend {url!r} names a host; write file:/folder", reason="BAD_SETTING", key="store.backend"
            )
        path = f"/{rest}"
    if not path:
        return state
    folder = Path(os.path.expanduser(path))
    if not folder.is_absolute():
        raise InvalidArgument(
            f"store.backend {url!r} is not an absolute folder; write file:/folder", reason="BAD_SETTING",
            key="store.backend",
        )  # fmt: skip
    return folder


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _typed(path: Path) -> Iterator[None]:
    """Raises the system's errors as the port's."""
    try:
        yield
    except OSError as error:
        raise _error(path, error) from error


def _error(path: Path, error: OSError) -> NoronhaError:
    why = error.strerror or str(error)
    if is_full(error):
        return ResourceExhausted(
            f"no space left for {path}: {why}; free some, or set store.backend to another disk",
            reason="NO_SPACE", path=path,
        )  # fmt: skip
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return FailedPrecondition(
            f"cannot write {path}: {why}; make it writable or set store.backend to another folder",
            reason="STORE_READ_ONLY", path=path,
        )  # fmt: skip
    return Unavailable(f"cannot use {path}: {why}; check its disk", reason="STORE_UNAVAILABLE", path=path)
