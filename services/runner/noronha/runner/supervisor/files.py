"""Small files that are there whole or not at all, and the copy of a project's source."""

from __future__ import annotations

import json
import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BLOCK = 16 << 20


def write_json(path: str, content: dict[str, Any]) -> None:
    """Puts a JSON object at a path in one step, readable by its owner only."""
    partial = f"{path}.{os.getpid()}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(partial, path)


def read_json(path: str) -> dict[str, Any] | None:
    """Returns the JSON object at a path, None when there is none."""
    try:
        with open(path, encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
            return content
    except (FileNotFoundError, ValueError):
        return None


def copy_tree(source: str, target: str) -> None:
    """Copies what a folder holds into another one, which may exist; sharing blocks where the file system can.

    A copy and not links: a task may write into its project's folder and must not change the build that others run from.
    """
    os.makedirs(target, exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            place = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)
            elif entry.is_dir():
                copy_tree(entry.path, place)
            elif entry.is_file():
                _copy(entry.path, place)


def _copy(source: str, target: str) -> None:
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(read)
        mode = 0o644 | (status.st_mode & 0o111)  # a snapshot is read-only; its copy belongs to the task
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, stat.S_IMODE(mode))
        try:
            _transfer(read, write)
            os.utime(write, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(write)
    finally:
        os.close(read)


def _transfer(read: int, write: int) -> None:
    try:
        while os.copy_file_range(read, write, _BLOCK):
            pass
    except OSError:  # not between these file systems
        os.lseek(read, 0, os.SEEK_SET)
        os.lseek(write, 0, os.SEEK_SET)
        while block := os.read(read, _BLOCK):
            view = memoryview(block)
            while view:
                view = view[os.write(write, view) :]
