"""Publishing versions and datasets: the right files, uploaded once, made visible in one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from noronha.client.connection import Mesh, Notice, silent
from noronha.client.meter import Progress
from noronha.client.persistence import persistently
from noronha.client.references import last_id
from noronha.rpc import names
from noronha.rpc.errors import Aborted, AlreadyExists, NotFound

if TYPE_CHECKING:
    from noronha.v1 import dataset_pb2, file_pb2, model_version_pb2

Replace = Callable[[Any], bool]
"""Receives the newest revision of a name that is used, and says whether the next one is to follow it."""


ATTEMPTS = 10
"""Times that a publishing is tried while others publish the same name at the same moment."""


@dataclass(frozen=True)
class Files:
    """The files of a publishing, as they lie on this machine."""

    path: Path | str | None
    """Folder or single file; None publishes no files."""
    compress: bool = False
    """Whether they are kept as one tar.gz archive."""
    lightweight: bool = False
    """Whether they go to the store for small files."""


class _Kind(NamedTuple):
    """How one kind of record is published."""

    name: str
    title: str
    specs: str
    get: str
    create: str
    publish: str


_DATASET = _Kind("dataset", "Dataset", "data_files", "GetDataset", "CreateDataset", "PublishDataset")
_VERSION = _Kind(
    "model_version", "ModelVersion", "model_files", "GetModelVersion", "CreateModelVersion", "PublishModelVersion"
)


def dataset(
    mesh: Mesh,
    model: str,
    dataset_id: str | None,
    files: Files,
    *,
    details_json: str | None = None,
    replace: Replace | None = None,
    notice: Notice = silent,
    progress: Progress | None = None,
) -> dataset_pb2.Dataset:
    """Publishes a dataset of a model and returns its record.

    ``model`` and ``dataset_id`` are ids, None for a name that the server draws. On a used name ``replace`` decides;
    without it, or when it says no, AlreadyExists is raised. ``details_json`` is one JSON object as text. Raises
    NotFound for the model; what ``packing.collect_files`` and ``transfer.upload`` raise; as ``Metadata.CreateDataset``;
    Aborted ``STALE_REVISION``. What others publish under that name meanwhile is asked about in the same way, and the
    files are sent once; after `ATTEMPTS` the error is raised.
    """
    found: dataset_pb2.Dataset = _new(
        mesh, _DATASET, model, dataset_id, files, {"details_json": details_json}, replace, notice, progress
    )
    return found


def model_version(
    mesh: Mesh,
    model: str,
    version_id: str | None,
    files: Files,
    *,
    details_json: str | None = None,
    training: str | None = None,
    dataset: str | None = None,
    pretrained: str | None = None,
    replace: Replace | None = None,
    notice: Notice = silent,
    progress: Progress | None = None,
    patience: float = 0.0,
) -> model_version_pb2.ModelVersion:
    """Publishes a version of a model and returns its record.

    As ``dataset``; ``training``, ``dataset`` and ``pretrained`` are full names of what it came from. ``patience`` is
    how many seconds the mesh may be away before anything was sent; afterwards it is waited for in any case.
    """
    fields = {"details_json": details_json, "training": training, "dataset": dataset, "pretrained": pretrained}
    found: model_version_pb2.ModelVersion = _new(
        mesh, _VERSION, model, version_id, files, fields, replace, notice, progress, patience
    )
    return found


def update_dataset(
    mesh: Mesh,
    model: str,
    dataset_id: str,
    files: Files | None = None,
    *,
    details_json: str | None = None,
    notice: Notice = silent,
    progress: Progress | None = None,
) -> dataset_pb2.Dataset:
    """Publishes the next revision of a dataset; what is None is carried over. Raises NotFound, and as ``dataset``."""
    found: dataset_pb2.Dataset = _next(
        mesh, _DATASET, model, dataset_id, files, {"details_json": details_json}, notice, progress
    )
    return found


def update_model_version(
    mesh: Mesh,
    model: str,
    version_id: str,
    files: Files | None = None,
    *,
    details_json: str | None = None,
    training: str | None = None,
    dataset: str | None = None,
    pretrained: str | None = None,
    notice: Notice = silent,
    progress: Progress | None = None,
) -> model_version_pb2.ModelVersion:
    """Publishes the next revision of a version; what is None is carried over. Raises NotFound, and as ``dataset``."""
    fields = {"details_json": details_json, "training": training, "dataset": dataset, "pretrained": pretrained}
    found: model_version_pb2.ModelVersion = _next(mesh, _VERSION, model, version_id, files, fields, notice, progress)
    return found


def _new(
    mesh: Mesh,
    kind: _Kind,
    model: str,
    identity: str | None,
    files: Files,
    fields: dict[str, str | None],
    replace: Replace | None,
    notice: Notice,
    progress: Progress | None,
    patience: float = 0.0,
) -> Any:
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import metadata_pb2

    parent = names.join("model", names.check_id(model, "model"))

    def used() -> Any:
        """Returns the newest revision of the name, which may be replaced; None where the name is free."""
        if identity is None:
            return None
        name = names.join(kind.name, model, names.check_id(identity, "name"))
        existing = persistently(mesh, lambda: _find(mesh, kind, name), patience=patience, notice=notice)
        if existing is not None and (replace is None or not replace(existing)):
            raise AlreadyExists(
                f"{kind.name.replace('_', ' ')} {model}:{identity} exists; choose another name or overwrite it",
                name=name,
            )
        return existing

    def publish(existing: Any) -> Any:
        """Makes the name, or what follows its newest revision; whoever was faster has it refused."""
        common = {kind.name: record, "request_id": new_request_id(), "upload": upload, "files": held}
        if existing is None:
            record.ClearField("name")
            create = getattr(metadata_pb2, f"{kind.create}Request")(
                parent=parent, **{f"{kind.name}_id": identity or ""}, **common
            )
            return persistently(mesh, lambda: getattr(mesh.metadata, kind.create)(create, timeout=120), notice=notice)
        record.name = existing.name
        following = getattr(metadata_pb2, f"{kind.publish}Request")(
            expected_revision=existing.revision, without_files=files.path is None, **common
        )
        following.update_mask.paths.append("*")
        return persistently(mesh, lambda: getattr(mesh.metadata, kind.publish)(following, timeout=120), notice=notice)

    existing = used()
    record = _record(kind, files, fields)
    upload, held = _upload(mesh, kind, parent, identity, files, notice, progress, patience)
    for _ in range(ATTEMPTS - 1):
        try:
            return publish(existing)
        except (Aborted, AlreadyExists):
            # Somebody else published that name at the same moment; ours comes next, if it may.
            if replace is None:
                raise
        existing = used()
    return publish(existing)


def _next(
    mesh: Mesh,
    kind: _Kind,
    model: str,
    identity: str,
    files: Files | None,
    fields: dict[str, str | None],
    notice: Notice,
    progress: Progress | None,
) -> Any:
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import file_pb2, metadata_pb2

    parent = names.join("model", names.check_id(model, "model"))
    name = names.join(kind.name, model, names.check_id(identity, "name"))
    current = getattr(mesh.metadata, kind.get)(getattr(metadata_pb2, f"{kind.get}Request")(name=name))
    paths = [key for key, value in fields.items() if value is not None]
    record = _record(kind, files, fields)
    record.name = name
    upload: str = ""
    held: list[file_pb2.File] = []
    if files is not None:
        lightweight = current.storage_class == file_pb2.STORAGE_CLASS_LIGHTWEIGHT
        files = Files(files.path, files.compress, lightweight)
        record.storage_class = current.storage_class
        upload, held = _upload(mesh, kind, parent, identity, files, notice, progress)
        paths.append("compressed")
    publish = getattr(metadata_pb2, f"{kind.publish}Request")(
        **{kind.name: record}, request_id=new_request_id(), upload=upload, files=held
    )
    publish.update_mask.paths.extend(paths)
    return persistently(mesh, lambda: getattr(mesh.metadata, kind.publish)(publish, timeout=120), notice=notice)


def _find(mesh: Mesh, kind: _Kind, name: str) -> Any:
    from noronha.v1 import metadata_pb2

    try:
        return getattr(mesh.metadata, kind.get)(getattr(metadata_pb2, f"{kind.get}Request")(name=name))
    except NotFound:
        return None


def _record(kind: _Kind, files: Files | None, fields: dict[str, str | None]) -> Any:
    from noronha.v1 import dataset_pb2, model_version_pb2

    given: dict[str, Any] = {key: value for key, value in fields.items() if value is not None}
    record: Any = dataset_pb2.Dataset(**given) if kind is _DATASET else model_version_pb2.ModelVersion(**given)
    if files is not None:
        record.compressed = files.compress and files.path is not None
        record.storage_class = _storage_class(files)
    return record


def _storage_class(files: Files) -> file_pb2.StorageClass.ValueType:
    from noronha.v1 import file_pb2

    return file_pb2.STORAGE_CLASS_LIGHTWEIGHT if files.lightweight else file_pb2.STORAGE_CLASS_STANDARD


def _upload(
    mesh: Mesh,
    kind: _Kind,
    model: str,
    identity: str | None,
    files: Files,
    notice: Notice,
    progress: Progress | None,
    patience: float = 0.0,
) -> tuple[str, list[file_pb2.File]]:
    """Brings the files into Store; returns the upload's name and the files, nothing when none are published."""
    from noronha.client import archive, packing, transfer
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.GetModelRequest(name=model)
    definition = persistently(mesh, lambda: mesh.metadata.GetModel(request), patience=patience, notice=notice)
    if files.path is None:
        return "", []
    specs = getattr(definition, kind.specs)
    if not specs:
        notice(f"Publishing {kind.title} without a strict file definition")
    collected = packing.collect_files(Path(files.path), specs, lightweight=files.lightweight)
    for line in collected.notices:
        notice(line)
    with contextlib.ExitStack() as stack:
        pairs = collected.files
        if files.compress:
            pairs = [stack.enter_context(archive.packed(pairs, identity or last_id(model)))]
        done = transfer.upload(
            mesh.store,
            pairs,
            storage_class=_storage_class(files),
            progress=progress,
            revive=mesh.revive,
            notice=notice,
        )
    return done.upload, done.files
