"""Runner and Tasks on gRPC: parses, calls trainings, deployments and tasks, answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from google.protobuf import empty_pb2

from noronha.chassis import registry
from noronha.chassis.mount import Context
from noronha.rpc import names
from noronha.rpc.errors import Unavailable, Unimplemented
from noronha.runner.admission import Admission
from noronha.runner.adoption import Adoption
from noronha.runner.backend import Platform
from noronha.runner.backends import SCHEMES
from noronha.runner.deployments import Deployments
from noronha.runner.leases import Leases
from noronha.runner.logs import Logs
from noronha.runner.ownership import Owner
from noronha.runner.tasks import Tasks
from noronha.runner.training_runs import Runs
from noronha.runner.trainings import Trainings
from noronha.v1 import (
    deployment_pb2,
    island_pb2,
    log_pb2,
    notebook_pb2,
    runner_pb2,
    runner_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
    training_pb2,
)


class RunnerServicer(runner_pb2_grpc.RunnerServicer):
    """Answers the calls of Runner."""

    def __init__(self, trainings: Trainings, deployments: Deployments) -> None:
        self._trainings = trainings
        self._deployments = deployments

    async def CreateTraining(self, request: runner_pb2.CreateTrainingRequest, context: Any) -> training_pb2.Training:
        return await self._trainings.create(request)

    async def CancelTraining(self, request: runner_pb2.CancelTrainingRequest, context: Any) -> training_pb2.Training:
        return await self._trainings.cancel(request.name)

    async def DeleteTraining(self, request: runner_pb2.DeleteTrainingRequest, context: Any) -> empty_pb2.Empty:
        await self._trainings.delete(request.name, request.etag)
        return empty_pb2.Empty()

    async def CreateDeployment(
        self, request: runner_pb2.CreateDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        return await self._deployments.create(request)

    async def UpdateDeployment(
        self, request: runner_pb2.UpdateDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        return await self._deployments.update(request)

    async def RollbackDeployment(
        self, request: runner_pb2.RollbackDeploymentRequest, context: Any
    ) -> deployment_pb2.Deployment:
        return await self._deployments.rollback(request)

    async def DeleteDeployment(self, request: runner_pb2.DeleteDeploymentRequest, context: Any) -> empty_pb2.Empty:
        await self._deployments.delete(request.name, request.etag)
        return empty_pb2.Empty()

    async def CreateNotebook(
        self, request: runner_pb2.CreateNotebookRequest, context: Any
    ) -> runner_pb2.CreateNotebookResponse:
        _not_yet("notebook sessions")

    async def CancelNotebook(self, request: runner_pb2.CancelNotebookRequest, context: Any) -> notebook_pb2.Notebook:
        _not_yet("notebook sessions")

    async def DeleteNotebook(self, request: runner_pb2.DeleteNotebookRequest, context: Any) -> empty_pb2.Empty:
        _not_yet("notebook sessions")

    async def SetIsland(self, request: runner_pb2.SetIslandRequest, context: Any) -> island_pb2.Island:
        _not_yet("islands")

    async def DeleteIsland(self, request: runner_pb2.DeleteIslandRequest, context: Any) -> empty_pb2.Empty:
        _not_yet("islands")

    async def TailLogs(self, request: log_pb2.TailLogsRequest, context: Any) -> AsyncIterator[log_pb2.TailLogsResponse]:
        name = names.parse(request.name, "training", "deployment", "notebook", "island")
        if name.kind == "training":
            pieces = self._trainings.tail(request.name, request.position, request.tail_lines, request.follow)
        elif name.kind == "deployment":
            pieces = self._deployments.tail(
                request.name, request.replica, request.position, request.tail_lines, request.follow
            )
        else:
            _not_yet("islands" if name.kind == "island" else "notebook sessions")
        async for piece in pieces:
            yield log_pb2.TailLogsResponse(
                data=piece.data, position=piece.position, replica=piece.part, truncated=piece.truncated
            )


def _not_yet(what: str) -> NoReturn:
    raise Unimplemented(
        f"this mesh runs trainings and deployments, and no {what} yet", reason="NOT_IMPLEMENTED", what=what
    )


class TasksServicer(tasks_pb2_grpc.TasksServicer):
    """Answers the calls of running tasks."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def GetAssignment(self, request: tasks_pb2.GetAssignmentRequest, context: Any) -> tasks_pb2.Assignment:
        return await self._tasks.assignment()

    async def Heartbeat(self, request: tasks_pb2.HeartbeatRequest, context: Any) -> tasks_pb2.HeartbeatResponse:
        return tasks_pb2.HeartbeatResponse(committed_position=await self._tasks.heartbeat(request))

    async def ReportProgress(
        self, request: tasks_pb2.ReportProgressRequest, context: Any
    ) -> tasks_pb2.ReportProgressResponse:
        await self._tasks.progress(request.progress, request.warning)
        return tasks_pb2.ReportProgressResponse()

    async def AppendOutput(
        self, request: tasks_pb2.AppendOutputRequest, context: Any
    ) -> tasks_pb2.AppendOutputResponse:
        committed = await self._tasks.append(request.position, request.data)
        return tasks_pb2.AppendOutputResponse(committed_position=committed)

    async def ReportPublished(
        self, request: tasks_pb2.ReportPublishedRequest, context: Any
    ) -> tasks_pb2.ReportPublishedResponse:
        await self._tasks.published(request.model_version)
        return tasks_pb2.ReportPublishedResponse()

    async def ReportOutcome(
        self, request: tasks_pb2.ReportOutcomeRequest, context: Any
    ) -> tasks_pb2.ReportOutcomeResponse:
        await self._tasks.outcome(request)
        return tasks_pb2.ReportOutcomeResponse()

    async def WatchCommands(
        self, request: tasks_pb2.WatchCommandsRequest, context: Any
    ) -> AsyncIterator[tasks_pb2.Command]:
        async for command in self._tasks.commands():
            yield command


@contextlib.asynccontextmanager
async def mount(server: Any, context: Context) -> AsyncIterator[list[str]]:
    """Adds Runner and Tasks to a server, with the backend of ``runner.backend``. What runs outlives the server."""
    settings = context.settings
    url = settings.backend("runner")
    folder = context.state_dir("runner")
    platform: Platform = registry.load(SCHEMES, url, "runner.backend")(url, folder, context.root)
    owner = Owner(
        context,
        platform,
        Logs(folder / "logs", settings.runner.max_log_bytes),
        Leases(context.peers, folder),
        Admission(context.peers, settings.mesh.allowed_mounts),
    )
    runs = Runs(owner)
    trainings = Trainings(owner, runs)
    deployments = Deployments(owner)
    runs.take_up = deployments.take_up
    runner_pb2_grpc.add_RunnerServicer_to_server(RunnerServicer(trainings, deployments), server)
    tasks_pb2_grpc.add_TasksServicer_to_server(TasksServicer(Tasks(owner, runs)), server)

    async def busy() -> bool:
        return not owner.adopted.is_set() or runs.busy() or deployments.busy()

    async def stop() -> None:
        with contextlib.suppress(Unavailable):
            await owner.wait_until_adopted()
        await asyncio.gather(trainings.stop_all(), deployments.stop_all())

    async def wake_on_stop() -> None:
        await context.stopping.wait()
        for session in list(owner.sessions.values()):
            session.log.wake()  # whoever follows it has to leave
            session.commands.close()

    context.background(Adoption(owner, trainings, deployments).run, "runner's look at what runs")
    context.background(owner.leases.keep, "runner's leases")
    context.background(wake_on_stop, "runner's farewell")
    context.busy_while(busy)
    context.stop_with_tasks(stop)
    try:
        yield ["noronha.v1.Runner", "noronha.v1.Tasks"]
    finally:
        await owner.end()
        await platform.close()
