"""The port of Runner: what a platform must do so that tasks run on it.

A backend starts workloads by name, tells what runs, and ends it. It knows no trainings and no records. Every method may
be called concurrently, also for one name.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from noronha.v1 import build_pb2, health_check_pb2, mount_pb2, resources_pb2

PYTHON = "{python}"
"""In a command: the interpreter that holds Noronha on the platform."""

ASSIGNMENT = "{assignment}"
"""In a command: the file that tells a task where the mesh, its token and its folders are."""

TASK_COMMAND = (PYTHON, "-m", "noronha.tools.task", "--assignment", ASSIGNMENT)
"""The command of every task that runs a notebook."""


@dataclass(frozen=True)
class Workload:
    """Something to run, said in words that every platform has."""

    id: str
    """Name on the platform: lower-case letters, digits and ``-``, at most 63 characters; never used again."""
    resource: str
    """Full name of the training, replica, notebook or island that it is for."""
    purpose: str
    """``nha-train``, ``nha-depl``, ``nha-ide`` or ``nha-isle``."""
    command: tuple[str, ...] = TASK_COMMAND
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables, those of the platform's own excepted."""
    artifact: build_pb2.Artifact = field(default_factory=build_pb2.Artifact)
    """What the build made: an image or an environment with a source."""
    mounts: tuple[mount_pb2.Mount, ...] = ()
    resources: resources_pb2.Resources = field(default_factory=resources_pb2.Resources)
    port: int = 0
    """Port that it listens on where every workload has an address of its own; 0 when it listens on none."""
    health_check: health_check_pb2.HealthCheck | None = None
    address: str = ""
    """Where the mesh is, as this machine dials it."""
    token: str = field(default="", repr=False)
    """What it proves itself to the mesh with; handed over in a file, never in a variable or on a command line."""
    timeout: float = 0.0
    """Seconds after which it is stopped; 0 means no bound."""
    grace: float = 10.0
    """Seconds between being told to stop and being ended by force."""


class Cause(enum.Enum):
    """Why a workload is no longer there."""

    ENDED = "ENDED"
    """It ended by itself, with a code."""
    KILLED = "KILLED"
    """A signal ended it that we did not send."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    """It reached its limit of memory, or the machine's."""
    STOPPED = "STOPPED"
    """`stop` ended it."""
    TIMED_OUT = "TIMED_OUT"
    """It ran longer than its timeout."""
    NOT_STARTED = "NOT_STARTED"
    """The platform could not start it."""
    LOST = "LOST"
    """Nobody knows: what watched over it is gone, as after a restart of the machine."""


@dataclass(frozen=True)
class Exit:
    """How a workload ended."""

    cause: Cause
    message: str
    """One line for people."""
    code: int | None = None
    """Exit code of the first process, when it ended by itself."""
    reason: str = ""
    """More exact reason than the cause, upper-case words joined by ``_``; empty for none."""


@dataclass(frozen=True)
class Instance:
    """A workload as the platform sees it."""

    id: str
    resource: str
    handle: str = ""
    """What operators know it by, such as ``process 4711``."""
    start_time: float = 0.0
    """When its first process started, in seconds since the epoch; 0 when it has not."""
    exit: Exit | None = None
    """How it ended; None while it runs."""
    limits_applied: bool | None = None
    """Whether the limits that were asked for hold; None where none were, or not known yet."""
    bound: bool = False
    """Whether its folders lie at ``/app /data /model /tmp /logs``."""
    out_of_memory: bool = False
    """Whether anything of it was killed for want of memory."""


class Platform(Protocol):
    """Where workloads run."""

    listens_anywhere: bool
    """Whether workloads share the machine's ports, so that each takes a free one instead of `Workload.port`."""

    async def check(self, workload: Workload) -> None:
        """Raises InvalidArgument or FailedPrecondition, saying what to do, when this workload cannot run here."""

    async def start(self, workload: Workload) -> None:
        """Starts a workload. One that runs or ran under its id is left alone: it is never started twice.

        Returns when it is certain to be started or to end with `Cause.NOT_STARTED`. Raises FailedPrecondition or
        ResourceExhausted when nothing could be begun.
        """

    async def list(self) -> list[Instance]:
        """Returns every workload of ours that is there, running or ended and not removed."""

    async def inspect(self, id: str) -> Instance | None:
        """Returns a workload, None when there is none of that id."""

    async def wait(self, id: str) -> Instance:
        """Waits until a workload has ended and nothing of it is left. Raises NotFound for an unknown id."""

    async def stop(self, id: str, grace: float | None = None) -> None:
        """Tells a workload to end, and ends it by force after ``grace`` seconds (its own when None). Does not wait.

        Harmless for one that ended or never was; asked again, the shorter time holds.
        """

    async def read_log(self, id: str) -> bytes:
        """Returns the last 64 KiB of what its processes wrote past the mesh; empty when nothing is known."""

    def folder(self, id: str) -> Path | None:
        """Returns the folder in which an ended task's own files can be read; None where there is none."""

    async def clean(self, id: str) -> None:
        """Frees what an ended workload no longer needs: its copies of source, data and models, its temporary files."""

    async def remove(self, id: str) -> None:
        """Ends a workload by force if it runs, and forgets it with all it left. Harmless to repeat."""

    async def close(self) -> None:
        """Lets go of everything; what runs goes on."""
