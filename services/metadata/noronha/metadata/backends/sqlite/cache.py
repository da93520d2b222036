"""Records read or written lately."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

from noronha.metadata.backend import Record
from noronha.metadata.backends.sqlite.writes import Applied

_CACHE_BYTES = 16 << 20
_CACHED_BODY = 64 << 10

Place = tuple[str, str, int | None]
"""Tenant, name and revision; None for what the bare name means."""


class Cache:
    """Records by their places.

    A read fills it only when no commit was under way from its begin to its end, so it never keeps what a commit has
    just replaced. Only this process writes the file, so nothing else can make it wrong.
    """

    def __init__(self) -> None:
        self._kept: dict[Place, Record] = {}
        self._size = 0
        self._epoch = 0
        self._committing = False
        self._lock = threading.Lock()

    def get(self, place: Place) -> Record | None:
        return self._kept.get(place)

    def begin(self) -> int:
        return -1 if self._committing else self._epoch

    def fill(self, place: Place, record: Record, begun: int) -> None:
        if len(record.body) > _CACHED_BODY:
            return
        with self._lock:
            if begun != self._epoch or self._committing or place in self._kept:
                return
            self._size += len(record.body) + 500
            if self._size > _CACHE_BYTES:
                for each in list(itertools.islice(self._kept, len(self._kept) // 2)):
                    self._drop(each)
            self._kept[place] = record

    def _drop(self, place: Place) -> None:
        record = self._kept.pop(place, None)
        if record is not None:
            self._size -= len(record.body) + 500

    def freeze(self, touched: Sequence[Applied]) -> None:
        """Forgets what a commit touches, and takes nothing in until it is over."""
        with self._lock:
            self._committing = True
            self._epoch += 1
            for tenant, key, _ in touched:
                self._drop((tenant, key.name, key.revision))
                self._drop((tenant, key.name, None))

    def thaw(self) -> None:
        """Takes in again what is read from now on."""
        with self._lock:
            self._committing = False
