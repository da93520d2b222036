"""The log of calls: a line of JSON for each, written with one system call.

Logging's own rotating handler asks the file system twice before every line, which a fast call would feel.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path


class CallLog:
    """Appends lines to a file, put aside as ``<name>.1`` when it has reached ``max_bytes``. Any thread may write.

    A disk that is full loses lines, never calls.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._file = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._file).st_size

    def write(self, now: float, request: str, method: str, principal: str, code: str, milliseconds: float) -> None:
        """Writes the line of one call; ``now`` in seconds since the epoch."""
        line = (
            f'{{"time":{now:.3f},"request":{json.dumps(request)},"method":"{method}",'
            f'"principal":{json.dumps(principal)},"code":"{code}","milliseconds":{milliseconds:.2f}}}\n'
        ).encode()
        with self._lock, contextlib.suppress(OSError):
            if self._size + len(line) > self._max_bytes:
                os.close(self._file)
                os.replace(self._path, f"{self._path}.1")
                self._open()
            self._size += os.write(self._file, line)

    def close(self) -> None:
        """Closes the file."""
        with self._lock, contextlib.suppress(OSError):
            os.close(self._file)
