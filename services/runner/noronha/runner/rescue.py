"""Keeps the executed notebook of a task that was killed before it could send it."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

from noronha.chassis.peers import Peers
from noronha.v1 import store_pb2
from noronha.v1.file_pb2 import File

EXECUTED = Path("logs") / "executed.ipynb"
"""Where a task writes the notebook now and then, below its folder."""

MAX_BYTES = 512 << 20
_CHUNK = 1 << 20


async def executed_notebook(peers: Peers, folder: Path) -> File | None:
    """Uploads what a task's folder holds of its executed notebook, None when nothing. Raises OSError, NoronhaError."""
    path = folder / EXECUTED
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return None
    if size > MAX_BYTES:
        return None
    digest = await asyncio.to_thread(_digest, path)
    blob = store_pb2.Blob(digest=digest, size_bytes=size)
    upload = await peers.store.OpenUpload(store_pb2.OpenUploadRequest(entries=[blob]))
    if upload.missing:
        async for _ in peers.store.WriteBlobs(_chunks(path, upload.upload, digest, upload.missing[0].committed_offset)):
            pass
    return File(path=EXECUTED.name, digest=digest, size_bytes=size)


def discard(folder: Path) -> None:
    """Removes the file, once Store holds it."""
    (folder / EXECUTED).unlink(missing_ok=True)


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK):
            found.update(block)
    return f"sha256:{found.hexdigest()}"


async def _chunks(path: Path, upload: str, digest: str, offset: int) -> AsyncIterator[store_pb2.WriteBlobsRequest]:
    with open(path, "rb") as file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, _CHUNK):
            yield store_pb2.WriteBlobsRequest(
                upload=upload, digest=digest, offset=offset, data=data, crc32=zlib.crc32(data)
            )
            offset += len(data)
