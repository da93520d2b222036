"""A Store of the tests' own: a process on a socket, with its folder at hand, that can be killed and started again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc

from noronha.chassis import principals
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc.dial import dial
from noronha.v1 import store_pb2, store_pb2_grpc

CHUNK = 1 << 20


class Rig:
    """A Store process and its state."""

    def __init__(self, *, limits: str = "", services: tuple[str, ...] = ("store",)) -> None:
        # Sockets have short paths, and those that pytest makes are long.
        self.root = Path(tempfile.mkdtemp(prefix="nha-store-"))
        self.state = self.root / "state"
        self.address = f"unix:{self.root / 'sock'}"
        self._limits = limits
        self._services = services
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: list[grpc.Channel] = []

    @property
    def objects(self) -> Path:
        """Folder of the stored files."""
        return self.state / "store" / "objects"

    @property
    def staging(self) -> Path:
        """Folder of what is on its way."""
        return self.state / "store" / "staging"

    @property
    def process_id(self) -> int:
        """Process id of the server."""
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> None:
        """Starts the server; returns once it answers."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
        environment["HOME"] = str(self.root)
        command = [sys.executable, "-m", "noronha.chassis", *self._services, "--listen", self.address]
        command += ["--state-dir", str(self.state)]
        if self._limits:
            command = ["/bin/sh", "-c", f'{self._limits}; exec "$@"', "sh", *command]
        with open(self.root / "errors", "ab") as errors:
            self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=errors)
        deadline = time.monotonic() + 30
        while wait and not self._answers():
            assert self._process.poll() is None, self.errors()
            assert time.monotonic() < deadline, self.errors()

    def _answers(self) -> bool:
        with grpc.insecure_channel(self.address) as channel:
            try:
                grpc.channel_ready_future(channel).result(0.2)
            except grpc.FutureTimeoutError:
                return False
        return True

    def errors(self) -> str:
        """What the server wrote to standard error."""
        return (self.root / "errors").read_text()

    def wait(self, seconds: float = 30) -> int:
        """Returns the server's exit code once it has ended."""
        assert self._process is not None
        return self._process.wait(seconds)

    def kill(self) -> None:
        """Ends the server without any warning."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(30)

    def stop(self) -> None:
        """Asks the server to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def close(self) -> None:
        """Ends everything and removes the state."""
        for channel in self._channels:
            channel.close()
        self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def stub(self, kind: Kind | None = None, subject: str = "somebody", tenant: str = "") -> Any:
        """Returns a stub of Store, as the owner or as another principal."""
        token = None
        if kind is not None:
            tokens = Tokens(principals.load_key(self.state))
            token = tokens.mint(Principal(kind, subject, tenant or principals.DEFAULT_TENANT))
        channel = dial(self.address, token=token)
        self._channels.append(channel)
        return store_pb2_grpc.StoreStub(channel)

    def object_of(self, data: bytes) -> Path:
        """Returns the file that holds a blob by itself."""
        (found,) = self.objects.glob(f"*/blobs/*/{hashlib.sha256(data).hexdigest()}-*")
        return found


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Rig]:
    """Runs a Store of one's own."""
    rig = Rig(**options)
    try:
        rig.start()
        yield rig
    finally:
        rig.close()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def open_upload(store: Any, *data: bytes, **fields: Any) -> store_pb2.Upload:
    """Offers blobs."""
    request = store_pb2.OpenUploadRequest(**fields)
    for each in data:
        request.entries.add(digest=digest_of(each), size_bytes=len(each))
    return store.OpenUpload(request)


def messages(upload: str, *data: bytes, begin: int = 0, size: int = CHUNK) -> Iterator[store_pb2.WriteBlobsRequest]:
    """Yields the chunks of blobs, each from the byte ``begin`` on; an empty one where every byte is there already."""
    for each in data:
        for offset in range(begin, max(len(each), begin + 1), size):
            part = each[offset : offset + size]
            yield store_pb2.WriteBlobsRequest(
                upload=upload, digest=digest_of(each), offset=offset, data=part, crc32=zlib.crc32(part)
            )


def send(store: Any, requests: Iterable[store_pb2.WriteBlobsRequest]) -> list[store_pb2.WriteBlobsResponse]:
    """Sends chunks in one stream and returns the answers."""
    return list(store.WriteBlobs(iter(list(requests))))


def put(store: Any, *data: bytes) -> store_pb2.Upload:
    """Brings blobs into Store, whole."""
    upload = open_upload(store, *data)
    missing = {each.digest for each in upload.missing}
    if missing:
        send(store, messages(upload.upload, *(each for each in data if digest_of(each) in missing)))
    return upload


def fetch(store: Any, digest: str, offset: int = 0, limit: int = 0) -> bytes:
    """Returns a blob, or a part of it."""
    got = b""
    for answer in store.ReadBlob(store_pb2.ReadBlobRequest(digest=digest, offset=offset, limit=limit)):
        assert answer.offset == offset + len(got)
        assert zlib.crc32(answer.data) == answer.crc32
        assert len(answer.data) <= CHUNK
        got += answer.data
    return got
