"""Trainings: what is asked for them, checked and recorded, and those found again that ran before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator

from noronha.chassis import anonymous, principals, request_ids
from noronha.chassis.timestamps import now
from noronha.rpc import names
from noronha.rpc.errors import AlreadyExists, FailedPrecondition, NoronhaError, NotFound
from noronha.runner import logs, sessions, workloads
from noronha.runner.admission import Inputs
from noronha.runner.ownership import Owner, project_of
from noronha.runner.training_runs import Runs
from noronha.v1 import metadata_pb2, records_pb2, resource_pb2, runner_pb2, training_pb2
from noronha.v1.task_status_pb2 import TaskStatus

ENDED = frozenset({TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.CANCELLED})

_DRAWS = 20

log = logging.getLogger("noronha.runner")


class Trainings:
    """The trainings of one Runner."""

    def __init__(self, owner: Owner, runs: Runs) -> None:
        self._owner = owner
        self._peers = owner.peers
        self._runs = runs
        self._made: deque[tuple[str, str, int]] = deque(maxlen=10_000)

    async def create(self, request: runner_pb2.CreateTrainingRequest) -> training_pb2.Training:
        """Records a training and starts it; see ``Runner.CreateTraining``."""
        request_ids.check(request.request_id)
        try:
            training = await self._create(request)
        except NoronhaError:
            first = await request_ids.first_answer(self._peers.records, request, principals.current())
            if first is None:
                raise
            training = first.records[-1].resource.training
        if self._runs.find(training.name) is None:
            # Made by an earlier call with this request id, perhaps by a mesh that was killed since.
            await self.adopt(training)
        return training

    async def _create(self, request: runner_pb2.CreateTrainingRequest) -> training_pb2.Training:
        if request.training_id:
            names.check_id(request.training_id, "training_id")
        made, inputs = await self._owner.admission.training(request.parent, request.training)
        made.status.state = TaskStatus.PENDING
        made.status.update_time.CopyFrom(now())
        await self._owner.platform.check(workloads.of_training(made, id="check"))
        old = await self._replaced(request)
        create = records_pb2.CreateRecordRequest(
            resource=resource_pb2.Resource(training=made),
            request_id=request.request_id,
            request_fingerprint=request_ids.fingerprint(request, principals.current()),
            lease_holder=self._owner.leases.holder,
            lease_duration=self._owner.leases.duration,
        )
        project = names.parse(request.parent).ids[0]
        for draw in range(_DRAWS):
            made.name = names.join("training", project, request.training_id or anonymous.draw())
            create.resource.training.name = made.name
            try:
                async with self._owner.alone(made.name):
                    training = await self._begin(create, inputs, old)
            except AlreadyExists as error:
                if request.replace and error.reason == "ALREADY_EXISTS":
                    raise _still_running(made.name) from error
                if request.training_id or error.reason == "REQUEST_ID_REUSED" or draw == _DRAWS - 1:
                    raise
            else:
                break
        return training

    async def _replaced(self, request: runner_pb2.CreateTrainingRequest) -> training_pb2.Training | None:
        """Returns the training that has ended and is to be replaced, None for none."""
        if not request.replace or not request.training_id:
            return None
        try:
            old = await self._get(names.join("training", names.parse(request.parent).ids[0], request.training_id))
        except NotFound:
            return None
        return old if old.status.state in ENDED else None

    async def _begin(
        self, create: records_pb2.CreateRecordRequest, inputs: Inputs, old: training_pb2.Training | None
    ) -> training_pb2.Training:
        """Records a training in the place of ``old`` and starts it, unless that was done before."""
        commit = records_pb2.CommitRecordsRequest()
        if old is not None:
            commit.writes.add(delete=records_pb2.DeleteRecordRequest(name=old.name, etag=old.etag))
        commit.writes.add(create=create)
        record = (await self._peers.records.CommitRecords(commit)).records[-1]
        training: training_pb2.Training = record.resource.training
        once = (principals.current().tenant, training.name, training.create_time.ToNanoseconds())
        if record.lease.holder == self._owner.leases.holder and once not in self._made:
            self._made.append(once)
            if old is not None:
                gone = workloads.training_id(old, principals.current().tenant)
                self._owner.spawn(self._runs.forget(gone), f"removing what is left of an earlier {old.name}")
            await self._runs.start(self._runs.take(training, record.lease, inputs))
        return training

    async def cancel(self, name: str) -> training_pb2.Training:
        """Asks a training to end and returns its record; see ``Runner.CancelTraining``."""
        names.parse(name, "training")
        running = self._runs.find(name)
        if running is None or running.over.is_set():
            return await self._get(name)
        if running.concluding is None and not running.training.status.cancel_requested:
            running.training.status.cancel_requested = True
            await self._owner.persist(lambda: self._runs.write(running, "status"))
            self._runs.ask_to_end(running)
        return running.training

    async def stop_all(self) -> None:
        """Cancels every training and waits until all have ended."""
        for running in self._runs.all():
            with contextlib.suppress(NoronhaError):
                await self.cancel(running.name)
        await asyncio.gather(*(running.over.wait() for running in self._runs.all()))

    async def delete(self, name: str, etag: str) -> None:
        """Deletes a training that has ended; see ``Runner.DeleteTraining``."""
        names.parse(name, "training")
        training = await self._get(name)
        if training.status.state not in ENDED:
            raise _still_running(name)
        await self._peers.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=name, etag=etag))
        await self._runs.forget(workloads.training_id(training, principals.current().tenant))

    async def _get(self, name: str) -> training_pb2.Training:
        training: training_pb2.Training = await self._peers.metadata.GetTraining(
            metadata_pb2.GetTrainingRequest(name=name)
        )
        return training

    # ------------------------------------------------------------------------------------------------ finding

    async def adopt(self, training: training_pb2.Training) -> bool:
        """Takes on a training that nobody looks after; returns whether it is looked after now."""
        async with self._owner.alone(training.name):
            return self._runs.find(training.name) is not None or await self._adopt(training)

    async def _adopt(self, training: training_pb2.Training) -> bool:
        lost = asyncio.Event()
        try:
            await self._owner.leases.take(training.name, lost.set)
        except NotFound:
            return True
        except FailedPrecondition:
            return False
        training = await self._get(training.name)  # as it is now that nobody else writes it
        if training.status.state in ENDED:
            await self._owner.leases.release(training.name)
            return True
        running = self._runs.take(training, None, None)
        running.lost = lost
        try:
            running.inputs = await self._owner.admission.inputs(
                project_of(training.name), training.datasets, training.pretrained
            )
        except NotFound:
            running.inputs = None  # what it was given is gone; a task that runs has it already
        instance = await self._owner.platform.inspect(running.workload)
        log.info("%s is found again, %s", training.name, "running" if instance is not None else "not started")
        if instance is None and training.status.state == TaskStatus.RUNNING:
            why = sessions.failure("TASK_LOST", "nothing of the training's process is left")
            await self._runs.conclude(running, TaskStatus.FAILED, why)
            self._runs.drop(running)
            return True
        await self._runs.start(running)
        return True

    # ---------------------------------------------------------------------------------------------------- logs

    async def tail(self, name: str, position: str, lines: int, follow: bool) -> AsyncIterator[logs.Piece]:
        """Yields a training's log. Raises Unavailable ``STOPPING`` when the server goes before the work has ended."""
        training = await self._get(name)
        if follow and training.status.state not in ENDED:
            await self._owner.wait_until_adopted()
        tenant = principals.current().tenant
        text = self._owner.logs.open(workloads.training_id(training, tenant))
        event = asyncio.Event()
        text.follow(event)

        def ended() -> bool:
            running = self._runs.find(name)
            return running is None or running.over.is_set()

        pieces = logs.tail(
            name,
            lambda: {"": logs.Part(text, ended())},
            position=position,
            lines=lines,
            follow=event if follow else None,
            ended=lambda: ended() or self._owner.context.stopping.is_set(),
        )
        async for piece in pieces:
            yield piece
        if follow and not ended():
            raise self._owner.stopping()


def _still_running(name: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"{name} still runs; cancel it first, or wait until it has ended", reason="STILL_RUNNING", name=name
    )
