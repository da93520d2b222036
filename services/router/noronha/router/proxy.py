"""Keeps Envoy running, and says how it stands: in the health of Router and in one line for people."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from noronha.router.discovery import Discovery
from noronha.router.edge import Edge
from noronha.router.envoy import Envoy
from noronha.router.resource_names import LISTENER, MAIN_LISTENER
from noronha.rpc.errors import FailedPrecondition

log = logging.getLogger("noronha.router")

CONNECT_TIMEOUT = 20.0
"""Seconds in which an Envoy that runs must have asked for its configuration; else it is started anew."""

CONNECT_LOOKS = 20
"""Parts in which that time is spent. One in which this process stood still counts for no more than another: Envoy had
no chance to ask meanwhile, and goes on serving."""

SHORT_LIFE = 5.0
"""Seconds; an Envoy that ends sooner would end again, so the next start waits."""

LOG_CHECK_INTERVAL = 60.0


@dataclass
class Proxy:
    """Envoy as Router sees it."""

    envoy: Envoy
    discovery: Discovery
    edge: Edge
    say: Callable[[bool, str], None]
    """Told whether predictions can come in, and if not, what to do about it."""
    stopped: bool = False
    """Whether Envoy was stopped on purpose and is to stay so."""

    async def keep(self) -> None:
        """Starts or adopts Envoy and starts it again whenever it ends, until cancelled."""
        pause = 0.0
        while not self.stopped:
            if self.envoy.running() and not self.envoy.current():
                log.info("Envoy was started by another release or with other settings; it is started anew")
                await self.envoy.stop()
            began = time.monotonic()
            try:
                adopted = not self.envoy.start()
            except FailedPrecondition as error:
                self.say(False, error.message)
                log.error("%s", error.message)
                return
            log.info("Envoy %s, process %s", "is adopted" if adopted else "is started", self.envoy.pid())
            await self._watch()
            if self.stopped:
                return
            lived = time.monotonic() - began
            pause = 0.0 if lived > SHORT_LIFE else min(max(pause * 2, 0.25), 5.0)
            words = self.envoy.last_words()
            log.warning("Envoy ended after %.1f s (status %s): %s", lived, self.envoy.reap(), words)
            if pause > 1:
                self.say(False, f"Envoy ends again and again: {words}; see {self.envoy.log_path}")
            await asyncio.sleep(pause)

    async def stop(self) -> None:
        """Stops Envoy for good."""
        self.stopped = True
        await self.envoy.stop()

    async def judge(self) -> None:
        """Says how the router's own port stands whenever a proxy has answered something."""
        said: tuple[bool, str] | None = None
        while True:
            streams = self.discovery.streams
            refusals = [why for each in streams if (why := each.refusal(LISTENER, MAIN_LISTENER))]
            found = None
            if refusals:
                found = False, taken(self.edge, refusals[0])
            elif any(each.accepts(LISTENER, MAIN_LISTENER) for each in streams):
                found = True, ""
            if found is not None and found != said:
                said = found
                self.say(*found)
                if not found[0]:
                    log.error("%s", found[1])
            await self.discovery.news()

    async def _watch(self) -> None:
        """Returns once Envoy has ended; ends it when it does not ask for its configuration."""
        ended = asyncio.create_task(self.envoy.ended())
        connected = asyncio.create_task(self._connected())
        try:
            await asyncio.wait({ended, connected}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not connected.result():
                log.warning("Envoy runs but does not ask for its configuration; it is started anew")
                await self.envoy.stop()
            while not ended.done():
                await asyncio.wait({ended}, timeout=LOG_CHECK_INTERVAL)
                await asyncio.to_thread(self.envoy.rotate_log)
        finally:
            ended.cancel()
            connected.cancel()

    async def _connected(self) -> bool:
        """Says whether a proxy asked for its configuration in time."""
        for _ in range(CONNECT_LOOKS):
            if await self.discovery.until(lambda: bool(self.discovery.streams), CONNECT_TIMEOUT / CONNECT_LOOKS):
                return True
        return False


def occupied(edge: Edge) -> str:
    """Says in one line why no proxy can listen for the router, as far as shows before one has tried; '' if it can."""
    family = socket.AF_INET6 if ":" in edge.host else socket.AF_INET
    try:
        with socket.create_server((edge.host, edge.port), family=family):
            return ""
    except OSError as error:
        why = "in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        return taken(edge, why)


def taken(edge: Edge, why: str) -> str:
    """Says in one line why the router's port does not listen and what to do."""
    if "in use" in why.lower():
        return f"port {edge.port} of {edge.host} is taken by another program; set router.port to a free one"
    return f"the router cannot listen on {edge.host}:{edge.port} ({why}); set router.host and router.port"
