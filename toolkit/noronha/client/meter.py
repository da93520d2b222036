"""How far a transfer is."""

from __future__ import annotations

import threading
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Receives what is being done (``digest``, ``send``, ``receive``), the bytes done and the bytes there are. It may be
called from other threads than the caller's, though never from two at once."""


class Meter:
    """Counts bytes for a progress callback, from any thread."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._step = ""
        self._done = 0
        self._total = 0

    def begin(self, step: str, total: int) -> None:
        """Starts a step."""
        with self._lock:
            self._step, self._done, self._total = step, 0, total
            self._tell()

    def add(self, count: int) -> None:
        """Counts bytes that are done."""
        with self._lock:
            self._done = min(self._total, self._done + count)
            self._tell()

    def left(self, count: int) -> None:
        """Sets the bytes that are left, after an interruption perhaps more than it seemed."""
        with self._lock:
            self._done = max(0, self._total - count)
            self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._step, self._done, self._total)
