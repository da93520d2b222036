"""The port of Builder: what turns a project's source into something that tasks can run in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from noronha.v1.build_pb2 import Artifact, Build
from noronha.v1.file_pb2 import File

Log = Callable[[str], None]
"""Takes a line of the build's log, without its line end; may be called from any thread."""


class Tree(Protocol):
    """A project's source as it was packed: files by relative path, which never change."""

    @property
    def files(self) -> Sequence[File]:
        """The files, sorted by path; every path has passed ``chunks.check_path`` and none is another's folder."""

    async def read(self, file: File) -> bytes:
        """Returns a file's content, verified by its digest. Raises DataLoss; NotFound when the bytes are gone."""

    async def write(self, file: File, target: Path) -> None:
        """Writes a file's content to ``target``, which must not exist. Raises as ``read``, and OSError of the disk."""


@dataclass(frozen=True)
class Job:
    """One build to make."""

    reference: str
    """What keeps the result: tenant and full name with revision; unique, at most 1,024 characters."""
    build: Build
    """The record: project, tag and ``no_cache`` are read from it."""
    tree: Tree | None
    """The source; None for an image that somebody else built."""
    run: str
    """Identity of this attempt; a build that is begun again has another."""


@dataclass(frozen=True)
class Made:
    """What a build made."""

    artifact: Artifact
    notices: list[str] = field(default_factory=list)
    """What the user should know, a line each."""


class Backend(Protocol):
    """Makes builds. Methods may be called concurrently, also for jobs that need the same parts.

    What is made exists whole or not at all, also when the service dies half-way. A job that is made again gives the
    same kind of result, and leaves nothing behind of the attempt before.
    """

    origins: frozenset[int]
    """Values of ``Source.Origin`` that it takes."""

    async def open(self) -> None:
        """Removes what an earlier run of the service left half-way, its processes too. Called once, before all else."""

    async def build(self, job: Job, log: Log) -> Made:
        """Makes a build and keeps the result for ``job.reference``.

        Cancelling the call ends every process it started before it returns. Raises FailedPrecondition for what the user
        can mend (``REQUIREMENTS_FAILED``, ``DOCKERFILE_FAILED``, ``BAD_REQUIREMENTS``), ResourceExhausted ``NO_SPACE``.
        """

    async def references(self) -> list[str]:
        """Returns everything that a result is kept for."""

    async def forget(self, reference: str) -> None:
        """Removes what was kept for this reference alone. Unknown ones are ignored."""

    async def close(self) -> None:
        """Gives back what ``open`` took. Results stay."""
