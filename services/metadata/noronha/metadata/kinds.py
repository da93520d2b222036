"""The kinds of resources: their messages, how their names become keys, and what their records mention."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, cast

from google.protobuf.message import Message

from noronha.metadata.backend import Key, Reference, Strength
from noronha.rpc import names
from noronha.rpc.errors import PermissionDenied
from noronha.rpc.names import Name
from noronha.v1 import (
    alias_pb2,
    build_pb2,
    chest_pb2,
    dataset_pb2,
    deployment_pb2,
    island_pb2,
    model_pb2,
    model_version_pb2,
    notebook_pb2,
    project_pb2,
    replica_pb2,
    resource_pb2,
    task_status_pb2,
    traffic_pb2,
    training_pb2,
)

MESSAGES: dict[str, type[Message]] = {
    "project": project_pb2.Project,
    "model": model_pb2.Model,
    "model_version": model_version_pb2.ModelVersion,
    "dataset": dataset_pb2.Dataset,
    "alias": alias_pb2.Alias,
    "build": build_pb2.Build,
    "training": training_pb2.Training,
    "deployment": deployment_pb2.Deployment,
    "deployment_revision": deployment_pb2.DeploymentRevision,
    "replica": replica_pb2.Replica,
    "traffic": traffic_pb2.Traffic,
    "notebook": notebook_pb2.Notebook,
    "chest": chest_pb2.Chest,
    "island": island_pb2.Island,
}
"""The message of each kind; kinds are the field names of ``Resource``."""

OWNED = frozenset(
    {"build", "training", "deployment", "deployment_revision", "replica", "traffic", "notebook", "island"}
)
"""Kinds that services write through ``Records``."""

_ENDED = frozenset(
    {task_status_pb2.TaskStatus.SUCCEEDED, task_status_pb2.TaskStatus.FAILED, task_status_pb2.TaskStatus.CANCELLED}
)


@functools.lru_cache(8192)
def parse(name: str, *kinds: str, field: str = "name") -> Name:
    """As ``names.parse``, remembered: the same names come again and again."""
    return names.parse(name, *kinds, field=field)


def key_of(name: Name) -> Key:
    """Returns the key of a name; revision 0 for a bare name of a kind with revisions.

    The revisions of a deployment are kept as the numbers they are, so that they are in order.
    """
    if name.kind == "deployment_revision":
        bare, _, number = name.bare.rpartition("/")
        return Key(name.kind, bare, int(number))
    return Key(name.kind, name.bare, name.revision or 0)


def full_name(key: Key) -> str:
    """Returns the name of a key: with ``@`` and the revision where there is one."""
    if key.kind == "deployment_revision":
        return f"{key.name}/{key.revision}"
    return f"{key.name}@{key.revision}" if key.revision else key.name


def read(kind: str, body: bytes) -> Any:
    """Returns the resource in a record's body."""
    return MESSAGES[kind].FromString(body)


def wrap(kind: str, message: Message) -> resource_pb2.Resource:
    """Returns a resource as one of any kind."""
    resource = resource_pb2.Resource()
    getattr(resource, kind).CopyFrom(message)
    return resource


def has_ended(kind: str, message: Any) -> bool:
    """Says whether a build, a training or a notebook session has ended."""
    return kind in ("build", "training", "notebook") and message.status.state in _ENDED


def has_field(kind: str, field: str) -> bool:
    """Says whether resources of a kind have a field."""
    return field in MESSAGES[kind].DESCRIPTOR.fields_by_name


def _references(relation: str, found: Iterable[str], strength: Strength) -> list[Reference]:
    return [Reference(relation, key_of(names.parse(each, field=relation)), strength) for each in found if each]


def references_of(kind: str, message: Any) -> tuple[Reference, ...]:
    """Returns what a resource mentions, and what each mention does to a deletion of its target."""
    binding, trace, cleared = Strength.BINDING, Strength.TRACE, Strength.CLEARED
    if kind == "project":
        return tuple(_references("models", message.models, binding))
    if kind == "model_version":
        return (
            *_references("training", [message.training], cleared),
            *_references("dataset", [message.dataset], trace),
            *_references("pretrained", [message.pretrained], trace),
        )
    if kind == "alias":
        return tuple(_references("model_version", [message.model_version], Strength.FOLLOWING))
    if kind == "training":
        strength = trace if has_ended(kind, message) else binding
        return (
            *_references("build", [message.build], strength),
            *_references("datasets", message.datasets, strength),
            *_references("pretrained", message.pretrained, strength),
            *_references("published", message.published, cleared),
        )
    if kind in ("deployment", "deployment_revision"):
        # A revision of a deployment may be rolled back to, so what it was made of stays as well.
        return (
            *_references("build", [message.spec.build], binding),
            *_references("model_versions", message.spec.model_versions, binding),
        )
    if kind == "notebook":
        strength = trace if has_ended(kind, message) else binding
        return (
            *_references("build", [message.build], strength),
            *_references("datasets", message.datasets, strength),
            *_references("model_versions", message.model_versions, strength),
        )
    if kind == "island":
        return tuple(_references("chest", [message.chest], binding))
    return ()


def digests_of(kind: str, message: Any) -> tuple[str, ...]:
    """Returns the blobs that a resource refers to."""
    if kind in ("model_version", "dataset"):
        return tuple(file.digest for file in message.files)
    if kind == "build":
        return tuple(file.digest for file in message.source.files)
    if kind == "training" and message.executed_notebook.digest:
        return (cast(str, message.executed_notebook.digest),)
    return ()


def search_text(key: Key, message: Any) -> str:
    """Returns what searches look at: the ids of the name and the description, case folded."""
    ids = "/".join(key.name.split("/")[1::2])
    return f"{ids}\n{getattr(message, 'description', '')}".casefold()


def out_of_scope(name: str, subject: str) -> PermissionDenied:
    """Returns the error for a task that reaches past its own project and models."""
    return PermissionDenied(
        f"{subject} may not reach {name}: a task reaches its own project and the models it was given",
        reason="OUT_OF_SCOPE", name=name,
    )  # fmt: skip
