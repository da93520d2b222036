"""Records of the mesh as notebooks know them: plain dicts with the field names of old, one JSON file each.

Written by the process that runs a notebook, shown in the notebook by `noronha.tools.views`.
"""

from __future__ import annotations

import datetime
import json
from typing import TYPE_CHECKING, Any

from noronha.client.references import last_id
from noronha.client.words import is_lightweight, origin_word, state_word
from noronha.rpc import names

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from noronha.v1 import build_pb2, dataset_pb2, model_version_pb2, project_pb2, tasks_pb2, training_pb2


def project(record: project_pb2.Project) -> dict[str, Any]:
    """Returns the document of a project."""
    name = last_id(record.name)
    return {
        "_id": name, "name": name, "desc": record.description, "home_dir": record.home_dir,
        "git_repo": record.git_repository, "docker_repo": record.docker_repository,
        "models": [model(each) for each in record.models], "modified": when(record.update_time),
    }  # fmt: skip


def model(name: str) -> dict[str, Any]:
    """Returns what is known of a model by its full name."""
    return {"_id": last_id(name), "name": last_id(name)}


def build(record: build_pb2.Build) -> dict[str, Any]:
    """Returns the document of a build."""
    ids = names.parse(record.name, "build").ids
    return {
        "_id": ":".join(ids), "tag": ids[1], "proj": {"_id": ids[0], "name": ids[0]}, "revision": record.revision,
        "docker_id": record.artifact.id, "git_version": record.source.git_commit or None,
        "built_from": origin_word(record) or None, "built_at": when(record.build_time),
        "modified": when(record.update_time),
    }  # fmt: skip


def training(record: training_pb2.Training) -> dict[str, Any]:
    """Returns the document of a training; its parameters are ``params``, and in ``details['params']`` as of old."""
    ids = names.parse(record.name, "training").ids
    params = _object(record.params_json)
    return {
        "_id": ":".join(ids), "name": ids[1], "proj": {"_id": ids[0], "name": ids[0]},
        "bvers": build(record.build_snapshot) if record.build_snapshot.name else None,
        "notebook": record.notebook, "params": params, "details": {**_object(record.details_json), "params": params},
        "task": {
            "state": state_word(record).lower() if record.status.state else None,
            "progress": record.status.progress,
            "start_time": when(record.status.start_time), "update_time": when(record.status.update_time),
        },
        "modified": when(record.update_time),
    }  # fmt: skip


def dataset(record: dataset_pb2.Dataset, path: str | None = None) -> dict[str, Any]:
    """Returns the document of a dataset; ``path`` is where its files are."""
    ids = names.parse(record.name, "dataset").ids
    return {
        "_id": ":".join(ids), "name": ids[1], "model": model(f"models/{ids[0]}"), "revision": record.revision,
        "details": _object(record.details_json), "stored": record.stored, "compressed": record.compressed,
        "lightweight": is_lightweight(record), "modified": when(record.create_time), "path": path,
    }  # fmt: skip


def model_version(record: model_version_pb2.ModelVersion, path: str | None = None) -> dict[str, Any]:
    """Returns the document of a version; ``path`` is where its files are."""
    ids = names.parse(record.name, "model_version").ids
    snapshot = record.pretrained_snapshot
    return {
        "_id": ":".join(ids), "name": ids[1], "model": model(f"models/{ids[0]}"), "revision": record.revision,
        "details": _object(record.details_json), "compressed": record.compressed,
        "lightweight": is_lightweight(record),
        "train": training(record.training_snapshot) if record.training_snapshot.name else None,
        "ds": dataset(record.dataset_snapshot) if record.dataset_snapshot.name else None,
        "pretrained": model_version(snapshot) if snapshot.name else None,
        "modified": when(record.create_time), "path": path,
    }  # fmt: skip


def deployment(assignment: tasks_pb2.Assignment) -> dict[str, Any]:
    """Returns the document of the deployment that a replica's assignment is of."""
    ids = names.parse(assignment.name, "replica").ids
    return {
        "_id": ":".join(ids[:2]), "name": ids[1], "proj": {"_id": ids[0], "name": ids[0]}, "replica": ids[2],
        "revision": assignment.revision, "notebook": assignment.notebook,
        "details": {"params": _object(assignment.params_json)},
        "movers": [model_version(each) for each in assignment.model_versions], "modified": when(assignment.create_time),
    }  # fmt: skip


def when(time: Timestamp) -> str | None:
    """Returns a time as ``YYYY-mm-dd HH:MM:SS`` in local time, None when it is not set."""
    if not time.seconds and not time.nanos:
        return None
    return datetime.datetime.fromtimestamp(time.seconds).strftime("%Y-%m-%d %H:%M:%S")


def _object(text: str) -> dict[str, Any]:
    content = json.loads(text) if text else {}
    return content if isinstance(content, dict) else {}
