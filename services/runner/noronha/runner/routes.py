"""What the proxy is known to hold of a deployment, which is what decides when replicas may go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from google.rpc import status_pb2

from noronha.chassis.peers import Peers
from noronha.rpc.errors import NoronhaError, Unavailable, to_status
from noronha.runner import sessions
from noronha.v1 import router_pb2

PORT_PATIENCE = 5.0
"""Seconds after which a port that does not listen is asked about again."""

TIMEOUT = 10.0
"""Seconds that the proxy has to take routes before it is asked again."""

PROXY_PATIENCE = 5.0
"""Seconds without a proxy after which nothing can be routed any more, whatever was."""

log = logging.getLogger("noronha.runner")


class Wanted(NamedTuple):
    """What the proxy is to hold."""

    present: frozenset[str]
    """Names of the replicas that requests are to reach."""
    absent: frozenset[str]
    """Names of the replicas that no request may reach."""
    port: int
    """The deployment's own port, 0 for none."""


class Routes:
    """Has Router confirm what the proxy holds, beside everything else and with one question at a time.

    ``confirmed`` is called with what the proxy has taken, ``given_up`` when there has been no proxy for a while, and
    ``heard`` after every answer, whatever it was.
    """

    def __init__(
        self,
        peers: Peers,
        deployment: str,
        *,
        confirmed: Callable[[Wanted], None],
        given_up: Callable[[], None],
        heard: Callable[[], None],
    ) -> None:
        self._peers = peers
        self._deployment = deployment
        self._on_confirmed = confirmed
        self._on_given_up = given_up
        self._on_heard = heard
        self.error: status_pb2.Status | None = None
        """Why the last question was not answered as it should."""
        self.port_error = ""
        """Why the deployment's own port does not listen, '' when it does."""
        self._asking: asyncio.Task[None] | None = None
        self._confirmed: Wanted | None = None
        self._recalled: Wanted | None = None
        """What the record says was confirmed, until the proxy is heard of again."""
        self._port_asked = 0.0
        self._without_since = 0.0

    def recall(self, wanted: Wanted) -> None:
        """Takes something for held because the record says so, until the proxy is heard of."""
        self._recalled = wanted

    def forget_record(self) -> None:
        """Relies no longer on what the record said: something else is wanted now."""
        self._recalled = None

    def hold(self, wanted: Wanted) -> bool:
        """Says whether the proxy holds what it should, confirmed or by what the record tells from before a restart."""
        return wanted in (self._confirmed, self._recalled)

    def ask(self, wanted: Wanted) -> float | None:
        """Has the proxy's routes confirmed, unless they are, or a question is open.

        Returns when to ask again although nothing happened, by the monotonic clock: a port that another program held
        may be free by then.
        """
        if self._asking is not None:
            return None
        again_at = self._port_asked + PORT_PATIENCE if self.port_error and wanted.port else None
        if self._confirmed == wanted and (again_at is None or time.monotonic() < again_at):
            return again_at
        if not wanted.present and not wanted.absent:
            self._confirmed = wanted
            return None
        self._asking = asyncio.create_task(self._ask(wanted), name=f"routes of {self._deployment}")
        return None

    async def _ask(self, wanted: Wanted) -> None:
        try:
            answer = await self._peers.router.WaitForRoutes(
                router_pb2.WaitForRoutesRequest(
                    deployment=self._deployment,
                    present=sorted(wanted.present),
                    absent=sorted(wanted.absent),
                    timeout=sessions.seconds(TIMEOUT),
                ),
                timeout=TIMEOUT + 5,
            )
            self.error = None
            self._without_since = 0.0
            self.port_error = answer.port_error
            self._port_asked = time.monotonic()
            self._confirmed = wanted
            self._on_confirmed(wanted)
        except NoronhaError as error:
            log.info("the routes of %s are not confirmed: %s", self._deployment, error)
            self.error = to_status(error)
            self._without_since = self._without_since or time.monotonic()
            late = time.monotonic() - self._without_since > PROXY_PATIENCE
            if late and (error.reason == "PROXY_DOWN" or isinstance(error, Unavailable)):
                self._on_given_up()
            await asyncio.sleep(1.0)
        finally:
            self._asking = self._recalled = None
            self._on_heard()
