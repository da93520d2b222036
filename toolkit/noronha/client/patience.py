"""Interruptions of a transfer: which errors are worth waiting out, and for how long."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import grpc

from noronha.client.connection import Notice, silent
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

TOLD_AFTER = 0.5
"""Seconds after which an interruption that lasts is told: long enough for one that the first repeats get over."""

Result = TypeVar("Result")


class Interruption:
    """One time in which what is asked does not answer: told once, when it has lasted for a moment."""

    def __init__(self, seconds: float, notice: Notice) -> None:
        self._seconds = seconds
        self._notice = notice
        self._began: float | None = None
        self._told = False

    def over(self) -> None:
        """Notes that there was an answer; the next failure begins another one."""
        self._began, self._told = None, False

    def failed(self, error: NoronhaError) -> None:
        """Notes a failure that is waited out."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        # A call that came to its deadline has stood for long before it failed.
        if not self._told and (now - self._began >= TOLD_AFTER or isinstance(error, DeadlineExceeded)):
            self._told = True
            self._notice(f"{_what(error)}; trying again for {_in_words(self._seconds)}")


def _what(error: NoronhaError) -> str:
    if error.address:
        return f"{error.service or 'the mesh'} at {error.address} does not answer"
    return error.message.partition(";")[0]


def _in_words(seconds: float) -> str:
    if seconds < 60 or seconds % 60:
        return f"{seconds:.0f} s"
    return "1 minute" if seconds == 60 else f"{seconds / 60:.0f} minutes"


class Patience:
    """Waits out interruptions, as long as there is progress between them; ``notice`` is told of one that lasts."""

    def __init__(self, seconds: float, revive: Callable[[], None] | None, notice: Notice = silent) -> None:
        self._seconds = seconds
        self._revive = revive
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self._pause = 0.0
        self._interruption = Interruption(seconds, notice)

    def moved(self, count: int = 1) -> None:
        """Notes progress, unless ``count`` is 0."""
        if count:
            self._last = time.monotonic()
            self._pause = 0.0
            self._interruption.over()

    def bear(self, error: NoronhaError) -> None:
        """Waits a while after an interruption. Raises any other error, and this one when it has lasted too long."""
        left = self._last + self._seconds - time.monotonic()
        if not _is_interruption(error) or left <= 0:
            raise error
        with self._lock:
            self._interruption.failed(error)
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
