"""The ``list`` commands: one way for all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from noronha.cli import output
from noronha.cli.target import Target


class Kind(NamedTuple):
    """What a kind of record needs to be listed."""

    title: str
    method: str
    field: str


KINDS = {
    "model": Kind("Model Record", "ListModels", "models"),
    "project": Kind("Project", "ListProjects", "projects"),
    "build": Kind("Build Version", "ListBuilds", "builds"),
    "dataset": Kind("Dataset", "ListDatasets", "datasets"),
    "training": Kind("Training Execution", "ListTrainings", "trainings"),
    "model_version": Kind("Model Version", "ListModelVersions", "model_versions"),
    "deployment": Kind("Deployment", "ListDeployments", "deployments"),
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
    columns: Sequence[str] = ()
    if whole:
        from noronha.cli import documents

        shown = ((to_key(each.name), documents.of(each)) for each in records)
        columns = documents.COLUMNS[kind]
    else:
        shown = ((to_key(each.name), {}) for each in records)
    try:
        output.show_list(shown, chosen.title, target.output, expand=expand, pretty=target.pretty, columns=columns)
    except InvalidArgument as error:
        if not query:
            raise
        from noronha.cli.filters import with_hint

        raise with_hint(kind, error) from None
