"""Projects: created, changed and deleted here; what lies in them is written by its owners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noronha.chassis.principals import Principal
from noronha.metadata import deletion, kinds, masks
from noronha.metadata.backend import Childless, Key
from noronha.metadata.catalog import Catalog
from noronha.metadata.drafts import Draft, Found, check_etag, once_of, settle
from noronha.metadata.fields import Violations
from noronha.rpc import names
from noronha.rpc.errors import FailedPrecondition
from noronha.v1 import deployment_pb2, project_pb2, replica_pb2

_CALM = (deployment_pb2.DeploymentStatus.STOPPED, deployment_pb2.DeploymentStatus.FAILED)
_GONE = (replica_pb2.Replica.STOPPED, replica_pb2.Replica.FAILED)


def _check(project: Any) -> None:
    wrong = Violations()
    wrong.text("project.description", project.description)
    wrong.labels("project.labels", project.labels)
    wrong.folder("project.home_dir", project.home_dir)
    wrong.git_repository("project.git_repository", project.git_repository)
    wrong.docker_repository("project.docker_repository", project.docker_repository)
    wrong.unique("project.models", project.models)
    wrong.settle()


async def _refer_to_models(draft: Draft, models: Sequence[str]) -> None:
    for model in models:
        await draft.refer(kinds.parse(model, "model", field="project.models"))


async def create(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Creates a project. Raises AlreadyExists; NotFound for a model; InvalidArgument."""
    name = names.join("project", names.check_id(request.project_id, "project_id"))
    sent = request.project
    _check(sent)

    async def attempt(draft: Draft) -> Any:
        project = project_pb2.Project()
        project.CopyFrom(sent)
        project.name = name
        await deletion.must_be_free(draft, Key("project", name))
        await _refer_to_models(draft, project.models)
        draft.create(Key("project", name), project)
        return project

    return await settle(catalog.records, caller.tenant, once_of(caller, request), project_pb2.Project, attempt)


async def update(catalog: Catalog, caller: Principal, request: Any) -> Any:
    """Changes a project's named fields. Raises NotFound; Aborted ``STALE_ETAG``; InvalidArgument."""
    sent = request.project
    parsed = kinds.parse(sent.name, "project", field="project.name")
    paths = masks.paths_of(sent, request.update_mask, masks.server_made(sent.DESCRIPTOR))

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        check_etag(sent.etag, found)
        project = project_pb2.Project()
        project.CopyFrom(found.message)
        masks.copy_paths(sent, project, paths)
        _check(project)
        known = set(found.message.models)
        await _refer_to_models(draft, [model for model in project.models if model not in known])
        draft.replace(found, project)
        return project

    return await settle(catalog.records, caller.tenant, once_of(caller, request), project_pb2.Project, attempt)


async def delete(catalog: Catalog, caller: Principal, request: Any) -> None:
    """Deletes a project's record and, when forced, what lies in it.

    Raises NotFound; Aborted ``STALE_ETAG``; FailedPrecondition ``HAS_CHILDREN``, ``STILL_RUNNING``.
    """
    parsed = kinds.parse(request.name, "project")

    async def attempt(draft: Draft) -> Any:
        found = await draft.read(parsed)
        check_etag(request.etag, found)
        prefix = f"{parsed.bare}/"
        children = await catalog.records.below(caller.tenant, prefix)
        running = await _running(draft, [key for key, _ in children])
        if running:
            shown = deletion.listed(deletion.known_as(running))
            raise FailedPrecondition(
                f"{parsed.bare} cannot be deleted while something in it runs: {shown}; end it first",
                reason="STILL_RUNNING", name=parsed.bare, running=shown,
            )  # fmt: skip
        if children and not request.force:
            raise deletion.has_children(parsed.bare, [key for key, _ in children])
        for key, version in children:
            draft.delete(key, version)
        await deletion.clear_mentions(draft, prefix)
        draft.delete(found.key, found.version)
        draft.require(Childless(prefix))
        return found.message

    await settle(catalog.records, caller.tenant, None, project_pb2.Project, attempt)


async def _running(draft: Draft, children: list[Key]) -> list[Key]:
    """Returns what runs among a project's children."""
    running = []
    for key in children:
        if key.kind not in ("build", "training", "notebook", "deployment", "replica"):
            continue
        found = await draft.find(key)
        if found is not None and _runs(found):
            running.append(key)
    return running


def _runs(found: Found) -> bool:
    kind, message = found.key.kind, found.message
    if kind == "deployment":
        return message.status.state not in _CALM
    if kind == "replica":
        return message.state not in _GONE
    return not kinds.has_ended(kind, message)
