"""Metadata and Store on a real server, and callers of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import tempfile
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis.principals import Kind, Principal, Tokens, load_key
from noronha.chassis.serve import Options, running
from noronha.rpc import settings
from noronha.rpc.dial import dial_async
from noronha.v1 import (
    build_pb2,
    file_pb2,
    mesh_pb2,
    mesh_pb2_grpc,
    metadata_pb2,
    metadata_pb2_grpc,
    records_pb2,
    records_pb2_grpc,
    resource_pb2,
    store_pb2,
    store_pb2_grpc,
    task_status_pb2,
    training_pb2,
)

pb = metadata_pb2


class Caller:
    """The stubs of one principal."""

    def __init__(self, channel: Any) -> None:
        self.metadata: Any = metadata_pb2_grpc.MetadataStub(channel)
        self.records: Any = records_pb2_grpc.RecordsStub(channel)
        self.store: Any = store_pb2_grpc.StoreStub(channel)

    async def upload(self, contents: dict[str, bytes], storage_class: int = 0) -> tuple[str, list[Any]]:
        """Uploads contents by path; returns the upload and the files to publish it with."""
        digests = {path: f"sha256:{hashlib.sha256(data).hexdigest()}" for path, data in contents.items()}
        blobs = {digests[path]: data for path, data in contents.items()}
        opened = await self.store.OpenUpload(
            store_pb2.OpenUploadRequest(
                entries=[store_pb2.Blob(digest=digest, size_bytes=len(data)) for digest, data in blobs.items()],
                storage_class=storage_class,
            )
        )

        async def pieces() -> AsyncIterator[Any]:
            yield store_pb2.WriteBlobsRequest(upload=opened.upload)
            for missing in opened.missing:
                data = blobs[missing.digest]
                for offset in range(0, max(1, len(data)), 1 << 20):
                    piece = data[offset : offset + (1 << 20)]
                    yield store_pb2.WriteBlobsRequest(
                        digest=missing.digest, offset=offset, data=piece, crc32=zlib.crc32(piece)
                    )

        if opened.missing:
            async for _ in self.store.WriteBlobs(pieces()):
                pass
        return opened.upload, [file_pb2.File(path=path, digest=digests[path]) for path in contents]

    async def publish(
        self, name: str, contents: dict[str, bytes] | None = None, *, create: bool = True, **fields: Any
    ) -> Any:
        """Creates or publishes a version or a dataset named in full."""
        _, model, collection, own = name.split("/")
        word = {"versions": "model_version", "datasets": "dataset"}[collection]
        camel = {"versions": "ModelVersion", "datasets": "Dataset"}[collection]
        beside = ("upload", "files", "request_id", "expected_revision", "without_files", "allow_missing", "update_mask")
        more = {key: fields.pop(key) for key in beside if key in fields}
        if contents is not None:
            more["upload"], more["files"] = await self.upload(contents)
        if create:
            request = getattr(pb, f"Create{camel}Request")(
                parent=f"models/{model}", **{f"{word}_id": own, word: fields}, **more
            )
            return await getattr(self.metadata, f"Create{camel}")(request)
        request = getattr(pb, f"Publish{camel}Request")(**{word: {"name": name, **fields}}, **more)
        return await getattr(self.metadata, f"Publish{camel}")(request)

    async def record(self, kind: str, message: Any, **more: Any) -> Any:
        """Creates a record and returns its resource."""
        resource = resource_pb2.Resource(**{kind: message})
        made = await self.records.CreateRecord(records_pb2.CreateRecordRequest(resource=resource, **more))
        return getattr(made.resource, kind)

    async def change(self, kind: str, message: Any, paths: Sequence[str] = (), **more: Any) -> Any:
        """Changes a record and returns its resource."""
        request = records_pb2.UpdateRecordRequest(resource=resource_pb2.Resource(**{kind: message}), **more)
        request.update_mask.paths.extend(paths)
        return getattr((await self.records.UpdateRecord(request)).resource, kind)

    async def remove(self, name: str, **more: Any) -> None:
        await self.records.DeleteRecord(records_pb2.DeleteRecordRequest(name=name, **more))


class Mesh:
    """A running server, and stubs for whoever calls it."""

    def __init__(self, address: str, root: Path) -> None:
        self.address = address
        self._tokens = Tokens(load_key(root))
        self._channels: list[Any] = []
        self.owner = self.caller(None)
        self.service = self.caller(Principal(Kind.SERVICE, "runner"))

    def caller(self, principal: Principal | None) -> Caller:
        headers = [("authorization", f"Bearer {self._tokens.mint(principal)}")] if principal else []
        channel = dial_async(self.address, headers=lambda: headers)
        self._channels.append(channel)
        return Caller(channel)

    async def stop(self) -> None:
        """Asks the server to stop."""
        await mesh_pb2_grpc.MeshStub(self._channels[0]).Shutdown(mesh_pb2.ShutdownRequest())

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def model(self, id: str = "m", **fields: Any) -> Any:
        return await self.owner.metadata.CreateModel(pb.CreateModelRequest(model_id=id, model=fields))

    async def project(self, id: str = "p", **fields: Any) -> Any:
        return await self.owner.metadata.CreateProject(pb.CreateProjectRequest(project_id=id, project=fields))

    async def build(self, name: str = "projects/p/builds/latest", state: int = 3, **more: Any) -> Any:
        build = build_pb2.Build(name=name, status=task_status_pb2.TaskStatus(state=state))  # type: ignore[arg-type]
        return await self.service.record("build", build, **more)

    async def training(self, name: str = "projects/p/trainings/t", state: int = 2, **fields: Any) -> Any:
        training = training_pb2.Training(
            name=name,
            notebook="train",
            status=task_status_pb2.TaskStatus(state=state),
            **fields,  # type: ignore[arg-type]
        )
        return await self.service.record("training", training)


@contextlib.asynccontextmanager
async def serving(backend: str) -> AsyncIterator[Mesh]:
    """Runs Metadata on a backend, and Store, in a folder of their own."""
    root = Path(tempfile.mkdtemp(prefix="nha"))
    address = f"unix:{root}/s"
    environment = {"NHA_MESH__STATE_DIR": str(root), "NHA_METADATA__BACKEND": backend, "NHA_MESH__GRACE": "2"}
    options = Options(settings.load(None, environment), ("metadata", "store"), address)
    try:
        async with running(options) as task:
            mesh = Mesh(address, root)
            try:
                for _ in range(400):
                    if task.done():
                        task.result()
                    try:
                        await mesh.owner.metadata.ListModels(pb.ListModelsRequest(), timeout=5)
                        break
                    except Exception:
                        await asyncio.sleep(0.05)
                yield mesh
            finally:
                await mesh.close()
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def meshes() -> Any:
    """Returns what runs a mesh of its own on a backend."""
    return serving


@pytest.fixture(params=["memory:", "sqlite:"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    async with serving(request.param) as mesh:
        yield mesh
