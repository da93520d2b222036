"""Deployments: what is asked for them, checked, recorded, and handed to whoever keeps the replicas."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping

from google.protobuf import field_mask_pb2

from noronha.chassis import anonymous, principals, request_ids
from noronha.rpc import json_text, names
from noronha.rpc.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NoronhaError, NotFound
from noronha.runner import admission, logs, workloads
from noronha.runner.ownership import Owner
from noronha.runner.replicas import Controller, Replica
from noronha.runner.rollout import wanted_replicas
from noronha.v1 import (
    deployment_pb2,
    metadata_pb2,
    records_pb2,
    resource_pb2,
    runner_pb2,
    traffic_pb2,
)

_DRAWS = 20
_CHANGEABLE = ("spec", "replicas", "port", "details_json", "labels")
_DELETION = 60.0

log = logging.getLogger("noronha.runner")

Deployment = deployment_pb2.Deployment


class Deployments:
    """The deployments of one Runner."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._peers = owner.peers
        self._controllers: dict[tuple[str, str], Controller] = {}
        self._traffic: dict[tuple[str, str], frozenset[int]] = {}
        # Held from looking for a port's owner until the new owner is on record.
        self._ports = asyncio.Lock()
        self._made: deque[tuple[str, str, int]] = deque(maxlen=10_000)

    # ------------------------------------------------------------------------------------------------ creating

    async def create(self, request: runner_pb2.CreateDeploymentRequest) -> Deployment:
        """Records a deployment and has it kept; see ``Runner.CreateDeployment``."""
        request_ids.check(request.request_id)
        try:
            deployment = await self._create(request)
        except NoronhaError:  # of a repeat perhaps, which finds its own port taken
            first = await request_ids.first_answer(self._peers.records, request, principals.current())
            if first is None:
                raise
            deployment = first.records[0].resource.deployment
        if (principals.current().tenant, deployment.name) not in self._controllers:
            # Made by an earlier call with this request id, perhaps by a mesh that was killed since.
            await self.adopt(deployment)
        return deployment

    async def _create(self, request: runner_pb2.CreateDeploymentRequest) -> Deployment:
        if request.deployment_id:
            names.check_id(request.deployment_id, "deployment_id")
        asked = request.deployment
        spec, _ = await self._owner.admission.spec(request.parent, asked.spec)
        replicas = admission.check_replicas(wanted_replicas(asked))
        json_text.read(asked.details_json, "deployment.details_json")
        await self._check_platform(spec)
        made = Deployment(
            spec=spec,
            replicas=replicas,
            port=admission.check_port(asked.port),
            revision=1,
            generation=1,
            details_json=asked.details_json or "{}",
            labels=asked.labels,
        )
        made.status.state = deployment_pb2.DeploymentStatus.PENDING
        create = records_pb2.CreateRecordRequest(
            resource=resource_pb2.Resource(deployment=made),
            request_id=request.request_id,
            request_fingerprint=request_ids.fingerprint(request, principals.current()),
            lease_holder=self._owner.leases.holder,
            lease_duration=self._owner.leases.duration,
        )
        project = names.parse(request.parent).ids[0]
        async with self._ports:
            await self._check_port(made.port, request)
            for draw in range(_DRAWS):
                name = names.join("deployment", project, request.deployment_id or anonymous.draw())
                create.resource.deployment.name = name
                try:
                    async with self._owner.alone(name):
                        deployment = await self._begin(create)
                except AlreadyExists as error:
                    if request.deployment_id or error.reason == "REQUEST_ID_REUSED" or draw == _DRAWS - 1:
                        raise
                else:
                    break
        return deployment

    async def _begin(self, create: records_pb2.CreateRecordRequest) -> Deployment:
        """Records a deployment with its first revision and has it kept, unless that was done before."""
        made = create.resource.deployment
        commit = records_pb2.CommitRecordsRequest()
        commit.writes.add(create=create)
        commit.writes.add(create=records_pb2.CreateRecordRequest(resource=self._revision(made.name, 1, made.spec)))
        answer = await self._peers.records.CommitRecords(commit)
        record = answer.records[0]
        deployment: Deployment = record.resource.deployment
        number = int(names.parse(answer.records[1].resource.deployment_revision.name).ids[-1])
        once = (principals.current().tenant, deployment.name, deployment.create_time.ToNanoseconds())
        if record.lease.holder == self._owner.leases.holder and once not in self._made:
            self._made.append(once)
            if deployment.revision != number:
                deployment = await self._renumber(deployment.name, number, record.lease.fence)
            self._keep(deployment, record.lease)
        return deployment

    async def _renumber(self, name: str, number: int, fence: int) -> Deployment:
        """Writes the number of a deployment's first revision: numbers go on after a namesake that was deleted."""
        changed = resource_pb2.Resource(deployment=Deployment(name=name, revision=number))
        written: Deployment = (await self._owner.write(changed, ["revision"], fence)).deployment
        return written

    async def _check_platform(self, spec: deployment_pb2.DeploymentSpec) -> None:
        await self._owner.platform.check(workloads.of_replica(Replica(), spec, id="check"))

    async def _check_port(self, port: int, request: runner_pb2.CreateDeploymentRequest) -> None:
        """Raises AlreadyExists ``PORT_TAKEN`` when another deployment has this port."""
        own = ""
        if request.deployment_id:
            own = names.join("deployment", names.parse(request.parent).ids[0], request.deployment_id)
        await self._port_is_free(port, own)

    async def _port_is_free(self, port: int, own: str) -> None:
        if not port:
            return
        found = await self._peers.metadata.ListDeployments(
            metadata_pb2.ListDeploymentsRequest(
                parent="projects/-",
                filter=f'{{"port": {port}}}',
                read_mask=field_mask_pb2.FieldMask(paths=["name", "port"]),
                page_size=10,
            )
        )
        for each in found.deployments:
            if each.name != own:
                raise AlreadyExists(
                    f"port {port} belongs to {each.name}; choose another",
                    reason="PORT_TAKEN",
                    port=port,
                    owner=each.name,
                )
        if self._owner.settings.router.port == port:
            raise AlreadyExists(
                f"port {port} is the router's own; choose another", reason="PORT_TAKEN", port=port, owner="router"
            )

    def _revision(
        self, name: str, number: int, spec: deployment_pb2.DeploymentSpec, rollback_of: int = 0
    ) -> resource_pb2.Resource:
        return resource_pb2.Resource(
            deployment_revision=deployment_pb2.DeploymentRevision(
                name=f"{name}/revisions/{number}",
                spec=spec,
                creator=principals.current().subject,
                rollback_of=rollback_of,
            )
        )

    def _keep(self, deployment: Deployment, lease: records_pb2.Lease | None) -> Controller:
        tenant = principals.current().tenant
        controller = Controller(self._owner, deployment, tenant)
        controller.shared = self._traffic.get((tenant, deployment.name), frozenset())
        self._controllers[tenant, deployment.name] = controller
        if lease is not None:
            self._owner.leases.hold(lease, lambda: self._lose(controller))
        self._owner.spawn(controller.keep(), f"deployment {deployment.name}")
        return controller

    def _lose(self, controller: Controller) -> None:
        controller.gone.set()
        controller.wake()
        self._drop(controller)

    def _drop(self, controller: Controller) -> None:
        key = (controller.tenant, controller.name)
        if self._controllers.get(key) is controller:
            del self._controllers[key]

    # ------------------------------------------------------------------------------------------------- changing

    async def update(self, request: runner_pb2.UpdateDeploymentRequest) -> Deployment:
        """Changes what is wanted; see ``Runner.UpdateDeployment``."""
        request_ids.check(request.request_id)
        asked = request.deployment
        name = str(names.parse(asked.name, "deployment", field="deployment.name"))
        paths = _paths(asked, list(request.update_mask.paths))
        controller = await self._controller(name)
        async with controller.writing:
            current = await self._get(name)
            wanted = Deployment()
            wanted.CopyFrom(current)
            spec = _merge(wanted, asked, paths)
            admission.check_replicas(wanted_replicas(wanted))
            admission.check_port(wanted.port)
            json_text.read(wanted.details_json, "deployment.details_json")
            if any(path.partition(".")[0] == "spec" for path in paths):
                parent = names.parent_of(names.parse(name))
                completed, _ = await self._owner.admission.spec(parent, spec)
                await self._check_platform(completed)
                wanted.spec.CopyFrom(completed)
            if wanted == current and not request.request_id:
                return current
            return await self._change(controller, current, wanted, request, etag=asked.etag)

    async def rollback(self, request: runner_pb2.RollbackDeploymentRequest) -> Deployment:
        """Makes a new revision with the spec of an earlier one; see ``Runner.RollbackDeployment``."""
        request_ids.check(request.request_id)
        name = str(names.parse(request.name, "deployment"))
        controller = await self._controller(name)
        async with controller.writing:
            current = await self._get(name)
            number = request.revision or current.revision - 1
            if number < 1:
                raise NotFound(f"{name} has no revision before its first", name=name)
            found = await self._peers.metadata.GetDeploymentRevision(
                metadata_pb2.GetDeploymentRevisionRequest(name=f"{name}/revisions/{number}")
            )
            wanted = Deployment()
            wanted.CopyFrom(current)
            wanted.spec.CopyFrom(found.spec)
            await self._check_platform(wanted.spec)
            return await self._change(controller, current, wanted, request, rollback_of=number)

    async def _change(
        self,
        controller: Controller,
        current: Deployment,
        wanted: Deployment,
        request: runner_pb2.UpdateDeploymentRequest | runner_pb2.RollbackDeploymentRequest,
        rollback_of: int = 0,
        etag: str = "",
    ) -> Deployment:
        """Records a change in one commit, and a new revision with it when the spec differs.

        Whether the request was answered before, and whether ``etag`` is current, is judged with the commit.
        """
        name = current.name
        if wanted.port != current.port:
            await self._ports.acquire()
        try:
            if wanted.port != current.port:
                await self._port_is_free(wanted.port, name)
            commit = records_pb2.CommitRecordsRequest()
            revised = rollback_of > 0 or wanted.spec != current.spec
            if revised:
                wanted.revision = current.revision + 1
                commit.writes.add(
                    create=records_pb2.CreateRecordRequest(
                        resource=self._revision(name, wanted.revision, wanted.spec, rollback_of)
                    )
                )
            if revised or wanted.replicas != current.replicas or wanted.port != current.port:
                wanted.generation = current.generation + 1
            wanted.etag = etag or current.etag
            commit.writes.add(
                update=records_pb2.UpdateRecordRequest(
                    resource=resource_pb2.Resource(deployment=wanted),
                    update_mask=field_mask_pb2.FieldMask(paths=[*_CHANGEABLE, "revision", "generation"]),
                    fence=self._owner.leases.fence(name),
                    request_id=request.request_id,
                    request_fingerprint=request_ids.fingerprint(request, principals.current()),
                )
            )
            answer = await self._peers.records.CommitRecords(commit)
        finally:
            if wanted.port != current.port:
                self._ports.release()
        changed: Deployment = answer.records[-1].resource.deployment
        kept = Deployment()
        kept.CopyFrom(changed)
        controller.want(kept)
        return changed

    async def _controller(self, name: str) -> Controller:
        """Returns who keeps a deployment. Raises NotFound; FailedPrecondition when another Runner does."""
        controller = self._controllers.get((principals.current().tenant, name))
        if controller is None:
            await self.adopt(await self._get(name))
            controller = self._controllers.get((principals.current().tenant, name))
        if controller is None:
            raise FailedPrecondition(
                f"{name} is looked after by another Runner right now; try again", reason="LEASED", name=name
            )
        return controller

    # ------------------------------------------------------------------------------------------------- deleting

    async def delete(self, name: str, etag: str) -> None:
        """Stops a deployment and deletes it, the record last; see ``Runner.DeleteDeployment``."""
        names.parse(name, "deployment")
        controller = await self._controller(name)
        async with controller.writing:
            current = await self._get(name)
            if etag and etag != current.etag:
                raise Aborted(f"{name} was changed meanwhile; read it again", reason="STALE_ETAG", name=name)
            if wanted_replicas(current) or not current.HasField("replicas"):
                # Zero wanted, on record: whoever goes on after a crash in the midst of this starts nothing again.
                wanted = Deployment()
                wanted.CopyFrom(current)
                wanted.replicas = 0
                await self._change(controller, current, wanted, runner_pb2.UpdateDeploymentRequest())
        try:
            await asyncio.wait_for(self._until_empty(controller), _DELETION)
        except asyncio.TimeoutError:
            log.warning("the replicas of %s did not leave the routes in time and are stopped", name)
        async with controller.writing:
            controller.gone.set()
        controller.wake()
        await controller.stop_all()
        ended = await controller.recorded()
        fence = self._owner.leases.fence(name)
        try:
            await self._peers.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=name, fence=fence))
        except NoronhaError:
            controller.gone.clear()
            self._owner.spawn(controller.keep(), f"deployment {name}")
            raise
        self._owner.leases.drop(name)
        self._drop(controller)
        for each in ended:
            id = workloads.replica_id(each, controller.tenant)
            await self._owner.platform.remove(id)
            self._owner.logs.remove(id)

    async def _until_empty(self, controller: Controller) -> None:
        while controller.serving:
            changed = controller.changed
            if controller.serving:
                await changed.wait()

    async def _get(self, name: str) -> Deployment:
        deployment: Deployment = await self._peers.metadata.GetDeployment(metadata_pb2.GetDeploymentRequest(name=name))
        return deployment

    # -------------------------------------------------------------------------------------------------- finding

    async def adopt(self, deployment: Deployment) -> bool:
        """Takes on a deployment that nobody looks after; returns whether it is looked after now."""
        key = (principals.current().tenant, deployment.name)
        async with self._owner.alone(deployment.name):
            controller = self._controllers.get(key)
            if controller is None:
                return await self._adopt(deployment, key)
        controller.want(deployment)
        return True

    async def _adopt(self, deployment: Deployment, key: tuple[str, str]) -> bool:
        def lost() -> None:
            if (controller := self._controllers.get(key)) is not None:
                self._lose(controller)

        try:
            await self._owner.leases.take(deployment.name, lost)
            deployment = await self._get(deployment.name)
        except NotFound:
            return True
        except FailedPrecondition:
            return False
        controller = Controller(self._owner, deployment, key[0])
        if key not in self._traffic:
            # Asked, not waited for: without it the revisions that traffic names would be drained.
            await self._learn_traffic(f"{deployment.name}/traffic")
        controller.shared = self._traffic.get(key, frozenset())
        await controller.resume()
        self._controllers[key] = controller
        log.info("%s is found again with %d replicas", deployment.name, len(controller.serving))
        self._owner.spawn(controller.keep(), f"deployment {deployment.name}")
        return True

    def is_gone(self, name: str) -> None:
        """Takes in that a record is gone: what runs of it is stopped."""
        controller = self._controllers.get((principals.current().tenant, name))
        if controller is not None and not controller.gone.is_set():
            controller.gone.set()
            controller.wake()
            self._owner.leases.drop(name)
            self._drop(controller)
            self._owner.spawn(self._clear(controller), f"ending {name}")

    async def _clear(self, controller: Controller) -> None:
        ids = [each.workload for each in controller.serving.values()]
        await controller.stop_all()
        for each in ids:
            await self._owner.platform.remove(each)
            self._owner.logs.remove(each)

    def traffic(self, name: str, traffic: traffic_pb2.Traffic | None) -> None:
        """Takes in how the requests of a deployment are shared; None means by default."""
        key = (principals.current().tenant, name.removesuffix("/traffic"))
        revisions = frozenset(each.revision for each in traffic.targets if each.revision) if traffic else frozenset()
        self._traffic[key] = revisions
        if (controller := self._controllers.get(key)) is not None:
            controller.share(revisions)

    async def _learn_traffic(self, name: str) -> None:
        try:
            self.traffic(name, await self._peers.metadata.GetTraffic(metadata_pb2.GetTrafficRequest(name=name)))
        except NotFound:
            self.traffic(name, None)

    def busy(self) -> bool:
        """Says whether a deployment has replicas or wants some."""
        return any(each.serving or wanted_replicas(each.deployment) for each in self._controllers.values())

    async def stop_all(self) -> None:
        """Stops every replica; the deployments stay on record and come back with the next mesh."""
        await asyncio.gather(*(each.suspend() for each in list(self._controllers.values())))

    async def take_up(self, name: str, version: str) -> str:
        """Has a deployment take a version up; returns what went wrong, '' for nothing."""
        controller = self._controllers.get((principals.current().tenant, name))
        if controller is None:
            return f"{name} was not updated: there is no such deployment"
        return await controller.update(version)

    # ----------------------------------------------------------------------------------------------------- logs

    async def tail(self, name: str, replica: str, position: str, lines: int, follow: bool) -> AsyncIterator[logs.Piece]:
        """Yields the logs of a deployment's replicas; when following, until the deployment is gone."""
        deployment = await self._get(name)
        if follow:
            await self._owner.wait_until_adopted()
        tenant = principals.current().tenant
        controller = self._controllers.get((tenant, name)) or Controller(self._owner, deployment, tenant)
        parts: Mapping[str, logs.Part] = await controller.parts(replica)
        if replica and not parts:
            raise NotFound(f"{name} has no replica {replica}; see nha depl info", name=name, replica=replica)
        event = asyncio.Event()
        refreshing = asyncio.create_task(self._refresh(controller, event)) if follow else None
        known = dict(parts)

        def now() -> Mapping[str, logs.Part]:
            for id, each in controller.serving.items():
                if replica in ("", id):
                    known[id] = logs.Part(each.log, False)
            return {id: logs.Part(part.log, id not in controller.serving) for id, part in known.items()}

        def ended() -> bool:
            alone_and_over = bool(replica) and replica not in controller.serving
            return controller.gone.is_set() or alone_and_over or self._owner.context.stopping.is_set()

        try:
            pieces = logs.tail(name, now, position=position, lines=lines, follow=event if follow else None, ended=ended)
            async for piece in pieces:
                yield piece
            if follow and self._owner.context.stopping.is_set() and not controller.gone.is_set():
                raise self._owner.stopping()
        finally:
            if refreshing is not None:
                refreshing.cancel()

    async def _refresh(self, controller: Controller, event: asyncio.Event) -> None:
        stopping = asyncio.create_task(self._owner.context.stopping.wait())
        gone = asyncio.create_task(controller.gone.wait())
        try:
            while True:
                changed = asyncio.create_task(controller.changed.wait())
                await asyncio.wait({changed, gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                event.set()
                if gone.done() or stopping.done():
                    return
        finally:
            stopping.cancel()
            gone.cancel()


def _paths(asked: Deployment, mask: list[str]) -> list[str]:
    """Returns the paths that a change names. Raises InvalidArgument ``BAD_MASK``."""
    if mask == ["*"]:
        return list(_CHANGEABLE)
    if not mask:
        set_fields = {field.name for field, _ in asked.ListFields()}
        return [path for path in _CHANGEABLE if path in set_fields]
    fields = {field.name for field in deployment_pb2.DeploymentSpec.DESCRIPTOR.fields} - {
        "build_snapshot", "model_version_snapshots",
    }  # fmt: skip
    for path in mask:
        first, _, rest = path.partition(".")
        if first not in _CHANGEABLE or (rest and (first != "spec" or rest not in fields)):
            raise InvalidArgument(
                f"update_mask names {path!r}, which cannot be changed; of a deployment, {', '.join(_CHANGEABLE)} can",
                reason="BAD_MASK", violations=[("update_mask", f"{path!r} cannot be changed")],
            )  # fmt: skip
    return mask


def _merge(wanted: Deployment, asked: Deployment, paths: list[str]) -> deployment_pb2.DeploymentSpec:
    """Puts the named fields of a request over what is there; returns the spec that results, not completed yet."""
    for path in paths:
        first, _, rest = path.partition(".")
        if rest:
            one = deployment_pb2.DeploymentSpec()
            field_mask_pb2.FieldMask(paths=[rest]).MergeMessage(asked.spec, one)
            wanted.spec.ClearField(rest)  # type: ignore[arg-type]  # checked against the descriptor
            wanted.spec.MergeFrom(one)
        elif first == "spec":
            wanted.spec.CopyFrom(asked.spec)
        elif first == "replicas":
            wanted.replicas = wanted_replicas(asked)
        elif first == "port":
            wanted.port = asked.port
        elif first == "details_json":
            wanted.details_json = asked.details_json or "{}"
        elif first == "labels":
            wanted.labels.clear()
            wanted.labels.update(asked.labels)
    spec = deployment_pb2.DeploymentSpec()
    spec.CopyFrom(wanted.spec)
    return spec
