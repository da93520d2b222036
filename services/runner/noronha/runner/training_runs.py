"""Trainings that run: started, heard, ended and written down, each seen through to its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from google.rpc import status_pb2

from noronha.chassis import principals
from noronha.chassis.timestamps import now
from noronha.rpc import names
from noronha.rpc.errors import Aborted, FailedPrecondition, NoronhaError, NotFound
from noronha.runner import endings, logs, rescue, sessions, workloads
from noronha.runner.admission import Inputs
from noronha.runner.backend import Cause, Exit, Workload
from noronha.runner.ownership import AWAY, Owner, project_of
from noronha.runner.sessions import Session
from noronha.v1 import records_pb2, resource_pb2, store_pb2, tasks_pb2, training_pb2
from noronha.v1.file_pb2 import File
from noronha.v1.task_status_pb2 import TaskStatus

FLUSH = 0.25
"""Seconds for which progress is gathered before it is written."""

LEAVING = 15.0
"""Seconds that a task has to go after it said how it ended."""

KEEPING = 5.0
"""Seconds beyond its grace in which a training that was told to end still sends what it has."""

MAX_WARNINGS = 100

log = logging.getLogger("noronha.runner")


class Running(Session):
    """A training that has not ended."""

    def __init__(self, training: training_pb2.Training, tenant: str, log: logs.Log, inputs: Inputs | None) -> None:
        super().__init__(training.name, tenant, workloads.training_id(training, tenant), log)
        self.training = training
        self.inputs = inputs
        self.concluding: asyncio.Task[None] | None = None
        self.dirty = asyncio.Event()
        self.writing = asyncio.Lock()
        """Held while the record is written, so that an older state never overtakes a newer one."""
        self.lost = asyncio.Event()
        """Set when another Runner took the record over."""


class Runs:
    """The trainings of one Runner that have not ended."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._peers = owner.peers
        self._running: dict[tuple[str, str], Running] = {}
        self._attended = 0
        self.take_up: Callable[[str, str], Awaitable[str]] = _nobody
        """Has a deployment take a version up: ``(deployment, version) -> problem``, '' for none."""

    def find(self, name: str) -> Running | None:
        """Returns a training of the present tenant that has not ended, None when there is none of that name."""
        return self._running.get((principals.current().tenant, name))

    def all(self) -> list[Running]:
        """Returns every training that has not ended."""
        return list(self._running.values())

    def busy(self) -> bool:
        """Says whether a training runs."""
        return bool(self._running or self._attended)

    def take(self, training: training_pb2.Training, lease: records_pb2.Lease | None, inputs: Inputs | None) -> Running:
        """Makes a training known as running; ``lease`` is the one that came with a new record."""
        tenant = principals.current().tenant
        id = workloads.training_id(training, tenant)
        running = Running(training, tenant, self._owner.logs.open(id), inputs)
        if lease is not None:
            self._owner.leases.hold(lease, running.lost.set)
        self._running[tenant, training.name] = running
        self._owner.enlist(running)
        return running

    def _workload(self, running: Running) -> Workload:
        models = running.inputs.models if running.inputs is not None else []
        return workloads.of_training(
            running.training,
            id=running.workload,
            address=self._owner.context.address,
            token=self._owner.token(running.name, models),
            grace=self._owner.settings.runner.grace,
        )

    async def start(self, running: Running) -> None:
        """Starts a training's process and looks after it from then on."""
        refused: NoronhaError | None = None
        try:
            await self._owner.platform.start(self._workload(running))
        except NoronhaError as error:
            refused = error
        self._owner.spawn(self._attend(running, refused), f"training {running.name}")

    # -------------------------------------------------------------------------------------------- looking after

    async def _attend(self, running: Running, refused: NoronhaError | None = None) -> None:
        """Sees a training through to its end, whatever ends it."""
        self._attended += 1
        flushing = asyncio.create_task(self._flush(running))
        if running.training.status.cancel_requested:
            self.ask_to_end(running)
        try:
            if refused is not None:
                await self.conclude(running, TaskStatus.FAILED, sessions.failure(refused.reason, refused.message))
                return
            waiting = asyncio.create_task(endings.exit_of(self._owner, running.workload))
            over = asyncio.create_task(running.over.wait())
            lost = asyncio.create_task(running.lost.wait())
            try:
                await asyncio.wait({waiting, over, lost}, return_when=asyncio.FIRST_COMPLETED)
                if running.lost.is_set():
                    running.end()
                    return
                if waiting.done():
                    await self._ended(running, waiting)
                elif running.over.is_set():
                    await self._see_off(running, waiting)
            finally:
                for each in (waiting, over, lost):
                    each.cancel()
        finally:
            flushing.cancel()
            self._attended -= 1
            if running.over.is_set():
                self.drop(running)

    def drop(self, running: Running) -> None:
        """Forgets a training that has ended."""
        if self._running.get((running.tenant, running.name)) is running:
            del self._running[running.tenant, running.name]
        self._owner.dismiss(running)

    async def _ended(self, running: Running, waiting: asyncio.Task[Exit]) -> None:
        """The platform says that the process is gone: that stands in for a report that never came."""
        if running.concluding is not None:
            await asyncio.wait([running.concluding])  # the report came just before
        exit = waiting.result()
        if not running.over.is_set():
            status = running.training.status
            error = endings.failure_of(exit)
            state = TaskStatus.FAILED
            if status.cancel_requested and exit.cause is not Cause.TIMED_OUT:
                state, error = TaskStatus.CANCELLED, sessions.failure("CANCELLED", "the training was cancelled")
            elif exit.cause is Cause.TIMED_OUT:
                error = self._timed_out(running)
            if exit.code is not None:
                status.exit_code = exit.code
            await endings.say_last_words(self._owner, running, exit)
            executed = await self._rescue_notebook(running)
            await self.conclude(running, state, error, executed)
        await self._clean(running)

    async def _rescue_notebook(self, running: Running) -> File | None:
        """Keeps the notebook as far as it was executed, when the one that would have sent it is gone."""
        folder = self._owner.platform.folder(running.workload)
        if folder is None:
            return None
        try:
            return await rescue.executed_notebook(self._peers, folder)
        except (NoronhaError, OSError) as error:
            log.warning("the executed notebook of %s was not kept: %s", running.name, error)
            return None

    async def _see_off(self, running: Running, waiting: asyncio.Task[Exit]) -> None:
        """Lets a process go that said how it ended, and helps it when it does not."""
        done, _ = await asyncio.wait({waiting}, timeout=LEAVING)
        if not done:
            log.warning("%s has ended, but its process stays; it is ended by force", running.name)
            await self._owner.platform.stop(running.workload, 0.0)
            await asyncio.wait({waiting})
        waiting.result()
        await self._clean(running)

    async def _clean(self, running: Running) -> None:
        await self._owner.platform.clean(running.workload)
        folder = self._owner.platform.folder(running.workload)
        if folder is not None and running.training.HasField("executed_notebook"):
            rescue.discard(folder)

    async def _flush(self, running: Running) -> None:
        """Writes progress down now and then; only the latest counts."""
        while not running.over.is_set():
            await running.dirty.wait()
            running.dirty.clear()
            if running.concluding is not None:
                return
            try:
                await self.write(running, "status", "warnings")
            except AWAY:
                running.dirty.set()
            except NotFound:
                log.warning("the record of %s is gone, so it is ended", running.name)
                self._owner.spawn(self.forget(running.workload), f"forgetting {running.name}")
                return
            except (Aborted, FailedPrecondition) as error:
                log.warning("%s cannot be written: %s", running.name, error)
                return
            await asyncio.sleep(FLUSH)

    async def write(self, running: Running, *paths: str) -> None:
        """Writes fields of a training's record. Raises NotFound, Aborted, FailedPrecondition when it is not ours."""
        async with running.writing:
            running.training.status.update_time.CopyFrom(now())
            changed = training_pb2.Training()
            changed.CopyFrom(running.training)
            changed.etag = ""
            fence = self._owner.leases.fence(running.name)
            await self._owner.write(resource_pb2.Resource(training=changed), list(paths), fence)

    async def conclude(
        self,
        running: Running,
        state: TaskStatus.State.ValueType,
        error: status_pb2.Status | None = None,
        executed: File | None = None,
    ) -> None:
        """Writes down how a training ended; once."""
        if running.concluding is None or (running.concluding.done() and not running.over.is_set()):
            work = self._conclusion(running, state, error, executed)
            running.concluding = self._owner.spawn(work, f"end of {running.name}")
        await asyncio.shield(running.concluding)

    async def _conclusion(
        self,
        running: Running,
        state: TaskStatus.State.ValueType,
        error: status_pb2.Status | None,
        executed: File | None,
    ) -> None:
        training = running.training
        status = training.status
        paths = ["status", "warnings"]
        if executed is not None:
            training.executed_notebook.CopyFrom(executed)
            paths.append("executed_notebook")
        if state == TaskStatus.SUCCEEDED and training.target_deployment:
            await self._hand_over(training)
            paths.append("target_deployment_updated")
        status.state = state
        status.end_time.CopyFrom(now())
        if not status.HasField("start_time"):
            status.start_time.CopyFrom(status.end_time)
        if state == TaskStatus.SUCCEEDED:
            status.progress = 1.0
        elif error is not None:
            status.error.CopyFrom(error)
            status.reason = sessions.reason_of(error) or "TASK_ERROR"
        try:
            await self._owner.persist(lambda: self.write(running, *paths))
        except (NotFound, Aborted, FailedPrecondition) as refused:
            # Deleted, or another Runner's by now: either way not ours to say.
            log.warning("the end of %s was not written: %s", running.name, refused)
        running.end()
        if self._running.get((running.tenant, running.name)) is running:
            del self._running[running.tenant, running.name]  # the name may be deleted and used again from now on
        await self._owner.leases.release(running.name)

    async def _hand_over(self, training: training_pb2.Training) -> None:
        """Has the target deployment take up the version that the training published."""
        problem = f"{training.target_deployment} was not updated: the training published no version"
        if training.published:
            version = names.parse(training.published[-1], "model_version").ids[-1]
            problem = await self.take_up(training.target_deployment, version)
        training.target_deployment_updated = not problem
        if problem:
            _warn(training, problem)

    def _timed_out(self, running: Running) -> status_pb2.Status:
        limit = running.training.timeout.ToMilliseconds() / 1000
        return sessions.failure("TIMED_OUT", f"the training ran longer than its timeout of {limit:g} s")

    # ------------------------------------------------------------------------------------------ what tasks say

    async def assignment(self, running: Running) -> tasks_pb2.Assignment:
        """Returns what a training's task is to do; the training runs from now on."""
        training = running.training
        if running.inputs is None:
            running.inputs = await self._owner.admission.inputs(
                project_of(training.name), training.datasets, training.pretrained
            )
        if training.status.state == TaskStatus.PENDING:
            instance = await self._owner.platform.inspect(running.workload)
            training.status.state = TaskStatus.RUNNING
            training.status.start_time.CopyFrom(now())
            if instance is not None and instance.limits_applied is not None:
                training.status.limits_applied = instance.limits_applied
            running.dirty.set()
        settings = self._owner.settings.runner
        return tasks_pb2.Assignment(
            kind=tasks_pb2.Assignment.TRAINING,
            name=training.name,
            project=running.inputs.project,
            notebook=training.notebook,
            params_json=training.params_json,
            datasets=running.inputs.datasets,
            model_versions=running.inputs.model_versions,
            training=training,
            heartbeat_interval=sessions.seconds(settings.heartbeat_interval),
            heartbeat_timeout=sessions.seconds(settings.heartbeat_timeout),
            max_log_bytes=settings.max_log_bytes,
            create_time=training.create_time,
            models=running.inputs.models,
        )

    def progress(self, running: Running, progress: float, warning: str) -> None:
        """Takes progress in, brought into order: never back, never outside 0 to 1."""
        status = running.training.status
        if progress == progress:  # not NaN
            status.progress = max(status.progress, min(max(progress, 0.0), 1.0))
        if warning:
            _warn(running.training, warning)
        running.dirty.set()

    async def published(self, running: Running, version: str) -> None:
        """Adds a version to the training."""
        parsed = names.parse(version, "model_version", field="model_version")
        if parsed.revision is None:
            raise names.bad_name(version, "model_version", "must name its revision, as in models/m/versions/v@1")
        if version not in running.training.published:
            running.training.published.append(version)
            await self._owner.persist(lambda: self.write(running, "published"))

    async def outcome(self, running: Running, request: tasks_pb2.ReportOutcomeRequest) -> None:
        """Takes the task's own report of how it ended; the first one stands."""
        if running.over.is_set():
            return
        if running.concluding is not None and not running.concluding.done():
            await asyncio.shield(running.concluding)
            return
        executed = await self._sealed(request) if request.upload else None
        training = running.training
        outcome = request.outcome
        state = TaskStatus.SUCCEEDED
        error: status_pb2.Status | None = None
        if outcome == tasks_pb2.ReportOutcomeRequest.SUCCEEDED:
            pass
        elif training.status.cancel_requested:
            state, error = TaskStatus.CANCELLED, sessions.failure("CANCELLED", "the training was cancelled")
        elif await self._is_past_timeout(running):
            state, error = TaskStatus.FAILED, self._timed_out(running)
        elif outcome == tasks_pb2.ReportOutcomeRequest.CANCELLED:
            state, error = TaskStatus.CANCELLED, sessions.failure("CANCELLED", "the training was told to stop")
        else:
            state, error = TaskStatus.FAILED, await self._explained(running, request.error)
        await self.conclude(running, state, error, executed)

    async def _is_past_timeout(self, running: Running) -> bool:
        """Says whether the platform has told the task to end: by its own clock, which began when the process did."""
        if not running.training.HasField("timeout"):
            return False
        instance = await self._owner.platform.inspect(running.workload)
        if instance is None or not instance.start_time:
            return False
        return time.time() - instance.start_time >= running.training.timeout.ToMilliseconds() / 1000

    async def _explained(self, running: Running, error: status_pb2.Status) -> status_pb2.Status:
        """Returns why a task failed; the platform may know better why its kernel died."""
        if sessions.reason_of(error) == "KERNEL_DIED":
            instance = await self._owner.platform.inspect(running.workload)
            if instance is not None and instance.out_of_memory:
                limit = running.training.resources.limits.memory_mb
                bound = f"its limit of {limit} MiB" if limit else "what the machine has"
                return sessions.failure("OUT_OF_MEMORY", f"the kernel was killed: it used more memory than {bound}")
        if not error.message:
            return sessions.failure("TASK_ERROR", "the task failed and did not say why; see its log")
        return error

    async def _sealed(self, request: tasks_pb2.ReportOutcomeRequest) -> File:
        """Returns the executed notebook once Store holds it."""
        principal = principals.current()
        sealed = await self._peers.store.SealUpload(
            store_pb2.SealUploadRequest(upload=request.upload, subject=principal.identity)
        )
        file = request.executed_notebook
        size = next((each.size_bytes for each in sealed.entries if each.digest == file.digest), None)
        if size is None:
            raise FailedPrecondition(
                "the upload does not hold the executed notebook", reason="BLOB_NOT_HELD", digest=file.digest
            )
        return File(path=file.path, digest=file.digest, size_bytes=size)

    # -------------------------------------------------------------------------------------------------- ending

    def ask_to_end(self, running: Running) -> None:
        """Has a training end: told first, then by force."""
        work = endings.end(self._owner, running, sessions.cancel, KEEPING)
        self._owner.spawn(work, f"cancelling {running.name}")

    async def forget(self, workload: str) -> None:
        """Removes what is left of a training whose record is gone."""
        await self._owner.platform.remove(workload)
        self._owner.logs.remove(workload)


async def _nobody(deployment: str, version: str) -> str:
    return f"{deployment} was not updated: this mesh runs no deployments"


def _warn(training: training_pb2.Training, warning: str) -> None:
    if warning not in training.warnings and len(training.warnings) < MAX_WARNINGS:
        training.warnings.append(warning)
