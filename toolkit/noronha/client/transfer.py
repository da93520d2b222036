"""Moves files between this machine and Store: only what is missing, verified at both ends, going on after
interruptions.

A stream that is cut (the mesh was restarted, the network went away) is taken up again where it stood. What counts is
progress: only when none was made for ``patience`` seconds is the interruption raised. ``notice`` is told of one that
lasts, once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from noronha.client import local_files
from noronha.client.connection import Notice, silent
from noronha.client.folders import Unpacking
from noronha.client.local_files import LocalFile
from noronha.client.meter import Meter, Progress
from noronha.client.patience import PATIENCE, Patience, typed, typed_call
from noronha.rpc.chunks import CHUNK_BYTES, MAX_FILES, check_chunk, check_path, checksum, clash_of
from noronha.rpc.dial import new_request_id
from noronha.rpc.errors import DataLoss, InvalidArgument, NoronhaError, NotFound, OutOfRange, Unavailable
from noronha.v1 import file_pb2, store_pb2

if TYPE_CHECKING:
    from noronha.v1.store_pb2_grpc import StoreStub

_WORKERS = 4
_BEHIND_CHUNKS = 4
_REOPENINGS = 3
_REPEATS = 3


class Uploaded(NamedTuple):
    """Files that Store holds until they are published: the upload to name, and the files, sorted by path."""

    upload: str
    files: list[file_pb2.File]


def upload(
    store: StoreStub,
    files: Iterable[tuple[str, Path]],
    *,
    storage_class: file_pb2.StorageClass.ValueType = file_pb2.STORAGE_CLASS_STANDARD,
    progress: Progress | None = None,
    revive: Callable[[], None] | None = None,
    patience: float = PATIENCE,
    notice: Notice = silent,
) -> Uploaded:
    """Brings files, pairs of relative path and source, into Store, and returns what a publishing needs.

    Digests every file, offers the digests, sends only the bytes that are missing. ``revive`` is called while the mesh
    is away; ``noronha.client.connect.Mesh.revive`` starts an embedded one again. Raises InvalidArgument ``BAD_PATH``,
    ``NOT_A_FILE``, ``TOO_MANY_FILES``; NotFound for a file that is not there; FailedPrecondition ``FILE_CHANGED``,
    ``UNREADABLE``; ResourceExhausted ``NO_SPACE``; Unavailable after ``patience`` seconds without progress.
    """
    pairs = [(check_path(path), Path(source)) for path, source in files]
    _check_together([path for path, _ in pairs])
    meter = Meter(progress)
    local = _digest(pairs, meter)
    sending = _Sending(store, local, storage_class, meter, Patience(patience, revive, notice))
    name = sending.run()
    found = [
        file_pb2.File(path=each.path, digest=each.digest, size_bytes=each.size, executable=each.executable)
        for each in local
    ]
    return Uploaded(name, sorted(found, key=lambda each: each.path))


def download(
    store: StoreStub,
    files: Iterable[file_pb2.File],
    target: Path,
    *,
    progress: Progress | None = None,
    revive: Callable[[], None] | None = None,
    patience: float = PATIENCE,
    notice: Notice = silent,
    durable: bool = False,
) -> None:
    """Brings files from Store into the folder ``target``, all of them verified before any is seen there.

    A folder that is not there or empty appears in one step. In one that holds something the files are put one by one,
    each in one step, replacing those of the same path. ``durable`` flushes them to disk first. Raises InvalidArgument
    ``BAD_PATH``, ``NOT_A_FOLDER``; NotFound; DataLoss ``CHECKSUM_MISMATCH``; Unavailable after ``patience`` seconds
    without progress; FailedPrecondition ``UNWRITABLE``; ResourceExhausted ``NO_SPACE``.
    """
    wanted = list(files)
    _check_together([check_path(each.path) for each in wanted])
    meter = Meter(progress)
    meter.begin("receive", sum(each.size_bytes for each in wanted))
    waiting = Patience(patience, revive, notice)
    with Unpacking(Path(target), durable=durable) as unpacking:
        done = threading.Event()

        def fetch(file: file_pb2.File) -> None:
            with (
                unpacking.create(file.path, file.size_bytes, executable=file.executable) as append,
                _behind(append, file.size_bytes) as write,
            ):
                for data in read(store, file, patience=waiting):
                    if done.is_set():
                        return
                    write(data)
                    meter.add(len(data))

        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="download") as pool:
            fetching = [pool.submit(fetch, file) for file in sorted(wanted, key=lambda each: -each.size_bytes)]
            try:
                wait(fetching, return_when=FIRST_EXCEPTION)
                for each in fetching:
                    if each.done():
                        each.result()
            except BaseException:
                done.set()
                for each in fetching:
                    each.cancel()
                raise
        unpacking.publish()


def read(
    store: StoreStub, file: file_pb2.File, *, patience: float | Patience = PATIENCE, notice: Notice = silent
) -> Iterator[bytes]:
    """Yields the content of a file of Store in chunks; the last one comes only when the whole was right.

    Raises NotFound; DataLoss ``CHECKSUM_MISMATCH``; Unavailable after ``patience`` seconds without progress.
    """
    waiting = patience if isinstance(patience, Patience) else Patience(patience, None, notice)
    digest = hashlib.sha256()
    position = 0
    held = b""
    while True:
        call = store.ReadBlob(store_pb2.ReadBlobRequest(digest=file.digest, offset=position))
        first = True
        try:
            for answer in typed(call):
                if first and answer.size_bytes != file.size_bytes:
                    raise _not_as_recorded(file, f"{answer.size_bytes} bytes in the store, not {file.size_bytes}")
                first = False
                check_chunk(answer.data, answer.crc32, file.digest)
                if answer.offset != position:
                    raise _not_as_recorded(file, f"a chunk at {answer.offset}, not at {position}")
                digest.update(answer.data)
                position += len(answer.data)
                waiting.moved()
                if held:
                    yield held
                held = answer.data
            break
        except NoronhaError as error:
            waiting.bear(error)
        finally:
            call.cancel()
    if position != file.size_bytes or f"sha256:{digest.hexdigest()}" != file.digest:
        raise _not_as_recorded(file, "other content than its digest says")
    if held:
        yield held


@contextlib.contextmanager
def _behind(write: Callable[[bytes], None], size: int) -> Iterator[Callable[[bytes], None]]:
    """Lets a thread do the writing, a few chunks behind, so that receiving goes on meanwhile; small files need none."""
    if size <= _BEHIND_CHUNKS * CHUNK_BYTES:
        yield write
        return
    waiting: queue.Queue[bytes | None] = queue.Queue(_BEHIND_CHUNKS)
    failure: list[BaseException] = []

    def work() -> None:
        while (data := waiting.get()) is not None:
            if not failure:
                try:
                    write(data)
                except BaseException as error:
                    failure.append(error)

    def put(data: bytes) -> None:
        if failure:
            raise failure[0]
        waiting.put(data)

    thread = threading.Thread(target=work, name="download-write", daemon=True)
    thread.start()
    try:
        yield put
    finally:
        waiting.put(None)
        thread.join()
    if failure:
        raise failure[0]


def _not_as_recorded(file: file_pb2.File, what: str) -> DataLoss:
    return DataLoss(
        f"{file.path} ({file.digest}) has {what}; upload it again", reason="CHECKSUM_MISMATCH", digest=file.digest
    )


class _Sending:
    """One upload on its way."""

    def __init__(
        self,
        store: StoreStub,
        files: list[LocalFile],
        storage_class: file_pb2.StorageClass.ValueType,
        meter: Meter,
        patience: Patience,
    ) -> None:
        self._store = store
        self._blobs = {file.digest: file for file in files}
        self._storage_class = storage_class
        self._meter = meter
        self._patience = patience
        self._damaged: dict[str, int] = {}

    def run(self) -> str:
        """Sends what is missing and returns the upload's name."""
        opened = self._open()
        reopenings = 0
        self._meter.begin("send", sum(self._blobs[each.digest].size for each in opened.missing))
        while opened.missing:
            self._meter.left(sum(self._blobs[each.digest].size - each.committed_offset for each in opened.missing))
            try:
                if self._send(opened):
                    break
                self._patience.bear(Unavailable("the store ended the upload before all of it had arrived"))
            except NoronhaError as error:
                self._bear(error)
            try:
                opened = self._get(opened.upload)
            except NotFound:
                reopenings += 1
                if reopenings > _REOPENINGS:
                    raise
                opened = self._open()
        self._meter.left(0)
        return opened.upload

    def _get(self, name: str) -> store_pb2.Upload:
        return self._ask(lambda: self._store.GetUpload(store_pb2.GetUploadRequest(upload=name)))

    def _open(self) -> store_pb2.Upload:
        request = store_pb2.OpenUploadRequest(storage_class=self._storage_class, request_id=new_request_id())
        for digest, file in self._blobs.items():
            request.entries.add(digest=digest, size_bytes=file.size)
        return self._ask(lambda: self._store.OpenUpload(request))

    def _ask(self, call: Callable[[], store_pb2.Upload]) -> store_pb2.Upload:
        while True:
            try:
                return typed_call(call)
            except NoronhaError as error:
                self._patience.bear(error)

    def _bear(self, error: NoronhaError) -> None:
        """Returns when it is worth going on after an error, raises it otherwise."""
        if isinstance(error, OutOfRange) and error.reason == "WRONG_OFFSET":
            self._patience.bear(Unavailable(error.message))
        elif isinstance(error, DataLoss) and (file := self._blobs.get(error.metadata.get("digest", ""))) is not None:
            local_files.check_unchanged(file)
            self._damaged[file.digest] = self._damaged.get(file.digest, 0) + 1
            if self._damaged[file.digest] >= _REPEATS:
                raise error
        elif not isinstance(error, NotFound) or "upload" not in error.metadata:
            self._patience.bear(error)

    def _send(self, opened: store_pb2.Upload) -> bool:
        """Sends what is missing in one stream, and says whether Store now has all of it."""
        failure: list[Exception] = []

        def requests() -> Iterator[store_pb2.WriteBlobsRequest]:
            name = opened.upload
            try:
                for blob in opened.missing:
                    digest = blob.digest
                    for offset, data in local_files.chunks(self._blobs[digest], blob.committed_offset):
                        yield store_pb2.WriteBlobsRequest(
                            upload=name, digest=digest, offset=offset, data=data, crc32=checksum(data)
                        )
                        name = digest = ""
                        self._meter.add(len(data))
                    if digest:
                        # Every byte is there already and the last word on them was lost.
                        yield store_pb2.WriteBlobsRequest(upload=name, digest=digest, offset=blob.committed_offset)
                        name = ""
            except Exception as error:
                # gRPC would log it and hide it. The stream ends here, and it is raised where the upload was asked for.
                failure.append(error)

        waiting = {blob.digest for blob in opened.missing}
        try:
            for answer in typed(self._store.WriteBlobs(requests())):
                self._patience.moved(answer.committed_offset)
                if answer.complete:
                    waiting.discard(answer.digest)
        except NoronhaError:
            if failure:
                raise failure[0] from None
            raise
        if failure:
            raise failure[0]
        return not waiting


def _digest(pairs: list[tuple[str, Path]], meter: Meter) -> list[LocalFile]:
    total = 0
    for _, source in pairs:
        try:
            total += os.stat(source, follow_symlinks=False).st_size
        except OSError:
            pass  # said properly when it is opened
    meter.begin("digest", total)
    if len(pairs) == 1:
        return [local_files.digested(*pairs[0], told=meter.add)]
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1), thread_name_prefix="digest") as pool:
        digesting = [pool.submit(local_files.digested, *pair, told=meter.add) for pair in pairs]
        try:
            return [each.result() for each in digesting]
        except BaseException:
            for each in digesting:
                each.cancel()
            raise


def _check_together(paths: list[str]) -> None:
    """Raises InvalidArgument ``TOO_MANY_FILES``, or ``BAD_PATH`` when two paths cannot be in one folder."""
    if len(paths) > MAX_FILES:
        raise InvalidArgument(
            f"{len(paths)} files are more than {MAX_FILES}; put some together in an archive",
            reason="TOO_MANY_FILES", count=len(paths), limit=MAX_FILES,
        )  # fmt: skip
    if clash := clash_of(paths):
        index, why = clash
        raise InvalidArgument(f"{paths[index]!r} {why}; rename one of them", reason="BAD_PATH", path=paths[index])
