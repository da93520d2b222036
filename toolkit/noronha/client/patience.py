"""Interruptions of a transfer: which errors are worth waiting out, and for how long."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import grpc

from noronha.rpc.errors import (
    Aborted,
    Cancelled,
    DeadlineExceeded,
    Internal,
    NoronhaError,
    Unavailable,
    Unknown,
    from_rpc,
)

PATIENCE = 120.0
"""Seconds without progress after which an interruption is raised."""

Result = TypeVar("Result")


class Patience:
    """Waits out interruptions, as long as there is progress between them."""

    def __init__(self, seconds: float, revive: Callable[[], None] | None) -> None:
        self._seconds = seconds
        self._revive = revive
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._pause = 0.0

    def moved(self, count: int = 1) -> None:
        """Notes progress, unless ``count`` is 0."""
        if count:
            self._last = time.monotonic()
            self._pause = 0.0

    def bear(self, error: NoronhaError) -> None:
        """Waits a while after an interruption. Raises any other error, and this one when it has lasted too long."""
        left = self._last + self._seconds - time.monotonic()
        if not _is_interruption(error) or left <= 0:
            raise error
        with self._lock:
            self._pause = min(max(0.05, self._pause * 2), 2.0)
            pause = min(self._pause * random.uniform(0.5, 1.0), left)
        time.sleep(pause)
        if self._revive is not None and isinstance(error, Unavailable):
            try:
                self._revive()
            except Unavailable as gone:
                if gone.reason == "MESH_STOPPED":
                    raise
                # asked again after the next try


def _is_interruption(error: NoronhaError) -> bool:
    if isinstance(error, Unavailable | DeadlineExceeded):
        return True
    if isinstance(error, Aborted):
        return error.reason == "BLOB_BUSY"
    # A connection that breaks in the middle of a stream shows as one of these, without any word of a server's own.
    return isinstance(error, Cancelled | Unknown | Internal) and not error.metadata


def typed_call(call: Callable[[], Result]) -> Result:
    """Makes a call with typed errors, also on a channel that ``noronha.rpc.dial`` did not make."""
    try:
        return call()
    except grpc.RpcError as error:
        raise from_rpc(error) from None


def typed(answers: Iterable[Result]) -> Iterator[Result]:
    """Yields a stream's answers with typed errors, also on a channel that ``noronha.rpc.dial`` did not make."""
    try:
        yield from answers
    except grpc.RpcError as error:
        raise from_rpc(error) from None
