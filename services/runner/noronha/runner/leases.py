"""The right to write records: leases taken, kept while they are needed, and given back.

A run of Runner has a name of its own. Since only one run at a time opens a folder of state, the names of earlier runs
that are written there belong to runs that are over: their leases are taken over at once instead of waited for.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from pathlib import Path

from google.protobuf import duration_pb2

from noronha.chassis import principals
from noronha.chassis.peers import Peers
from noronha.chassis.principals import Principal
from noronha.rpc.errors import Aborted, FailedPrecondition, NoronhaError, NotFound
from noronha.v1 import records_pb2

LEASE = 60.0
"""Seconds for which a record stays ours without being renewed."""

RENEWED = 20.0
"""Seconds between renewals."""

_REMEMBERED = 16

log = logging.getLogger("noronha.runner")


class Leases:
    """The leases of one run."""

    def __init__(self, peers: Peers, folder: Path) -> None:
        self._peers = peers
        self._file = folder / "holders"
        self._earlier = self._file.read_text().split()[-_REMEMBERED:] if self._file.exists() else []
        self.holder = f"runner-{uuid.uuid4().hex}"
        self._write([*self._earlier, self.holder])
        self._fences: dict[tuple[str, str], int] = {}
        self._lost: dict[tuple[str, str], Callable[[], None]] = {}

    def _write(self, holders: list[str]) -> None:
        partial = self._file.with_name(f"{self._file.name}.new")
        partial.write_text("\n".join(holders) + "\n")
        partial.replace(self._file)

    def settle(self) -> None:
        """Forgets earlier runs, once everything that was theirs has been taken over."""
        self._earlier = []
        self._write([self.holder])

    @property
    def duration(self) -> duration_pb2.Duration:
        """How long a lease is asked for."""
        return duration_pb2.Duration(seconds=int(LEASE))

    def fence(self, name: str) -> int:
        """Returns the fence of a lease that we hold, 0 when we hold none."""
        return self._fences.get((principals.current().tenant, name), 0)

    def hold(self, lease: records_pb2.Lease, lost: Callable[[], None]) -> None:
        """Keeps a lease that came with a new record; ``lost()`` is called when somebody else gets it."""
        key = (principals.current().tenant, lease.name)
        self._fences[key] = lease.fence
        self._lost[key] = lost

    async def take(self, name: str, lost: Callable[[], None]) -> int:
        """Takes and keeps the lease of a record; returns its fence.

        Raises NotFound; FailedPrecondition ``LEASED`` while another run, which may be alive, holds it.
        """
        try:
            lease = await self._acquire(name, self.holder)
        except FailedPrecondition as error:
            if error.reason != "LEASED":
                raise
            lease = await self._take_over(name, error)
        self.hold(lease, lost)
        return lease.fence

    async def _take_over(self, name: str, held: FailedPrecondition) -> records_pb2.Lease:
        for earlier in reversed(self._earlier):
            try:
                old = await self._acquire(name, earlier)
            except FailedPrecondition:
                continue
            # Given back and taken anew, so that the fence rises and a write still on its way from then is refused.
            await self._peers.records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=name, fence=old.fence))
            return await self._acquire(name, self.holder)
        raise held

    async def _acquire(self, name: str, holder: str) -> records_pb2.Lease:
        request = records_pb2.AcquireLeaseRequest(name=name, holder=holder, duration=self.duration)
        lease: records_pb2.Lease = await self._peers.records.AcquireLease(request)
        return lease

    def drop(self, name: str) -> None:
        """Stops keeping a lease whose record is gone."""
        key = (principals.current().tenant, name)
        self._fences.pop(key, None)
        self._lost.pop(key, None)

    async def release(self, name: str) -> None:
        """Gives a lease back; one that cannot be given back runs out by itself."""
        fence = self.fence(name)
        self.drop(name)
        if not fence:
            return
        try:
            await self._peers.records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=name, fence=fence))
        except NoronhaError as error:
            log.debug("the lease of %s was not given back: %s", name, error)

    async def keep(self) -> None:
        """Renews what is held, for ever."""
        while True:
            await asyncio.sleep(RENEWED)
            for key in list(self._fences):
                await self._renew(key)

    async def _renew(self, key: tuple[str, str]) -> None:
        tenant, name = key
        before = principals.current()
        principals.become(Principal(before.kind, before.subject, tenant))
        try:
            lease = await self._acquire(name, self.holder)
            if lease.fence != self._fences.get(key, lease.fence):
                # It ran out, and somebody else held it before it was free again: what they did stands.
                await self._peers.records.ReleaseLease(records_pb2.ReleaseLeaseRequest(name=name, fence=lease.fence))
                raise Aborted(f"another Runner held {name} meanwhile", reason="STALE_FENCE", name=name)
        except (FailedPrecondition, Aborted, NotFound) as error:
            self._fences.pop(key, None)
            lost = self._lost.pop(key, None)
            if lost is not None:
                log.warning("%s is no longer ours: %s", name, error)
                lost()
        except NoronhaError as error:
            log.warning("the lease of %s was not renewed: %s", name, error)
        finally:
            principals.become(before)
