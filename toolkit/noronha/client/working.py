"""Which project is worked on: the one named, else that of the working directory, else that of the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from noronha.client.listing import every
from noronha.client.references import last_id
from noronha.rpc import names
from noronha.rpc.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from noronha.client.connection import Mesh
    from noronha.v1 import project_pb2


def working_project(
    mesh: Mesh, named: str | None = None, *, directory: Path | None = None, configured: str | None = None
) -> project_pb2.Project:
    """Returns the working project.

    ``named`` is an id given by the user and decides alone; else the project whose ``home_dir`` is ``directory``
    (default the current one) or the nearest folder above it; else ``configured``, an id from
    ``project.working_project``. Raises NotFound for a name that no project has; FailedPrecondition
    ``NO_WORKING_PROJECT``, or ``AMBIGUOUS_PROJECT`` when several have the same home.
    """
    from noronha.v1 import metadata_pb2

    chosen = named
    if chosen is None:
        here = by_directory(mesh, (directory or Path.cwd()).absolute())
        if here is not None:
            return here
        chosen = configured
    if chosen is None:
        raise FailedPrecondition(
            "no working project: name one with --proj, work in a project's home folder, or set project.working_project",
            reason="NO_WORKING_PROJECT",
        )
    try:
        name = names.join("project", names.check_id(chosen, "project"))
        return mesh.metadata.GetProject(metadata_pb2.GetProjectRequest(name=name))
    except NotFound as error:
        if named is None:
            raise NotFound(
                f"project {chosen!r}, which project.working_project names, does not exist", reason=error.reason
            ) from None
        raise


def by_directory(mesh: Mesh, directory: Path) -> project_pb2.Project | None:
    """Returns the project whose home is a folder or the nearest above it, None without one.

    Raises FailedPrecondition ``AMBIGUOUS_PROJECT``.
    """
    from noronha.v1 import metadata_pb2

    folders = [str(each) for each in (directory, *directory.parents)]
    resolved = directory.resolve()
    folders += [str(each) for each in (resolved, *resolved.parents) if str(each) not in folders]
    request = metadata_pb2.ListProjectsRequest(filter=json.dumps({"home_dir": {"$in": folders}}))
    found = list(every(mesh.metadata.ListProjects, request, "projects"))
    if not found:
        return None
    nearest = max(len(Path(each.home_dir).parts) for each in found)
    found = [each for each in found if len(Path(each.home_dir).parts) == nearest]
    if len(found) > 1:
        options = ", ".join(sorted(last_id(each.name) for each in found))
        raise FailedPrecondition(
            f"several projects have their home at {found[0].home_dir}: {options}; name one with --proj",
            reason="AMBIGUOUS_PROJECT",
        )
    return found[0]
