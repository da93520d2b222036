"""Who waits for changes: each is woken by what it cares for alone, so that idle watches cost a busy writer nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from noronha.metadata.backend import Change

Takes = Callable[[Change], bool]


class Waiters:
    """Those who wait, in one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], Takes] = {}

    async def wait(self, takes: Takes, seconds: float) -> None:
        """Returns at the next change that ``takes`` accepts, or after some time."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiting[future] = takes
        timer = loop.call_later(seconds, _settle, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.pop(future, None)

    def tell(self, changes: Iterable[Change]) -> None:
        """Wakes those who care for any of these changes."""
        told = [future for future, takes in self._waiting.items() if any(takes(change) for change in changes)]
        for future in told:
            _settle(future)

    def wake(self) -> None:
        """Wakes everybody."""
        for future in self._waiting:
            _settle(future)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
