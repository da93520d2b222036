"""The ``list`` commands: one way for all kinds."""

from __future__ import annotations

from typing import Any, NamedTuple

from noronha.cli import output
from noronha.cli.target import Target


class Kind(NamedTuple):
    """What a kind of record needs to be listed."""

    title: str
    method: str
    field: str
    document: str


KINDS = {
    "model": Kind("Model Record", "ListModels", "models", "model"),
    "project": Kind("Project", "ListProjects", "projects", "project"),
    "build": Kind("Build Version", "ListBuilds", "builds", "build"),
    "dataset": Kind("Dataset", "ListDatasets", "datasets", "dataset"),
    "training": Kind("Training Execution", "ListTrainings", "trainings", "training"),
    "model_version": Kind("Model Version", "ListModelVersions", "model_versions", "model_version"),
    "deployment": Kind("Deployment", "ListDeployments", "deployments", "deployment"),
}
"""Titles are those that scripts know."""


def run(
    target: Target,
    kind: str,
    request: Any,
    *,
    query: str | None,
    expand: bool,
    limit: int | None,
    also: dict[str, Any] | None = None,
) -> None:
    """Lists records: ``query`` is the user's filter, ``also`` further conditions in the contract's fields."""
    from noronha.client.listing import every
    from noronha.client.references import to_key
    from noronha.rpc.errors import InvalidArgument

    chosen = KINDS[kind]
    if query or also:
        from noronha.cli.filters import combine

        request.filter = combine(kind, query, also)
    whole = expand or target.output in ("json", "yaml", "table")
    if not whole:
        request.read_mask.paths.append("name")
    records = every(getattr(target.mesh.metadata, chosen.method), request, chosen.field, limit=limit)
    if whole:
        from noronha.cli import documents

        to_document = getattr(documents, chosen.document)
        shown = ((to_key(each.name), to_document(each)) for each in records)
    else:
        shown = ((to_key(each.name), {}) for each in records)
    try:
        output.show_list(shown, chosen.title, target.output, expand=expand, pretty=target.pretty)
    except InvalidArgument as error:
        if not query:
            raise
        from noronha.cli.filters import with_hint

        raise with_hint(kind, error) from None
