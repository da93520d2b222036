"""Keeps the replicas of one deployment as they are wanted, and says truthfully how it stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Mapping

from google.rpc import status_pb2

from noronha.chassis import health_checks
from noronha.rpc import names
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    NoronhaError,
    NotFound,
)
from noronha.runner import endings, logs, probes, rollout, sessions, workloads
from noronha.runner.admission import Inputs
from noronha.runner.backend import Cause, Exit
from noronha.runner.ownership import AWAY, Owner, project_of
from noronha.runner.rollout import Failures, wanted_replicas
from noronha.runner.routes import Routes, Wanted
from noronha.runner.sessions import Session
from noronha.v1 import (
    deployment_pb2,
    metadata_pb2,
    records_pb2,
    replica_pb2,
    resource_pb2,
    tasks_pb2,
)

KEPT = 5
"""Replicas of a deployment that have ended and whose records and logs are kept, for those who ask why."""

HEALTH_TIMEOUT = 3.0
"""Seconds that a replica that starts has to say that it is healthy before it is asked again."""

LEAVING = 2.0
"""Seconds beyond its grace in which a replica that was told to end has to be gone."""

UPDATE_TIMEOUT = 60.0
"""Seconds that a replica has to take a version up."""

Replica = replica_pb2.Replica

log = logging.getLogger("noronha.runner")


class Serving(Session):
    """A replica that has not ended."""

    def __init__(self, replica: Replica, tenant: str, log: logs.Log, controller: Controller) -> None:
        super().__init__(replica.name, tenant, workloads.replica_id(replica, tenant), log)
        self.replica = replica
        self.controller = controller
        self.inputs: Inputs | None = None
        self.says_ready = False
        self.stopping = False
        """Whether it was asked to end."""
        self.outcome: status_pb2.Status | None = None
        """Why it failed, by its own account."""
        self.ready_since = 0.0
        self.served = False
        self.changed = asyncio.Event()


class Controller:
    """Looks after one deployment."""

    def __init__(self, owner: Owner, deployment: deployment_pb2.Deployment, tenant: str) -> None:
        self._owner = owner
        self._peers = owner.peers
        self.name = deployment.name
        self.tenant = tenant
        self.deployment = deployment
        """What is wanted, and the status that was last written."""
        self.shared: frozenset[int] = frozenset()
        """Revisions that traffic names."""
        self.serving: dict[str, Serving] = {}
        self.gone = asyncio.Event()
        """Set when the deployment is deleted, or another Runner's."""
        self.changed = asyncio.Event()
        """Set whenever somebody who follows the deployment should look again."""
        self.writing = asyncio.Lock()
        """Held while the deployment's record is read and written."""
        self._specs: dict[int, deployment_pb2.DeploymentSpec] = {}
        self._failures: dict[int, Failures] = {}
        self._vacated: list[Replica] = []
        """Replicas that failed and whose places nobody took yet, in the order in which they failed."""
        self._wake = asyncio.Event()
        self._stepping = asyncio.Lock()
        """Held while replicas may be started."""
        self._routes = Routes(
            owner.peers, self.name, confirmed=self._stop_unrouted, given_up=self._stop_unwanted, heard=self.wake
        )

    # ----------------------------------------------------------------------------------------------- from outside

    def want(self, deployment: deployment_pb2.Deployment) -> None:
        """Takes in what is wanted now; older news are ignored."""
        if deployment.generation < self.deployment.generation:
            return
        changed = deployment.generation > self.deployment.generation
        if changed:
            self._failures.clear()
            self._routes.forget_record()
            status = self.deployment.status
            self.deployment = deployment
            self.deployment.status.CopyFrom(status)
            self.wake()

    async def resume(self) -> None:
        """Goes on from what is on record: looks after replicas that have not ended, and replaces those that failed."""
        recorded = await self.recorded()
        failed = [each for each in recorded if each.state == Replica.FAILED]
        self._vacated = sorted(failed, key=lambda each: each.update_time.ToNanoseconds())
        for each in recorded:
            if each.state not in (Replica.STOPPED, Replica.FAILED):
                await self._adopt(each)
        self._recall()

    def _recall(self) -> None:
        """Goes on from the recorded status: what it says still holds, until something else is found.

        A mesh that comes back would otherwise tell a deployment that served all the while to be on its way, and forget
        why another one fails.
        """
        State = deployment_pb2.DeploymentStatus
        status = self.deployment.status
        self._routes.port_error = status.port_error
        served = status.state == State.READY or bool(status.port_error)
        if served and status.observed_generation == self.deployment.generation:
            self._routes.recall(self._wanted_routes())
        given_up = status.state in (State.FAILED, State.DEGRADED)
        for each in status.revisions:
            if each.HasField("error"):
                count = rollout.PATIENCE if given_up and each.revision == self.deployment.revision else 1
                self._failures[each.revision] = Failures(count, sessions.reason_of(each.error), each.error)
        if status.HasField("error") and not self._failures and not served:
            self._routes.error = status.error

    def share(self, revisions: frozenset[int]) -> None:
        """Takes in which revisions traffic names."""
        if revisions != self.shared:
            self.shared = revisions
            self.wake()

    def wake(self) -> None:
        """Has the deployment looked at now."""
        self._wake.set()

    def replicas(self) -> list[Replica]:
        """Returns the replicas that have not ended."""
        return [each.replica for each in self.serving.values()]

    # --------------------------------------------------------------------------------------------------- keeping

    async def keep(self) -> None:
        """Keeps the deployment as it is wanted until it is gone."""
        while not self.gone.is_set():
            self._wake.clear()
            try:
                async with self._stepping:
                    if self.gone.is_set():
                        return
                    retry_at = await self._step()
            except AWAY as error:
                log.info("%s waits: %s", self.name, error)
                retry_at = time.monotonic() + 1.0
            except NotFound as error:
                log.info("%s is looked at again: %s", self.name, error)
                retry_at = time.monotonic() + 1.0
            except (Aborted, FailedPrecondition) as error:
                log.warning("%s cannot be written: %s", self.name, error)
                retry_at = time.monotonic() + 2.0
            left = None if retry_at is None else max(0.05, retry_at - time.monotonic())
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left)

    async def _step(self) -> float | None:
        """Does what is next; returns when to look again although nothing happened."""
        deployment = self.deployment
        self._note_steady()
        if self._is_complete(deployment) and deployment.status.serving_revision != deployment.revision:
            deployment.status.serving_revision = deployment.revision
            await self._write_status()
        plan = rollout.plan(deployment, self.replicas(), self.shared, self._failures, time.monotonic())
        wanted = rollout.targets(deployment, self.replicas(), self.shared)
        self._vacated = rollout.vacated(wanted, self.replicas(), self._vacated)
        for revision, number in plan.start.items():
            places = [each for each in self._vacated if each.revision == revision][:number]
            new = [None] * (number - len(places))
            await asyncio.gather(*(self._start(revision, place) for place in [*places, *new]))
        for replica in plan.stop:
            self._stop(self.serving[names.parse(replica.name).ids[-1]])
        for replica in plan.drain:
            await self._change(self.serving[names.parse(replica.name).ids[-1]], Replica.DRAINING)
        again_at = self._routes.ask(self._wanted_routes())
        await self._write_status()
        return min((each for each in (plan.retry_at, again_at) if each is not None), default=None)

    def _is_complete(self, deployment: deployment_pb2.Deployment) -> bool:
        count = wanted_replicas(deployment)
        return count > 0 and len(rollout.ready(self.replicas(), deployment.revision)) >= count

    def _note_steady(self) -> None:
        now = time.monotonic()
        for each in self.serving.values():
            if each.ready_since and now - each.ready_since > rollout.STEADY:
                self._failures.pop(each.replica.revision, None)

    # ---------------------------------------------------------------------------------------------------- routes

    def _wanted_routes(self) -> Wanted:
        """Returns what the proxy must hold and must not hold."""
        serving = self.deployment.status.serving_revision
        present = {each.name for each in rollout.ready(self.replicas()) if each.revision in {serving, *self.shared}}
        absent = {each.name for each in self.replicas() if each.state == Replica.DRAINING}
        return Wanted(frozenset(present), frozenset(absent), self.deployment.port)

    def _stop_unrouted(self, routes: Wanted) -> None:
        """Stops the replicas that the proxy no longer sends requests to."""
        for each in list(self.serving.values()):
            if each.replica.name in routes.absent:
                self._stop(each)

    def _stop_unwanted(self) -> None:
        """Stops the replicas of a deployment that wants none, although nobody says that they are not routed."""
        if not wanted_replicas(self.deployment):
            for each in list(self.serving.values()):
                self._stop(each)

    # --------------------------------------------------------------------------------------------------- replicas

    async def _spec(self, revision: int) -> deployment_pb2.DeploymentSpec:
        """Returns what the replicas of a revision are made of."""
        if revision == self.deployment.revision:
            return self.deployment.spec
        spec = self._specs.get(revision)
        if spec is None:
            found = await self._peers.metadata.GetDeploymentRevision(
                metadata_pb2.GetDeploymentRevisionRequest(name=f"{self.name}/revisions/{revision}")
            )
            spec = self._specs[revision] = found.spec
        return spec

    async def _start(self, revision: int, failed: Replica | None) -> None:
        """Starts another replica, in the place of one that failed or of none."""
        spec = await self._spec(revision)
        project, deployment = names.parse(self.name).ids
        replica = Replica(revision=revision, state=Replica.STARTING, restarts=failed.restarts + 1 if failed else 0)
        while True:
            id = f"r{revision}-{secrets.token_hex(3)}"
            replica.name = names.join("replica", project, deployment, id)
            try:
                record = await self._peers.records.CreateRecord(
                    records_pb2.CreateRecordRequest(resource=resource_pb2.Resource(replica=replica))
                )
                break
            except AlreadyExists:
                continue
        if failed is not None:
            self._vacated.remove(failed)
        await self._begin(record.resource.replica, spec)

    async def _begin(self, replica: Replica, spec: deployment_pb2.DeploymentSpec) -> None:
        """Starts the process of a recorded replica, unless it runs, and looks after it."""
        each = self.take(replica)
        refused: NoronhaError | None = None
        try:
            each.inputs = await self._owner.admission.inputs(project_of(self.name), [], spec.model_versions)
            await self._owner.platform.start(
                workloads.of_replica(
                    replica,
                    spec,
                    id=each.workload,
                    address=self._owner.context.address,
                    token=self._owner.token(replica.name, each.inputs.models),
                    grace=self._owner.settings.runner.grace,
                )
            )
        except NoronhaError as error:
            refused = error
        self._owner.spawn(self._attend(each, refused), f"replica {replica.name}")

    def take(self, replica: Replica) -> Serving:
        """Makes a replica known."""
        id = workloads.replica_id(replica, self.tenant)
        each = Serving(replica, self.tenant, self._owner.logs.open(id), self)
        self.serving[names.parse(replica.name).ids[-1]] = each
        self._owner.enlist(each)
        self._tell()
        return each

    async def _adopt(self, replica: Replica) -> None:
        """Takes on a replica that is recorded as not ended."""
        if names.parse(replica.name).ids[-1] in self.serving:
            return
        instance = await self._owner.platform.inspect(workloads.replica_id(replica, self.tenant))
        if replica.state == Replica.STARTING and instance is None:
            await self._begin(replica, await self._spec(replica.revision))
            return
        each = self.take(replica)
        each.served = replica.state == Replica.READY
        each.ready_since = time.monotonic() if each.served else 0.0
        self._owner.spawn(self._attend(each, None), f"replica {replica.name}")

    async def _attend(self, each: Serving, refused: NoronhaError | None) -> None:
        """Sees a replica through to its end."""
        waiting = asyncio.create_task(self._exit(each, refused))
        minding = asyncio.create_task(self._mind(each))
        try:
            exit = await waiting
            minding.cancel()
            await self._ended(each, exit)
        finally:
            waiting.cancel()
            minding.cancel()

    async def _exit(self, each: Serving, refused: NoronhaError | None) -> Exit:
        if refused is not None:
            return Exit(Cause.NOT_STARTED, refused.message, reason=refused.reason)
        return await endings.exit_of(self._owner, each.workload)

    async def _mind(self, each: Serving) -> None:
        """Waits until a replica serves and says so; then probes it, if it is to be probed."""
        limit = self._owner.settings.runner.start_timeout
        try:
            await asyncio.wait_for(self._until_ready(each), limit)
        except asyncio.TimeoutError:
            each.outcome = sessions.failure("START_TIMEOUT", f"the replica did not serve within {limit:g} s")
            self._stop(each)
            return
        if each.replica.state == Replica.STARTING:
            instance = await self._owner.platform.inspect(each.workload)
            if instance is not None:
                each.replica.workload = instance.handle
                if instance.limits_applied is not None:
                    each.replica.limits_applied = instance.limits_applied
            await self._owner.persist(lambda: self._change(each, Replica.READY))
            each.ready_since = time.monotonic()
            each.served = True
            self.wake()
        spec = await self._spec(each.replica.revision)
        if spec.HasField("health_check") and spec.health_check.enabled:
            await self._probe(each, spec)

    async def _until_ready(self, each: Serving) -> None:
        if each.replica.state != Replica.STARTING:
            return
        while True:
            await each.changed.wait()
            each.changed.clear()
            while each.says_ready:
                if await probes.healthy(each.replica.host, each.replica.port, HEALTH_TIMEOUT):
                    return
                await asyncio.sleep(0.05)

    async def _probe(self, each: Serving, spec: deployment_pb2.DeploymentSpec) -> None:
        """Probes a replica; one that fails too often is ended, and another takes its place."""
        check = health_checks.completed(spec.health_check)
        failed = 0
        await asyncio.sleep(check.start_period)
        while failed < check.retries:
            failed = 0 if await probes.healthy(each.replica.host, each.replica.port, check.timeout) else failed + 1
            await asyncio.sleep(check.interval)
        each.outcome = sessions.failure("UNHEALTHY", f"the replica failed {failed} health checks in a row")
        log.warning("%s is ended: it failed %d health checks in a row", each.name, failed)
        self._stop(each)

    def _stop(self, each: Serving) -> None:
        """Asks a replica to finish what is in flight and end; by force when it does not."""
        if not each.stopping:
            each.stopping = True
            work = endings.end(self._owner, each, sessions.shutdown, LEAVING)
            self._owner.spawn(work, f"stopping {each.name}")

    async def _ended(self, each: Serving, exit: Exit) -> None:
        """Writes down how a replica ended, and forgets the oldest of those that have."""
        error = each.outcome
        if error is None and not each.stopping and each.replica.state != Replica.DRAINING:
            error = endings.failure_of(exit)
            await endings.say_last_words(self._owner, each, exit)
        if error is not None:
            failures = self._failures.setdefault(each.replica.revision, Failures())
            failures.add(sessions.reason_of(error) or "TASK_ERROR", error, time.monotonic(), each.served)
            log.info("%s failed: %s", each.name, error.message)
            each.replica.error.CopyFrom(error)
            self._vacated.append(each.replica)
        state = Replica.STOPPED if error is None else Replica.FAILED
        with contextlib.suppress(NotFound):
            await self._owner.persist(lambda: self._change(each, state))
        del self.serving[names.parse(each.name).ids[-1]]
        each.end()
        self._owner.dismiss(each)
        self._tell()
        self.wake()
        await self._owner.platform.clean(each.workload)
        if not self.gone.is_set():
            with contextlib.suppress(NoronhaError):
                await self._forget_oldest()

    async def _forget_oldest(self) -> None:
        ended = [each for each in await self.recorded() if each.state in (Replica.STOPPED, Replica.FAILED)]
        for each in ended[:-KEPT]:
            await self.forget(each)

    async def recorded(self) -> list[Replica]:
        """Returns the replicas on record, oldest first."""
        found: list[Replica] = []
        token = ""
        while True:
            page = await self._peers.metadata.ListReplicas(
                metadata_pb2.ListReplicasRequest(parent=self.name, page_size=1000, page_token=token)
            )
            found += page.replicas
            token = page.next_page_token
            if not token:
                return sorted(found, key=lambda each: each.create_time.ToNanoseconds())

    async def forget(self, replica: Replica) -> None:
        """Removes a replica that has ended: record, log, folder."""
        with contextlib.suppress(NotFound):
            await self._peers.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=replica.name))
        id = workloads.replica_id(replica, self.tenant)
        await self._owner.platform.remove(id)
        self._owner.logs.remove(id)

    async def _change(self, each: Serving, state: Replica.State.ValueType) -> None:
        """Moves a replica to a state and writes it down."""
        each.replica.state = state
        changed = Replica()
        changed.CopyFrom(each.replica)
        changed.etag = ""
        paths = ["state", "host", "port", "workload", "error", "limits_applied"]
        await self._owner.write(resource_pb2.Resource(replica=changed), paths, 0)
        self._tell()

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    # ----------------------------------------------------------------------------------------------------- status

    async def _write_status(self) -> None:
        settings = self._owner.settings.router
        async with self.writing:
            if self.gone.is_set():
                return
            deployment = self.deployment
            status = rollout.status_of(
                deployment,
                self.replicas(),
                self.shared,
                self._failures,
                self._routes.error,
                self._routes.hold(self._wanted_routes()),
                f"{settings.host}:{deployment.port}",
                self._routes.port_error,
            )
            if status == deployment.status:
                return
            changed = deployment_pb2.Deployment(name=self.name, status=status)
            try:
                await self._owner.write(
                    resource_pb2.Resource(deployment=changed), ["status"], self._owner.leases.fence(self.name)
                )
            except NotFound:
                log.info("the record of %s is gone, so it is ended", self.name)
                self.gone.set()
                self._owner.spawn(self.stop_all(), f"ending {self.name}")
                return
            deployment.status.CopyFrom(status)

    async def suspend(self) -> None:
        """Stops every replica although they are wanted, and says so; the next mesh starts them again."""
        self.gone.set()
        self.wake()
        await self.stop_all()
        if not wanted_replicas(self.deployment):
            return
        async with self.writing:
            status = deployment_pb2.DeploymentStatus(
                state=deployment_pb2.DeploymentStatus.PENDING,
                observed_generation=self.deployment.generation,
                serving_revision=self.deployment.status.serving_revision,
            )
            changed = deployment_pb2.Deployment(name=self.name, status=status)
            with contextlib.suppress(NoronhaError):
                await self._owner.write(
                    resource_pb2.Resource(deployment=changed), ["status"], self._owner.leases.fence(self.name)
                )

    async def stop_all(self) -> None:
        """Stops every replica and waits until they have ended; those that are being started right now among them."""
        async with self._stepping:
            ending = list(self.serving.values())
        for each in ending:
            self._stop(each)
        await asyncio.gather(*(each.over.wait() for each in ending))

    # ----------------------------------------------------------------------------------------- what replicas say

    async def assignment(self, each: Serving) -> tasks_pb2.Assignment:
        """Returns what a replica is to do."""
        spec = await self._spec(each.replica.revision)
        if each.inputs is None:
            each.inputs = await self._owner.admission.inputs(project_of(self.name), [], spec.model_versions)
        settings = self._owner.settings.runner
        anywhere = self._owner.platform.listens_anywhere
        return tasks_pb2.Assignment(
            kind=tasks_pb2.Assignment.REPLICA,
            name=each.name,
            project=each.inputs.project,
            notebook=spec.notebook,
            params_json=spec.params_json,
            model_versions=each.inputs.model_versions,
            web_server=spec.web_server,
            listen_host="127.0.0.1" if anywhere else "0.0.0.0",
            listen_port=0 if anywhere else workloads.SERVING_PORT,
            heartbeat_interval=sessions.seconds(settings.heartbeat_interval),
            heartbeat_timeout=sessions.seconds(settings.heartbeat_timeout),
            max_log_bytes=settings.max_log_bytes,
            create_time=each.replica.create_time,
            models=each.inputs.models,
            revision=each.replica.revision,
        )

    def heard(self, each: Serving, request: tasks_pb2.HeartbeatRequest) -> None:
        """Takes in where a replica serves, and whether."""
        if request.port and each.replica.state == Replica.STARTING:
            each.replica.host = request.host or "127.0.0.1"
            each.replica.port = request.port
        each.says_ready = request.ready and bool(each.replica.port)
        each.changed.set()

    def outcome(self, each: Serving, request: tasks_pb2.ReportOutcomeRequest) -> None:
        """Takes in a replica's own account of its end; the first one stands."""
        if each.stopping or each.outcome is not None:
            return
        if request.outcome == tasks_pb2.ReportOutcomeRequest.FAILED:
            given = bool(request.error.message)
            each.outcome = request.error if given else sessions.failure("TASK_ERROR", "the replica failed; see its log")
        else:
            each.outcome = sessions.failure("NOT_SERVING", "the notebook ended without serving predictions")
        self._stop(each)

    async def update(self, version: str) -> str:
        """Has every ready replica take a version up; returns what went wrong, '' for nothing."""
        serving = [each for each in self.serving.values() if each.replica.state == Replica.READY]
        if not serving:
            return f"{self.name} was not updated: none of its replicas is ready"
        answers = await asyncio.gather(
            *(probes.update(each.replica.host, each.replica.port, version, UPDATE_TIMEOUT) for each in serving)
        )
        wrong = [
            f"{names.parse(each.name).ids[-1]}: {answer.problem}"
            for each, answer in zip(serving, answers, strict=True)
            if answer.status != 200
        ]
        return f"{self.name} did not take {version} up everywhere: {'; '.join(wrong)}" if wrong else ""

    # ------------------------------------------------------------------------------------------------------- logs

    async def parts(self, replica: str) -> Mapping[str, logs.Part]:
        """Returns the logs of one replica, or of all that are on record."""
        found: dict[str, logs.Part] = {}
        for each in await self.recorded():
            id = names.parse(each.name).ids[-1]
            if replica in ("", id):
                text = self._owner.logs.open(workloads.replica_id(each, self.tenant))
                found[id] = logs.Part(text, id not in self.serving)
        return found
