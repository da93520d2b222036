"""Small work on files and folders of the builder's own state: whole or not at all, and clear words for a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from noronha.rpc.disk import is_full
from noronha.rpc.errors import FailedPrecondition, ResourceExhausted


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Turns errors of a disk into ResourceExhausted ``NO_SPACE`` or FailedPrecondition ``STATE_DIR_READ_ONLY``."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise no_space(folder) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise FailedPrecondition(
                f"cannot write to {error.filename or folder}: {error.strerror}; make it writable or set mesh.state_dir",
                reason="STATE_DIR_READ_ONLY", folder=folder,
            ) from error  # fmt: skip
        raise


def no_space(folder: Path) -> ResourceExhausted:
    """Returns the error for a full disk."""
    return ResourceExhausted(
        f"no space left for the build in {folder} or uv's cache; free some and build again",
        reason="NO_SPACE",
        folder=folder,
    )


def digest_of_json(content: Any) -> str:
    """Returns the SHA-256 of a value's JSON, hexadecimal, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the object in a file; None when there is no such file or it was cut short."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def write_json(path: Path, content: dict[str, Any], work: Path) -> None:
    """Writes an object to a file in one step; ``work`` is a folder of the same disk for what is on its way."""
    write(path, json.dumps(content).encode(), work)


def write(path: Path, content: bytes, work: Path) -> None:
    """Writes a file in one step; ``work`` is a folder of the same disk for what is on its way."""
    partial = work / f"file-{uuid.uuid4().hex}"
    partial.write_bytes(content)
    partial.replace(path)


def publish(partial: Path, folder: Path) -> None:
    """Puts a finished folder in its place in one step. One that is there already, but broken, makes room."""
    if os.path.lexists(folder):
        set_aside(folder, partial.parent)
    partial.rename(folder)


def set_aside(folder: Path, work: Path) -> Path:
    """Takes a folder away from its place in one step; returns where it is now, to be removed."""
    target = work / f"away-{uuid.uuid4().hex}"
    folder.rename(target)
    return target


def copy_writable(folder: Path, target: Path) -> None:
    """Copies a folder of read-only files to one whose files can be written."""
    shutil.copytree(folder, target, copy_function=shutil.copyfile)


def remove(folder: Path) -> None:
    """Removes a folder or file with all that is in it."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)


def size(folder: Path) -> int:
    """Returns the bytes of all files in a folder."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            total += os.lstat(os.path.join(path, name)).st_size
    return total
