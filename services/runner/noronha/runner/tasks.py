"""What running tasks say and ask: each call is led to the session of the task that makes it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from noronha.chassis import principals
from noronha.rpc import names
from noronha.rpc.errors import FailedPrecondition, NotFound
from noronha.runner.ownership import Owner, acting
from noronha.runner.replicas import Serving
from noronha.runner.sessions import Session, task_ended
from noronha.runner.training_runs import Running, Runs
from noronha.runner.trainings import ENDED
from noronha.v1 import metadata_pb2, tasks_pb2


class Tasks:
    """The tasks of one Runner."""

    def __init__(self, owner: Owner, runs: Runs) -> None:
        self._owner = owner
        self._runs = runs

    async def _session(self) -> Session:
        """Returns the calling task's session. Raises FailedPrecondition ``TASK_ENDED``, Unavailable ``STARTING``."""
        await self._owner.wait_until_adopted()
        caller = principals.current()
        session = self._owner.sessions.get((caller.tenant, caller.subject))
        if session is None:
            raise task_ended(caller.subject)
        return session

    async def _living(self) -> Session:
        session = await self._session()
        session.hear()
        return session

    async def assignment(self) -> tasks_pb2.Assignment:
        """Returns what the calling task is to do."""
        session = await self._living()
        with acting(session.tenant):
            if isinstance(session, Running):
                return await self._runs.assignment(session)
            assert isinstance(session, Serving)
            return await session.controller.assignment(session)

    async def heartbeat(self, request: tasks_pb2.HeartbeatRequest) -> int:
        """Takes a sign of life in; returns how many bytes of output are here."""
        session = await self._living()
        if isinstance(session, Serving):
            session.controller.heard(session, request)
        return session.log.committed

    async def progress(self, progress: float, warning: str) -> None:
        """Takes progress in; of replicas it means nothing."""
        session = await self._living()
        if isinstance(session, Running):
            self._runs.progress(session, progress, warning)

    async def append(self, position: int, data: bytes) -> int:
        """Takes output in; returns how many bytes of it are here."""
        session = await self._living()
        return session.log.append(position, data)

    async def published(self, version: str) -> None:
        """Takes in that a version was published."""
        session = await self._living()
        if isinstance(session, Running):
            with acting(session.tenant):
                await self._runs.published(session, version)

    async def outcome(self, request: tasks_pb2.ReportOutcomeRequest) -> None:
        """Takes in how the calling task ended; said again, it is heard again and changes nothing."""
        try:
            session = await self._session()
        except FailedPrecondition:
            if await self._has_ended(principals.current().subject):
                return
            raise
        if isinstance(session, Running):
            await self._runs.outcome(session, request)
        elif isinstance(session, Serving):
            session.controller.outcome(session, request)

    async def _has_ended(self, name: str) -> bool:
        if names.parse(name).kind != "training" or not self._owner.adopted.is_set():
            return False
        with acting(principals.current().tenant):
            try:
                training = await self._owner.peers.metadata.GetTraining(metadata_pb2.GetTrainingRequest(name=name))
            except NotFound:
                return False
        return training.status.state in ENDED

    async def commands(self) -> AsyncIterator[tasks_pb2.Command]:
        """Yields what the calling task is asked to do, until it has ended."""
        session = await self._living()
        async for command in session.commands.listen():
            yield command
