"""One running task as the mesh knows it: what it was told, what it said, and the commands that still stand for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from noronha.rpc.errors import FailedPrecondition, NoronhaError, to_status
from noronha.runner.logs import Log
from noronha.v1 import tasks_pb2


class Commands:
    """What a task is asked to do; told again whenever it asks anew."""

    def __init__(self) -> None:
        self._standing: tasks_pb2.Command | None = None
        self._changed = asyncio.Event()
        self._closed = False
        self.listeners = 0
        """How many streams of the task wait for commands."""

    def give(self, command: tasks_pb2.Command) -> None:
        """Gives a command."""
        self._standing = command
        self._wake()

    def close(self) -> None:
        """Ends all listening: the task has ended, or the server goes and the task is to ask the next one."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def listen(self) -> AsyncIterator[tasks_pb2.Command]:
        """Yields the command that stands and those that come."""
        self.listeners += 1
        told: tasks_pb2.Command | None = None
        try:
            while not self._closed:
                changed = self._changed
                if self._standing is not None and self._standing is not told:
                    told = self._standing
                    yield told
                    continue
                await changed.wait()
        finally:
            self.listeners -= 1


class Session:
    """A task that runs, whatever it is for."""

    def __init__(self, name: str, tenant: str, workload: str, log: Log) -> None:
        self.name = name
        self.tenant = tenant
        self.workload = workload
        self.log = log
        self.commands = Commands()
        self.heard = 0.0
        """When the task was last heard, by the monotonic clock; 0 before it was."""
        self.over = asyncio.Event()
        """Set once the record says that the task has ended."""

    def hear(self) -> None:
        """Notes that the task lives. Raises FailedPrecondition ``TASK_ENDED`` when its record says that it does not."""
        if self.over.is_set():
            raise task_ended(self.name)
        self.heard = time.monotonic()

    def end(self) -> None:
        """Says that the task has ended."""
        self.over.set()
        self.commands.close()
        self.log.wake()


def task_ended(name: str) -> FailedPrecondition:
    """Returns what a task is told that should no longer be there."""
    return FailedPrecondition(
        f"{name} has ended, or its record is gone; nothing more is wanted of this task", reason="TASK_ENDED", name=name
    )


def cancel(grace: float) -> tasks_pb2.Command:
    """Returns the command to end as cancelled."""
    return tasks_pb2.Command(cancel=tasks_pb2.Command.Cancel(grace=seconds(grace)))


def shutdown(grace: float) -> tasks_pb2.Command:
    """Returns the command to finish what is in flight and end."""
    return tasks_pb2.Command(shutdown=tasks_pb2.Command.Shutdown(grace=seconds(grace)))


def seconds(value: float) -> duration_pb2.Duration:
    """Returns a duration of so many seconds."""
    duration = duration_pb2.Duration()
    duration.FromMilliseconds(round(value * 1000))
    return duration


def reason_of(status: status_pb2.Status) -> str:
    """Returns the reason in a status's ErrorInfo, '' when it holds none."""
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason: str = info.reason
            return reason
    return ""


def failure(reason: str, message: str) -> status_pb2.Status:
    """Returns the status of work that failed for a reason of ours."""
    return to_status(FailedPrecondition(message, reason=reason))


async def insist(
    action: Callable[[], Awaitable[None]], give_up: asyncio.Event, errors: tuple[type[NoronhaError], ...]
) -> None:
    """Repeats an action while it raises one of ``errors``; once ``give_up`` is set, the error is raised."""
    pause = 0.05
    while True:
        try:
            await action()
            return
        except errors:
            if give_up.is_set():
                raise
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(give_up.wait(), pause)
        pause = min(pause * 2, 2.0)
