"""The one table of the fields that people filter by: those that the command shows and those of Noronha 1.6, with where
they are in the contract. docs/filters.md shows it.

Names are written as people write them: ``name`` is the last id, ``_id`` all of them joined by ``:``.
"""

from __future__ import annotations

from typing import NamedTuple


class Field(NamedTuple):
    """Where a field that people know is in the contract, and what its values are."""

    path: str
    value: str = ""
    """How values change: '' not at all, the name of a rule of ``filters.RULES``, how names are written, which
    ``filters`` knows, or ``whole:<field>`` for what the command puts together: that is nothing to compare with, but
    ``<field>`` inside is."""


_TIMES = {"created": Field("create_time", "time"), "modified": Field("update_time", "time")}
_TASK = {
    "status.state": Field("status.state", "state"),
    "task": Field("status", "whole:task.state"),
    "task.state": Field("status.state", "state"),
    "task.progress": Field("status.progress"),
    "task.start_time": Field("status.start_time", "time"),
    "task.update_time": Field("status.update_time", "time"),
    "task.end_time": Field("status.end_time", "time"),
    "task.error": Field("status.error.message"),
    "task.reason": Field("status.reason"),
    "task.exit_code": Field("status.exit_code"),
    "task.limits_applied": Field("status.limits_applied"),
}
_STORED = {
    "_id": Field("name", "pk"),
    "name": Field("name", "last"),
    "model": Field("name", "first"),
    "model.name": Field("name", "first"),
    "lightweight": Field("storage_class", "storage"),
    "files": Field("files", "whole:files.name"),
    "files.name": Field("files.path"),
    "created": Field("create_time", "time"),
    "modified": Field("create_time", "time"),
}

FIELDS: dict[str, dict[str, Field]] = {
    "model": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "desc": Field("description"),
        "model_files": Field("model_files", "whole:model_files.name"),
        "data_files": Field("data_files", "whole:data_files.name"),
        "model_files.desc": Field("model_files.description"),
        "data_files.desc": Field("data_files.description"),
        **_TIMES,
    },
    "project": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "desc": Field("description"),
        "model": Field("models", "model"),
        "models": Field("models", "model"),
        "git_repo": Field("git_repository"),
        "docker_repo": Field("docker_repository"),
        **_TIMES,
    },
    "build": {
        "_id": Field("name", "pk"),
        "tag": Field("name", "last"),
        "name": Field("name", "last"),
        "proj": Field("name", "first"),
        "proj.name": Field("name", "first"),
        "docker_id": Field("artifact.id"),
        "image": Field("artifact.image"),
        "python_version": Field("artifact.python_version"),
        "size_bytes": Field("artifact.size_bytes"),
        "git_version": Field("source.git_commit"),
        "git_dirty": Field("source.git_dirty"),
        "built_at": Field("build_time", "time"),
        "built_from": Field("source.origin", "origin"),
        **_TIMES,
        **_TASK,
    },
    "dataset": _STORED,
    "model_version": {
        **_STORED,
        # A version's training may be gone; what it was stays.
        "train": Field("training_snapshot.name", "training"),
        "train._id": Field("training_snapshot.name", "training"),
        "train.name": Field("training_snapshot.name", "tail"),
        "ds": Field("dataset", "starts:dataset"),
        "ds._id": Field("dataset", "starts:dataset"),
        "ds.name": Field("dataset", "tail@"),
        "pretrained": Field("pretrained", "starts:model_version"),
        "pretrained.name": Field("pretrained", "tail@"),
        "train_snapshot": Field("training_snapshot", "whole:train_snapshot.notebook"),
        "train_snapshot.bvers": Field("training_snapshot.build", "starts:build"),
        "train_snapshot.ds": Field("training_snapshot.datasets", "starts:dataset"),
        "train_snapshot.start_time": Field("training_snapshot.status.start_time", "time"),
        "train_snapshot.end_time": Field("training_snapshot.status.end_time", "time"),
        "ds_snapshot": Field("dataset_snapshot", "whole:ds_snapshot.revision"),
        "ds_snapshot.created": Field("dataset_snapshot.create_time", "time"),
    },
    "training": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "proj": Field("name", "first"),
        "proj.name": Field("name", "first"),
        "bvers": Field("build", "starts:build"),
        "bvers.tag": Field("build", "tail@"),
        "bvers.git_version": Field("build_snapshot.source.git_commit"),
        "bvers.docker_id": Field("build_snapshot.artifact.id"),
        "ds": Field("datasets", "starts:dataset"),
        "ds.name": Field("datasets", "tail@"),
        "pretrained": Field("pretrained", "starts:model_version"),
        "details": Field("details", "whole:details.params"),
        "env_vars": Field("environment"),
        "mounts": Field("mounts", "whole:mounts.source"),
        "resources": Field("resources", "whole:resources.profile"),
        "target_deploy": Field("target_deployment", "deployment"),
        "executed_notebook": Field("executed_notebook.digest"),
        "mover": Field("published", "starts:model_version"),
        "movers": Field("published", "starts:model_version"),
        "deploy_update": Field("target_deployment_updated"),
        **_TIMES,
        **_TASK,
    },
    "deployment": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "proj": Field("name", "first"),
        "proj.name": Field("name", "first"),
        "bvers": Field("spec.build", "starts:build"),
        "bvers.tag": Field("spec.build", "tail@"),
        "bvers.git_version": Field("spec.build_snapshot.source.git_commit"),
        "bvers.docker_id": Field("spec.build_snapshot.artifact.id"),
        "movers": Field("spec.model_versions", "starts:model_version"),
        "movers.name": Field("spec.model_versions", "tail@"),
        "notebook": Field("spec.notebook"),
        "details": Field("details", "whole:details.params"),
        "env_vars": Field("spec.environment"),
        "mounts": Field("spec.mounts", "whole:mounts.source"),
        "resources": Field("spec.resources", "whole:resources.profile"),
        "host_port": Field("port"),
        "state": Field("status.state", "state"),
        "status.state": Field("status.state", "state"),
        "availability": Field("status.availability", "share"),
        "ready_replicas": Field("status.ready_replicas"),
        "address": Field("status.address"),
        "port_error": Field("status.port_error"),
        "error": Field("status.error.message"),
        "reason": Field("status.reason"),
        "serving_revision": Field("status.serving_revision"),
        "revisions": Field("status.revisions", "whole:revisions.ready"),
        "revisions.replicas": Field("status.revisions.desired_replicas"),
        "revisions.ready": Field("status.revisions.ready_replicas"),
        "revisions.error": Field("status.revisions.error.message"),
        **_TIMES,
    },
}
"""Kind of record to the fields that people know, from ``-o json`` and 1.6, and where they are in the contract."""

SUBJECTS = {
    "model": "model",
    "project": "proj",
    "build": "bvers",
    "dataset": "ds",
    "model_version": "movers",
    "training": "train",
    "deployment": "depl",
}
"""Kind of record to the subject of the command that lists it."""

PREFIXES = {
    "model_version": {
        "train.details.params": "training_snapshot.params",
        "train.details": "training_snapshot.details",
        "train.notebook": "training_snapshot.notebook",
        "train_snapshot": "training_snapshot",
        "ds_snapshot": "dataset_snapshot",
        "ds.details": "dataset_snapshot.details",
        "pretrained.details": "pretrained_snapshot.details",
    },
    "training": {"details.params": "params", "env_vars": "environment"},
    "deployment": {
        "details.params": "spec.params",
        "env_vars": "spec.environment",
        "mounts": "spec.mounts",
        "resources": "spec.resources",
        "revisions": "status.revisions",
        "movers.details": "spec.model_version_snapshots.details",
    },
}
"""Whole branches that lie elsewhere in the contract; of two that fit, the first counts."""

SHAPES = {
    "model": "models/{}",
    "project": "projects/{}",
    "build": "projects/{}/builds/{}",
    "dataset": "models/{}/datasets/{}",
    "model_version": "models/{}/versions/{}",
    "training": "projects/{}/trainings/{}",
    "deployment": "projects/{}/deployments/{}",
}


def names_table() -> str:
    """Returns the table of docs/filters.md: the fields that people know, the lists that have them, the contract's."""
    found: dict[tuple[str, str], list[str]] = {}
    for kind, subject in SUBJECTS.items():
        for name, field in FIELDS[kind].items():
            rule, _, inside = field.value.partition(":")
            note = f", not as a whole: compare what is in it, such as `{inside}`" if rule == "whole" else ""
            found.setdefault((f"`{name}`", f"`{field.path}`{note}"), []).append(subject)
        for name, path in PREFIXES.get(kind, {}).items():
            found.setdefault((f"`{name}.…`", f"`{path}.…`"), []).append(subject)
    rows = [
        f"| {name} | {'all' if len(lists) == len(SUBJECTS) else ', '.join(lists)} | {path} |"
        for (name, path), lists in sorted(found.items())
    ]
    return "\n".join(["| field | of | in the contract |", "|---|---|---|", *rows]) + "\n"
