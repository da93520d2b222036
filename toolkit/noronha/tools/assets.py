"""Brings datasets and model versions from the mesh into a task's folders, where the toolkit finds them.

Each lies in a folder of its own, ``<model>.<name>``; a second revision of a name, or a name that would share a folder
with another one, gets ``@<revision>`` behind it. A record in ``meta/`` says which folder is whose; nobody reads folder
names.
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noronha.client.connection import Notice, silent
from noronha.rpc import names
from noronha.rpc.errors import DataLoss, FailedPrecondition
from noronha.tools import documents

if TYPE_CHECKING:
    from noronha.client.connection import Mesh
    from noronha.v1 import dataset_pb2, model_version_pb2

    Asset = dataset_pb2.Dataset | model_version_pb2.ModelVersion


class Assets:
    """The datasets and versions of one task: ``meta`` holds their records, ``data`` and ``models`` their files.

    ``shown`` turns a folder into the path that notebooks are to see. While the mesh is away, ``patience`` seconds are
    waited for it, and ``notice`` is told of an absence that lasts. All methods may be called by any thread.
    """

    def __init__(
        self,
        mesh: Mesh,
        *,
        meta: Path,
        data: Path,
        models: Path,
        shown: Callable[[Path], Path] = lambda path: path,
        patience: float = 60.0,
        notice: Notice = silent,
    ):
        self._mesh = mesh
        self._meta = meta
        self._bases = {"ds": data, "mv": models}
        self._shown = shown
        self._patience = patience
        self._notice = notice
        self._lock = threading.Lock()
        self._busy: dict[Path, threading.Lock] = {}
        self._folders: dict[Path, tuple[str, int]] = {}
        meta.mkdir(parents=True, exist_ok=True)

    def dataset(self, record: dataset_pb2.Dataset) -> dict[str, Any]:
        """Fetches a dataset's files, unless they are here, and returns its document."""
        return self._provide("ds", record)

    def model_version(self, record: model_version_pb2.ModelVersion) -> dict[str, Any]:
        """Fetches a version's files, unless they are here, and returns its document."""
        return self._provide("mv", record)

    def require_dataset(self, model: str, name: str) -> dict[str, Any]:
        """Fetches a dataset by name, the newest revision of a bare one. Raises NotFound, and as `dataset`."""
        from noronha.v1 import metadata_pb2

        full = _full("dataset", model, name)
        request = metadata_pb2.GetDatasetRequest(name=full)
        return self.dataset(self._asked(lambda: self._mesh.metadata.GetDataset(request)))

    def require_model_version(self, model: str, name: str) -> dict[str, Any]:
        """Fetches a version by name, the newest revision of a bare one. Raises NotFound, and as `model_version`."""
        return self.adopt(self._newest(model, name))

    def stage_model_version(self, model: str, name: str) -> dict[str, Any]:
        """Fetches a version without telling the notebook of it, and returns its document; see `adopt`."""
        record = self._newest(model, name)
        return documents.model_version(record, self._files("mv", record))

    def adopt_model_version(self, model: str, name: str, path: str) -> dict[str, Any]:
        """Makes the revision of a version that was fetched to ``path`` the one that its name stands for."""
        with self._lock:
            revision = next(
                (found[1] for folder, found in self._folders.items() if str(self._shown(folder)) == path), None
            )
        if revision is None:
            raise FailedPrecondition(f"nothing was fetched to {path}", reason="NOT_STAGED")
        full = f"{_full('model_version', model, name).partition('@')[0]}@{revision}"
        return self.adopt(self._version(full))

    def adopt(self, record: model_version_pb2.ModelVersion) -> dict[str, Any]:
        """Makes this revision of a version the one that its name stands for, and frees those before the last."""
        document = self.model_version(record)
        with self._lock:
            older = sorted(
                (revision, folder) for folder, (name, revision) in self._folders.items()
                if name == record.name and revision < record.revision
            )[:-1]  # fmt: skip
            for _, folder in older:
                del self._folders[folder]
        for _, folder in older:
            shutil.rmtree(folder, ignore_errors=True)
        return document

    def _newest(self, model: str, name: str) -> model_version_pb2.ModelVersion:
        return self._version(_full("model_version", model, name))

    def _version(self, full: str) -> model_version_pb2.ModelVersion:
        from noronha.v1 import metadata_pb2

        request = metadata_pb2.GetModelVersionRequest(name=full)
        found: model_version_pb2.ModelVersion = self._asked(lambda: self._mesh.metadata.GetModelVersion(request))
        return found

    def _asked(self, call: Callable[[], Any]) -> Any:
        from noronha.client.persistence import persistently

        return persistently(self._mesh, call, patience=self._patience, notice=self._notice)

    def _provide(self, kind: str, record: Asset) -> dict[str, Any]:
        path = self._files(kind, record)
        made: Any = documents.dataset if kind == "ds" else documents.model_version
        document: dict[str, Any] = made(record, path)
        write_json(self._meta / f"{kind}.{_key(record)}.json", document)
        return document

    def _files(self, kind: str, record: Asset) -> str:
        """Fetches the files of an asset, once however many ask for them, and returns where they are."""
        if not record.stored:
            title = "Dataset" if kind == "ds" else "Model version"
            raise FailedPrecondition(
                f"{title} {_key(record)!r} is not stored by the framework, so it cannot be mounted; publish it with "
                "its files",
                reason="NOT_STORED", name=record.name,
            )  # fmt: skip
        with self._lock:
            folder = self._folder(self._bases[kind], record)
            lock = self._busy.setdefault(folder, threading.Lock())
        with lock:
            if not folder.exists():
                self._fetch(record, folder)
        return str(self._shown(folder))

    def _folder(self, base: Path, record: Asset) -> Path:
        identity = (record.name, record.revision)
        for folder, owner in self._folders.items():
            if owner == identity and folder.parent == base:
                return folder
        folder = base / _key(record)
        if folder in self._folders:
            folder = base / f"{_key(record)}@{record.revision}"
            count = 2
            while folder in self._folders:
                folder = base / f"{_key(record)}@{record.revision}~{count}"
                count += 1
        self._folders[folder] = identity
        return folder

    def _fetch(self, record: Asset, folder: Path) -> None:
        from noronha.client import transfer

        folder.parent.mkdir(parents=True, exist_ok=True)
        if not record.compressed:
            transfer.download(self._mesh.store, record.files, folder, patience=self._patience, notice=self._notice)
            folder.mkdir(exist_ok=True)  # an asset without files is an empty folder
            return
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as temporary:
            archive = Path(temporary) / "archive"
            transfer.download(self._mesh.store, record.files, archive, patience=self._patience, notice=self._notice)
            extract(archive / record.files[0].path, folder)


def extract(archive: Path, target: Path) -> None:
    """Unpacks the regular files of a tar archive into a folder, in one step.

    Members that are links or devices, or whose paths would lead out of the folder, are refused. Raises InvalidArgument
    ``BAD_PATH``, DataLoss ``BAD_ARCHIVE``.
    """
    from noronha.client.folders import Unpacking
    from noronha.rpc.chunks import check_path

    try:
        with tarfile.open(archive) as opened, Unpacking(target, durable=False) as unpacking:
            for member in opened:
                if member.isdir():
                    continue
                content = opened.extractfile(member) if member.isreg() else None
                if content is None:
                    raise DataLoss(f"{archive.name} holds {member.name[:200]!r}, which is no regular file",
                                   reason="BAD_ARCHIVE", member=ascii(member.name[:200]))  # fmt: skip
                path = check_path(member.name.removeprefix("./"))
                with unpacking.create(path, member.size, executable=bool(member.mode & 0o100)) as write:
                    while data := content.read(1 << 20):
                        write(data)
            unpacking.publish()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataLoss(f"{archive.name} cannot be unpacked: {error}", reason="BAD_ARCHIVE") from None


def write_json(path: Path, content: Any) -> None:
    """Puts JSON at a path in one step."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".new")
    with open(descriptor, "w", encoding="utf-8") as stream:
        json.dump(content, stream)
    os.replace(temporary, path)


def _key(record: Asset) -> str:
    """Returns ``<model>.<name>``, what folders and records are called after."""
    return ".".join(names.parse(record.name, "dataset", "model_version").ids)


def _full(kind: str, model: str, name: str) -> str:
    bare, at, revision = name.partition("@")
    return str(names.parse(names.join(kind, model, bare) + at + revision, kind))
