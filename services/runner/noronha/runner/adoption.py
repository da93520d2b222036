"""Compares records with reality after a crash and as they change: what runs is found again, what ended is finished."""

from __future__ import annotations

import asyncio
import logging

from noronha.chassis import principals
from noronha.chassis.together import together
from noronha.rpc import names
from noronha.rpc.errors import NoronhaError, NotFound, OutOfRange
from noronha.runner import workloads
from noronha.runner.backend import Instance
from noronha.runner.deployments import Deployments
from noronha.runner.ownership import AWAY, Owner, acting
from noronha.runner.trainings import Trainings
from noronha.v1 import metadata_pb2

ACTIVE = '{"status.state": {"$in": ["PENDING", "RUNNING"]}}'
"""Trainings that somebody has to look after."""

RETRY = 5.0
"""Seconds between attempts to take on what another Runner holds."""

log = logging.getLogger("noronha.runner")


class Adoption:
    """Follows the records of everything that runs."""

    def __init__(self, owner: Owner, trainings: Trainings, deployments: Deployments) -> None:
        self._owner = owner
        self._trainings = trainings
        self._deployments = deployments

    async def run(self) -> None:
        """Finds again what ran before, then follows what changes, for ever."""
        with acting(principals.current().tenant):
            seen = [asyncio.Event(), asyncio.Event()]
            await together(
                [
                    self._follow(["projects/-/trainings/-"], ACTIVE, seen[0]),
                    self._follow(["projects/-/deployments/-", "projects/-/deployments/-/traffic"], "", seen[1]),
                    self._settle(seen),
                ]
            )

    async def _settle(self, seen: list[asyncio.Event]) -> None:
        """Waits until every record was looked at, then clears away what has none."""
        for each in seen:
            await each.wait()
        if not self._owner.adopted.is_set():
            self._owner.leases.settle()
            self._owner.adopted.set()
        await self._sweep()

    async def _follow(self, watched: list[str], filter: str, seen: asyncio.Event) -> None:
        token = ""
        pause = 0.05
        while True:
            try:
                request = metadata_pb2.WatchRequest(names=watched, filter=filter, resume_token=token)
                async for step in self._owner.peers.metadata.Watch(request):
                    await self._take(step, bool(filter))
                    token = step.resume_token or token
                    pause = 0.05
                    if step.WhichOneof("step") == "bookmark":
                        seen.set()
            except OutOfRange:
                token = ""
            except NoronhaError as error:
                level = logging.INFO if isinstance(error, AWAY) else logging.WARNING
                log.log(level, "the records of what runs cannot be followed: %s", error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _take(self, step: metadata_pb2.WatchResponse, filtered: bool) -> None:
        kind = step.WhichOneof("step")
        if kind == "changed":
            resource = step.changed
            match resource.WhichOneof("kind"):
                case "training":
                    if not await self._trainings.adopt(resource.training):
                        self._owner.spawn(self._again(resource.training.name), f"adopting {resource.training.name}")
                case "deployment":
                    if not await self._deployments.adopt(resource.deployment):
                        self._owner.spawn(self._again(resource.deployment.name), f"adopting {resource.deployment.name}")
                case "traffic":
                    self._deployments.traffic(resource.traffic.name, resource.traffic)
        elif kind == "deleted" and not filtered:
            name = names.parse(step.deleted)
            if name.kind == "deployment":
                self._deployments.is_gone(step.deleted)
            elif name.kind == "traffic":
                self._deployments.traffic(step.deleted, None)

    async def _again(self, name: str) -> None:
        """Takes on later what another Runner holds now, should that one fall silent."""
        kind = names.parse(name).kind
        while True:
            await asyncio.sleep(RETRY)
            try:
                if kind == "training":
                    training = await self._owner.peers.metadata.GetTraining(metadata_pb2.GetTrainingRequest(name=name))
                    done = await self._trainings.adopt(training)
                else:
                    deployment = await self._owner.peers.metadata.GetDeployment(
                        metadata_pb2.GetDeploymentRequest(name=name)
                    )
                    done = await self._deployments.adopt(deployment)
                if done:
                    return
            except NotFound:
                return
            except NoronhaError as error:
                log.info("%s cannot be taken on yet: %s", name, error)

    # ------------------------------------------------------------------------------------------------- clearing

    async def _sweep(self) -> None:
        """Ends what runs without a record, and frees what ended tasks no longer need."""
        looked_after = {each.workload for each in self._owner.sessions.values()}
        for instance in await self._owner.platform.list():
            if instance.id in looked_after or instance.id in self._now_looked_after():
                continue
            try:
                await self._clear(instance)
            except NoronhaError as error:
                log.warning("workload %s is not cleared away: %s", instance.id, error)

    def _now_looked_after(self) -> set[str]:
        return {each.workload for each in self._owner.sessions.values()}

    async def _clear(self, instance: Instance) -> None:
        tenant = principals.current().tenant
        metadata = self._owner.peers.metadata
        try:
            if names.parse(instance.resource).kind == "training":
                training = await metadata.GetTraining(metadata_pb2.GetTrainingRequest(name=instance.resource))
                expected = workloads.training_id(training, tenant)
            else:
                deployment = names.parent_of(names.parse(instance.resource))
                page = await metadata.ListReplicas(metadata_pb2.ListReplicasRequest(parent=deployment, page_size=1000))
                replicas = [each for each in page.replicas if each.name == instance.resource]
                expected = workloads.replica_id(replicas[0], tenant) if replicas else ""
        except NotFound:
            expected = ""
        if instance.id in self._now_looked_after():
            return
        if instance.id != expected:
            log.warning("workload %s of %s has no record and is removed", instance.id, instance.resource)
            await self._owner.platform.remove(instance.id)
            self._owner.logs.remove(instance.id)
            return
        if instance.exit is None:
            await self._owner.platform.stop(instance.id)
            await self._owner.platform.wait(instance.id)
        await self._owner.platform.clean(instance.id)
