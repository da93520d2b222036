"""How a task ends, whatever it is for: asked first, then made to; and what is said for one that could not say it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from google.rpc import status_pb2

from noronha.rpc.errors import NoronhaError, NotFound
from noronha.runner.backend import Cause, Exit
from noronha.runner.ownership import Owner
from noronha.runner.sessions import Session, failure
from noronha.v1 import tasks_pb2

REASONS = {
    Cause.ENDED: "TASK_ENDED_SILENTLY",
    Cause.KILLED: "TASK_KILLED",
    Cause.OUT_OF_MEMORY: "OUT_OF_MEMORY",
    Cause.STOPPED: "TASK_STOPPED",
    Cause.TIMED_OUT: "TIMED_OUT",
    Cause.NOT_STARTED: "NOT_STARTED",
    Cause.LOST: "TASK_LOST",
}
"""Why a task failed that could not say so itself."""


async def end(owner: Owner, session: Session, command: Callable[[float], tasks_pb2.Command], spare: float) -> None:
    """Has a task end: told, where it listens, and given its grace and ``spare`` seconds; then by force.

    ``command`` makes the command from the grace in seconds.
    """
    grace = owner.settings.runner.grace
    if session.commands.listeners:
        session.commands.give(command(grace))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(session.over.wait(), grace + spare)
    if not session.over.is_set():
        session.commands.give(command(0.0))
        await owner.platform.stop(session.workload, grace if session.heard == 0.0 else 1.0)


async def exit_of(owner: Owner, workload: str) -> Exit:
    """Waits until a task's process has ended, and returns what the platform saw of that."""
    try:
        instance = await owner.platform.wait(workload)
    except NotFound:
        return Exit(Cause.LOST, "nothing of the task's process is left")
    return instance.exit or Exit(Cause.LOST, "the platform forgot the task")


async def say_last_words(owner: Owner, session: Session, exit: Exit) -> None:
    """Puts what the process wrote past the mesh at the end of its log: the trace of a crash, mostly."""
    said = (await owner.platform.read_log(session.workload)).decode("utf-8", "replace").rstrip()
    with contextlib.suppress(NoronhaError):
        session.log.add(f"{said}\n{exit.message}\n" if said else f"{exit.message}\n")


def failure_of(exit: Exit) -> status_pb2.Status:
    """Returns the status of a task that ended without saying how, from what the platform saw."""
    message = exit.message
    if exit.cause is Cause.ENDED:
        message += " before it said how its notebook ended"
    return failure(exit.reason or REASONS[exit.cause], message)
