"""Records as documents with the field names that people know: what ``info``, ``list -e`` and ``-o json`` show."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from noronha.client.packing import is_required, max_mb_of
from noronha.client.references import last_id, to_key
from noronha.client.words import in_words, is_lightweight, is_quotation, origin_word, state_word
from noronha.rpc.errors import from_status

Document = dict[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "model": ("name", "created", "modified"),
    "project": ("name", "models", "home_dir", "created"),
    "build": ("proj", "tag", "revision", "task.state", "built_from", "python_version", "built_at"),
    "dataset": ("model", "name", "revision", "stored", "size_bytes", "modified"),
    "model_version": ("model", "name", "revision", "train", "ds", "size_bytes", "modified"),
    "training": ("proj", "name", "task.state", "task.progress", "task.reason", "bvers", "movers", "created"),
    "deployment": ("proj", "name", "state", "replicas", "ready_replicas", "revision", "movers", "created"),
}
"""What ``-o table`` shows of each kind: few fields, each of a few words. Everything is in ``-o json`` and ``yaml``."""


def kind_of(message: Any) -> str:
    """Returns the kind of a record, a key of ``COLUMNS``."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", message.DESCRIPTOR.name).lower()


def of(message: Any) -> Document:
    """Returns the document of a record of any kind."""
    kinds = {
        "model": model, "project": project, "build": build, "dataset": dataset, "model_version": model_version,
        "training": training, "deployment": deployment,
    }  # fmt: skip
    return kinds[kind_of(message)](message)


def _time(message: Any, field: str) -> datetime | None:
    if not message.HasField(field):
        return None
    found: datetime = getattr(message, field).ToDatetime(tzinfo=timezone.utc)
    return found


def _object(text: str) -> Any:
    return json.loads(text) if text else {}


def _said(sentence: str, message: Any) -> str:
    """Returns a sentence that a record keeps, in the words of people."""
    return in_words(sentence, {"/".join(message.name.split("/")[:2])}).text


def _error(status: Any, message: Any, reason: str = "") -> str:
    """Returns the error that a record keeps, in the words of people unless it quotes them."""
    if not status.message:
        return ""
    if is_quotation(reason or from_status(status).reason):
        return str(status.message)
    return _said(status.message, message)


def _details(details_json: str, params_json: str) -> Any:
    details = _object(details_json)
    params = _object(params_json)
    return {"params": params, **details} if params else details


def _files(files: Any) -> list[Document]:
    return [{"name": each.path, "size_bytes": each.size_bytes, "digest": each.digest} for each in files]


def _file_spec(spec: Any) -> Document:
    return {
        "name": spec.name,
        "desc": spec.description,
        "required": is_required(spec),
        "max_mb": max_mb_of(spec),
    }


def _task(record: Any) -> Document:
    status = record.status
    task: Document = {
        "state": state_word(record),
        "progress": round(status.progress, 4),
        "start_time": _time(status, "start_time"),
        "update_time": _time(status, "update_time"),
        "end_time": _time(status, "end_time"),
        "error": _error(status.error, record, status.reason),
        "reason": status.reason,
    }
    if status.HasField("exit_code"):
        task["exit_code"] = status.exit_code
    if status.HasField("limits_applied"):
        task["limits_applied"] = status.limits_applied
    return task


def _resources(message: Any) -> Document | None:
    found: Document = {"profile": message.profile}
    for key in ("requests", "limits"):
        if message.HasField(key):
            amount = getattr(message, key)
            found[key] = {"cpu": amount.cpu_milli / 1000, "memory": amount.memory_mb}
    if message.enable_gpu:
        found["enable_gpu"] = True
    return found if len(found) > 1 or message.profile else None


def _mounts(mounts: Any) -> list[str]:
    return [f"{each.source}:{each.target}:{'ro' if each.read_only else 'rw'}" for each in mounts]


def model(message: Any) -> Document:
    """Returns a model definition."""
    return {
        "name": last_id(message.name),
        "desc": message.description,
        "model_files": [_file_spec(each) for each in message.model_files],
        "data_files": [_file_spec(each) for each in message.data_files],
        "labels": dict(message.labels),
        "created": _time(message, "create_time"),
        "modified": _time(message, "update_time"),
    }


def project(message: Any) -> Document:
    """Returns a project."""
    return {
        "name": last_id(message.name),
        "desc": message.description,
        "models": [last_id(each) for each in message.models],
        "home_dir": message.home_dir,
        "git_repo": message.git_repository,
        "docker_repo": message.docker_repository,
        "labels": dict(message.labels),
        "created": _time(message, "create_time"),
        "modified": _time(message, "update_time"),
    }


def build(message: Any) -> Document:
    """Returns a revision of a build version."""
    return {
        "tag": last_id(message.name),
        "proj": message.name.split("/")[1],
        "revision": message.revision,
        "docker_id": message.artifact.id,
        "image": message.artifact.image,
        "python_version": message.artifact.python_version,
        "size_bytes": message.artifact.size_bytes or None,
        "git_version": message.source.git_commit,
        "git_dirty": message.source.git_dirty if message.source.git_commit else None,
        "built_at": _time(message, "build_time"),
        "built_from": origin_word(message),
        "task": _task(message),
        "notices": list(message.notices),
        "labels": dict(message.labels),
        "modified": _time(message, "update_time"),
    }


def _published(message: Any) -> Document:
    """Returns what datasets and versions alike have of what was published."""
    return {
        "stored": message.stored,
        "compressed": message.compressed,
        "lightweight": is_lightweight(message),
        "details": _object(message.details_json),
        "size_bytes": message.size_bytes,
        "files": _files(message.files),
        "labels": dict(message.labels),
        "modified": _time(message, "create_time"),
    }


def dataset(message: Any) -> Document:
    """Returns a revision of a dataset."""
    return {
        "name": last_id(message.name),
        "model": message.name.split("/")[1],
        "revision": message.revision,
        **_published(message),
    }


def model_version(message: Any) -> Document:
    """Returns a revision of a model version."""
    return {
        "name": last_id(message.name),
        "model": message.name.split("/")[1],
        "revision": message.revision,
        "train": to_key(message.training or message.training_snapshot.name),
        "train_snapshot": _train_snapshot(message.training_snapshot) if message.training_snapshot.name else None,
        "ds": to_key(message.dataset),
        "ds_snapshot": _ds_snapshot(message.dataset_snapshot) if message.dataset_snapshot.name else None,
        "pretrained": to_key(message.pretrained),
        **_published(message),
    }


def _train_snapshot(message: Any) -> Document:
    """Returns the essentials of a training as it was when a version was made."""
    return {
        "notebook": message.notebook,
        "bvers": to_key(message.build),
        "params": _object(message.params_json),
        "details": _object(message.details_json),
        "ds": [to_key(each) for each in message.datasets],
        "start_time": _time(message.status, "start_time"),
        "end_time": _time(message.status, "end_time"),
    }


def _ds_snapshot(message: Any) -> Document:
    """Returns the essentials of a dataset as it was when a version was made."""
    return {
        "revision": message.revision,
        "details": _object(message.details_json),
        "created": _time(message, "create_time"),
    }


def training(message: Any) -> Document:
    """Returns a training."""
    document: Document = {
        "name": last_id(message.name),
        "proj": message.name.split("/")[1],
        "bvers": to_key(message.build),
        "notebook": message.notebook,
        "task": _task(message),
        "details": _details(message.details_json, message.params_json),
        "ds": [to_key(each) for each in message.datasets],
        "pretrained": [to_key(each) for each in message.pretrained],
        "movers": [to_key(each) for each in message.published],
        "env_vars": dict(message.environment),
        "mounts": _mounts(message.mounts),
        "resources": _resources(message.resources) if message.HasField("resources") else None,
        "target_deploy": to_key(message.target_deployment),
        "executed_notebook": message.executed_notebook.digest,
        "warnings": [_said(each, message) for each in message.warnings],
        "labels": dict(message.labels),
        "created": _time(message, "create_time"),
        "modified": _time(message, "update_time"),
    }
    if message.HasField("target_deployment_updated"):
        document["deploy_update"] = message.target_deployment_updated
    return document


def deployment(message: Any) -> Document:
    """Returns a deployment."""
    spec, status = message.spec, message.status
    return {
        "name": last_id(message.name),
        "proj": message.name.split("/")[1],
        "state": status.State.Name(status.state),
        "availability": f"{status.availability:.0%}",
        "bvers": to_key(spec.build),
        "notebook": spec.notebook,
        "movers": [to_key(each) for each in spec.model_versions],
        "details": _details(message.details_json, spec.params_json),
        "replicas": message.replicas if message.HasField("replicas") else 1,
        "ready_replicas": status.ready_replicas,
        "host_port": message.port or None,
        "address": status.address,
        "port_error": _said(status.port_error, message),
        "revision": message.revision,
        "serving_revision": status.serving_revision,
        "revisions": [
            {
                "revision": each.revision,
                "replicas": each.desired_replicas,
                "ready": each.ready_replicas,
                "error": _error(each.error, message),
            }
            for each in status.revisions
        ],
        "error": _error(status.error, message, status.reason),
        "reason": status.reason,
        "env_vars": dict(spec.environment),
        "mounts": _mounts(spec.mounts),
        "resources": _resources(spec.resources) if spec.HasField("resources") else None,
        "labels": dict(message.labels),
        "created": _time(message, "create_time"),
        "modified": _time(message, "update_time"),
    }


def replica(message: Any) -> Document:
    """Returns a replica of a deployment."""
    return {
        "name": last_id(message.name),
        "revision": message.revision,
        "state": message.State.Name(message.state),
        "endpoint": f"{message.host}:{message.port}" if message.port else "",
        "restarts": message.restarts,
        "error": _error(message.error, message),
        "created": _time(message, "create_time"),
    }
