"""Builds as a client starts and follows them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from noronha.client import work
from noronha.client.connection import Mesh, Notice, silent
from noronha.client.follow import Following
from noronha.client.persistence import persistently
from noronha.client.references import last_id, to_key
from noronha.rpc import names
from noronha.rpc.errors import FailedPrecondition

if TYPE_CHECKING:
    from noronha.client.meter import Progress
    from noronha.v1 import build_pb2, file_pb2, project_pb2


class Checkout(NamedTuple):
    """What Git knows of a folder."""

    commit: str
    """Commit that is checked out, 40 hexadecimal digits; '' when the folder is no checkout or has no commit yet."""
    dirty: bool
    """Whether the folder differs from it."""


def checkout(folder: Path) -> Checkout:
    """Returns what Git knows of a folder; nothing where there is no Git or no repository."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return Checkout("", False)
    return Checkout(commit, bool(_git(folder, "status", "--porcelain", "--", ".")))


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30, check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def home_of(project: project_pb2.Project) -> Path:
    """Returns a project's home folder. Raises FailedPrecondition ``NO_SOURCE`` when it has none on this machine."""
    if not project.home_dir:
        raise FailedPrecondition(
            f"project {last_id(project.name)} has no home directory; set one with nha proj update --home-dir",
            reason="NO_SOURCE",
        )
    home = Path(project.home_dir)
    if not home.is_dir():
        raise FailedPrecondition(f"the project's home directory {home} is not on this machine", reason="NO_SOURCE")
    return home


def is_inside_home(project: project_pb2.Project, folder: Path) -> bool:
    """Says whether a folder lies below a project's home, and is not the home itself."""
    return bool(project.home_dir) and Path(project.home_dir).resolve() in folder.resolve().parents


def from_folder(
    mesh: Mesh,
    project: project_pb2.Project,
    tag: str,
    folder: Path,
    *,
    no_cache: bool = False,
    notice: Notice = silent,
    progress: Progress | None = None,
) -> build_pb2.Build:
    """Packs and uploads a folder, starts its build under a tag and returns the record, PENDING.

    ``.dockerignore`` is honoured; the checked-out Git commit is recorded when there is one. Raises what
    ``packing.collect_source`` and ``transfer.upload`` raise; as ``Builder.CreateBuild``.
    """
    from noronha.client import packing, transfer
    from noronha.v1 import build_pb2

    names.check_tag(tag)
    collected = packing.collect_source(folder)
    for line in collected.notices:
        notice(line)
    known = checkout(folder)
    done = transfer.upload(mesh.store, collected.files, progress=progress, revive=mesh.revive, notice=notice)
    source = build_pb2.Source(
        origin=build_pb2.Source.LOCAL, upload=done.upload, git_commit=known.commit, git_dirty=known.dirty
    )
    return _create(mesh, project, tag, source, no_cache, done.files, notice)


def from_git(
    mesh: Mesh,
    project: project_pb2.Project,
    tag: str,
    *,
    reference: str = "",
    no_cache: bool = False,
    notice: Notice = silent,
) -> build_pb2.Build:
    """Starts a build of the project's Git repository and returns the record, PENDING.

    ``reference`` is a branch, tag or commit; '' is the default branch. Raises FailedPrecondition ``NO_SOURCE`` for a
    project without a repository; as ``Builder.CreateBuild``.
    """
    from noronha.v1 import build_pb2

    if not project.git_repository:
        raise FailedPrecondition(
            f"project {last_id(project.name)} has no Git repository; set one with nha proj update --git-repo",
            reason="NO_SOURCE",
        )
    source = build_pb2.Source(origin=build_pb2.Source.GIT, git_reference=reference)
    return _create(mesh, project, tag, source, no_cache, [], notice)


def pre_built(
    mesh: Mesh, project: project_pb2.Project, tag: str, *, notice: Notice = silent
) -> build_pb2.Build:
    """Records an image of the project's Docker repository as a build and returns the record, PENDING.

    Raises FailedPrecondition ``NO_SOURCE`` for a project without a repository; as ``Builder.CreateBuild``.
    """
    from noronha.v1 import build_pb2

    if not project.docker_repository:
        raise FailedPrecondition(
            f"project {last_id(project.name)} has no Docker repository; set one with nha proj update --docker-repo",
            reason="NO_SOURCE",
        )
    source = build_pb2.Source(origin=build_pb2.Source.PRE_BUILT)
    return _create(mesh, project, tag, source, False, [], notice)


def _create(
    mesh: Mesh,
    project: project_pb2.Project,
    tag: str,
    source: build_pb2.Source,
    no_cache: bool,
    files: list[file_pb2.File],
    notice: Notice,
) -> build_pb2.Build:
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import build_pb2, builder_pb2

    request = builder_pb2.CreateBuildRequest(
        parent=project.name, build_id=names.check_tag(tag), build=build_pb2.Build(source=source, no_cache=no_cache),
        files=files, request_id=new_request_id(),
    )  # fmt: skip
    return persistently(mesh, lambda: mesh.builder.CreateBuild(request, timeout=120), notice=notice)


def revision_name(build: build_pb2.Build) -> str:
    """Returns the full name of a build's revision, ``projects/{project}/builds/{tag}@{n}``."""
    return f"{build.name}@{build.revision}"


def follow(mesh: Mesh, build: build_pb2.Build) -> Following:
    """Follows the record and the log of a build's revision until it has ended."""
    name = revision_name(build)
    return Following(mesh, name, work.has_ended, mesh.builder.TailLogs)


def cancel(mesh: Mesh, build: build_pb2.Build) -> build_pb2.Build:
    """Asks a build to end and returns its record. Raises NotFound."""
    from noronha.v1 import builder_pb2

    return mesh.builder.CancelBuild(builder_pb2.CancelBuildRequest(name=revision_name(build)))


def check(build: build_pb2.Build) -> build_pb2.Build:
    """Returns a build that ended well. Raises WorkFailed or WorkCancelled with its reason for another."""
    return work.check(build, f"build {to_key(build.name)}")
