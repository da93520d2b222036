"""Follows the records in Metadata and keeps the published snapshot true to them.

Level-triggered: what is published is made from all records as they are now, however many changes led there.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from noronha.chassis.peers import Peers
from noronha.router.discovery import Discovery
from noronha.router.edge import Edge
from noronha.rpc.errors import NoronhaError, OutOfRange, Unavailable
from noronha.v1 import deployment_pb2, metadata_pb2, replica_pb2, traffic_pb2

log = logging.getLogger("noronha.router")

WATCHED = (
    "projects/-/deployments/-",
    "projects/-/deployments/-/replicas/-",
    "projects/-/deployments/-/traffic",
)

GATHER = 0.01
"""Seconds that a change waits for others that come with it."""


@dataclass
class Known:
    """The records that routes follow from, by full name."""

    deployments: dict[str, deployment_pb2.Deployment] = field(default_factory=dict)
    replicas: dict[str, replica_pb2.Replica] = field(default_factory=dict)
    traffic: dict[str, traffic_pb2.Traffic] = field(default_factory=dict)

    def take(self, step: metadata_pb2.WatchResponse) -> bool:
        """Takes one step of a watch in; tells whether it changed anything."""
        kind = step.WhichOneof("step")
        if kind == "deleted":
            kept = (self.deployments, self.replicas, self.traffic)
            return any([each.pop(step.deleted, None) is not None for each in kept])
        if kind != "changed":
            return False
        match step.changed.WhichOneof("kind"):
            case "deployment":
                self.deployments[step.changed.deployment.name] = step.changed.deployment
            case "replica":
                self.replicas[step.changed.replica.name] = step.changed.replica
            case "traffic":
                self.traffic[step.changed.traffic.name] = step.changed.traffic
            case _:
                return False
        return True


class Follower:
    """Watches Metadata and publishes."""

    def __init__(self, peers: Peers, discovery: Discovery, edge: Edge) -> None:
        self._peers = peers
        self._discovery = discovery
        self._edge = edge
        self._known = Known()
        self._dirty = asyncio.Event()

    async def run(self) -> None:
        """Follows until cancelled."""
        publishing = asyncio.create_task(self._publish())
        try:
            await self._watch()
        finally:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)

    async def _watch(self) -> None:
        token, pause, fresh = "", 0.1, Known()
        while True:
            began = time.monotonic()
            try:
                request = metadata_pb2.WatchRequest(names=WATCHED, resume_token=token)
                if not token:
                    fresh = Known()
                async for step in self._peers.metadata.Watch(request):
                    bookmark = step.WhichOneof("step") == "bookmark"
                    changed = fresh.take(step)
                    if bookmark and fresh is not self._known:
                        # Only now is everything told: a snapshot of less would take away routes that are right.
                        self._known, changed = fresh, True
                    if step.resume_token:
                        token = step.resume_token
                    if changed and fresh is self._known:
                        self._dirty.set()
            except OutOfRange:
                token = ""
                continue
            except Unavailable as error:
                log.debug("metadata is away: %s", error)
            except NoronhaError as error:
                log.warning("cannot watch metadata: %s", error)
                token = ""
            if fresh is not self._known:
                token = ""
            if time.monotonic() - began > 10:
                pause = 0.1
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _publish(self) -> None:
        snapshots = await asyncio.to_thread(_snapshots)
        cache = snapshots.Cache()
        problems: dict[str, tuple[str, ...]] = {}
        while True:
            await self._dirty.wait()
            await asyncio.sleep(GATHER)
            self._dirty.clear()
            known = self._known
            made = snapshots.snapshot(
                known.deployments.values(), known.replicas.values(), known.traffic.values(), self._edge, cache
            )
            for name, part in made.parts.items():
                if part.problems and problems.get(name) != part.problems:
                    log.warning("%s: %s", name, "; ".join(part.problems))
            problems = {name: part.problems for name, part in made.parts.items() if part.problems}
            self._discovery.publish(made)


def _snapshots():  # type: ignore[no-untyped-def]
    """Imports what takes long to import."""
    from noronha.router import snapshot

    return snapshot
