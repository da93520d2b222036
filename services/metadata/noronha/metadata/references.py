"""References between resources: bare names become revisions, and what they stood for is frozen beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noronha.metadata import kinds
from noronha.metadata.drafts import Draft, Found
from noronha.v1 import build_pb2, dataset_pb2, model_version_pb2, training_pb2


async def complete(draft: Draft, name: str, kind: str, field: str) -> tuple[str, Found]:
    """Returns a reference as it is stored, and what it stands for. Raises InvalidArgument ``BAD_NAME``; NotFound."""
    found = await draft.refer(kinds.parse(name, kind, field=field))
    return kinds.full_name(found.key), found


async def complete_all(draft: Draft, references: Any, kind: str, field: str) -> list[Found]:
    """Completes a repeated field of references where it is. Raises InvalidArgument ``BAD_NAME``; NotFound."""
    done = [await complete(draft, name, kind, field) for name in references]
    del references[:]
    references.extend(name for name, _ in done)
    return [found for _, found in done]


def training_snapshot(training: Any) -> Any:
    """Returns a training as versions keep it: without snapshots of its own."""
    snapshot = training_pb2.Training()
    snapshot.CopyFrom(training)
    snapshot.ClearField("build_snapshot")
    return snapshot


def dataset_snapshot(dataset: Any) -> Any:
    """Returns a dataset as versions keep it: without its files."""
    snapshot = dataset_pb2.Dataset()
    snapshot.CopyFrom(dataset)
    snapshot.ClearField("files")
    return snapshot


def version_snapshot(version: Any) -> Any:
    """Returns a version as others keep it: without its files and snapshots."""
    snapshot = model_version_pb2.ModelVersion()
    snapshot.CopyFrom(version)
    for field in ("files", "training_snapshot", "dataset_snapshot", "pretrained_snapshot"):
        snapshot.ClearField(field)
    return snapshot


def build_snapshot(build: Any) -> Any:
    """Returns a build as others keep it: without its files."""
    snapshot = build_pb2.Build()
    snapshot.CopyFrom(build)
    if snapshot.HasField("source"):
        snapshot.source.ClearField("files")
    return snapshot


async def complete_owned(draft: Draft, kind: str, message: Any, changed: Sequence[str] | None = None) -> None:
    """Completes the references of a resource that a service writes, and freezes what they stand for where it did not.

    ``changed`` are the top-level fields that the write touches, None for all.
    """

    def touches(field: str) -> bool:
        return changed is None or field in changed

    if kind in ("training", "notebook"):
        if message.build and touches("build"):
            await _complete_build(draft, message)
        if touches("datasets"):
            await complete_all(draft, message.datasets, "dataset", "datasets")
        versions = "pretrained" if kind == "training" else "model_versions"
        if touches(versions):
            await complete_all(draft, getattr(message, versions), "model_version", versions)
    if kind == "training" and touches("published"):
        await complete_all(draft, message.published, "model_version", "published")
    if kind in ("deployment", "deployment_revision") and touches("spec"):
        spec = message.spec
        if spec.build:
            await _complete_build(draft, spec)
        found = await complete_all(draft, spec.model_versions, "model_version", "spec.model_versions")
        if len(spec.model_version_snapshots) != len(found):
            del spec.model_version_snapshots[:]
            spec.model_version_snapshots.extend(version_snapshot(each.message) for each in found)
    if kind == "island" and message.chest and touches("chest"):
        await complete(draft, message.chest, "chest", "chest")


async def _complete_build(draft: Draft, holder: Any) -> None:
    holder.build, found = await complete(draft, holder.build, "build", "build")
    if not holder.HasField("build_snapshot"):
        holder.build_snapshot.CopyFrom(build_snapshot(found.message))
