"""Store beside a real Metadata: manifests, holds and garbage across the two."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis.principals import Kind
from noronha.client import transfer
from noronha.rpc.dial import dial
from noronha.rpc.errors import FailedPrecondition, NoronhaError, NotFound, PermissionDenied
from noronha.v1 import file_pb2, metadata_pb2, metadata_pb2_grpc, model_version_pb2, store_pb2

from .rig import CHUNK, Rig, digest_of, fetch, messages, open_upload, put, running, send


@pytest.fixture(scope="module")
def pair() -> Iterator[Rig]:
    """Metadata and Store in one process."""
    with running(services=("metadata", "store")) as made:
        yield made


@pytest.fixture
def metadata(pair: Rig) -> Iterator[Any]:
    with dial(pair.address) as channel:
        yield metadata_pb2_grpc.MetadataStub(channel)


@pytest.fixture
def model(metadata: Any) -> str:
    name = f"m{os.urandom(4).hex()}"
    metadata.CreateModel(metadata_pb2.CreateModelRequest(model_id=name, model={}))
    return f"models/{name}"


def publish(metadata: Any, model: str, version: str, upload: str, *files: file_pb2.File) -> Any:
    return metadata.CreateModelVersion(
        metadata_pb2.CreateModelVersionRequest(
            parent=model, model_version_id=version, model_version=model_version_pb2.ModelVersion(), upload=upload,
            files=files,
        )
    )  # fmt: skip


def file(path: str, data: bytes) -> file_pb2.File:
    return file_pb2.File(path=path, digest=digest_of(data), size_bytes=len(data))


def test_a_manifest_may_not_name_a_blob_that_its_upload_does_not_hold(pair: Rig, metadata: Any, model: str) -> None:
    store = pair.stub()
    mine, other = os.urandom(100), os.urandom(2 * CHUNK)
    put(pair.stub(Kind.USER, "somebody-else"), other)
    upload = put(store, mine).upload
    with pytest.raises(FailedPrecondition) as raised:
        publish(metadata, model, "v1", upload, file("a", mine), file("b", other))
    assert raised.value.reason == "BLOB_NOT_HELD"
    with pytest.raises(NotFound):
        metadata.GetModelVersion(metadata_pb2.GetModelVersionRequest(name=f"{model}/versions/v1"))
    publish(metadata, model, "v1", upload, file("a", mine))


def test_a_publishing_needs_a_complete_upload_of_its_own(pair: Rig, metadata: Any, model: str) -> None:
    store = pair.stub()
    data = os.urandom(3 * CHUNK)
    upload = open_upload(store, data).upload
    send(store, list(messages(upload, data))[:2])
    with pytest.raises(FailedPrecondition) as incomplete:
        publish(metadata, model, "v1", upload, file("a", data))
    assert incomplete.value.reason == "UPLOAD_INCOMPLETE"
    theirs = put(pair.stub(Kind.USER, "bob"), data).upload
    with pytest.raises(PermissionDenied) as foreign:
        publish(metadata, model, "v1", theirs, file("a", data))
    assert foreign.value.reason == "NOT_YOUR_UPLOAD"
    send(store, messages(upload, data, begin=2 * CHUNK))
    publish(metadata, model, "v1", upload, file("a", data))


def test_garbage_is_what_no_record_and_no_upload_refers_to(pair: Rig, metadata: Any, model: str) -> None:
    store = pair.stub()
    published, forgotten, waiting = os.urandom(2 * CHUNK), os.urandom(100), os.urandom(100)
    publish(metadata, model, "v1", put(store, published).upload, file("a", published))
    store.AbortUpload(store_pb2.AbortUploadRequest(upload=put(store, forgotten).upload))
    put(store, waiting)
    *_, told = store.CollectGarbage(store_pb2.CollectGarbageRequest(dry_run=True))
    assert told.deleted_blobs >= 1
    assert fetch(store, digest_of(forgotten)) == forgotten
    *_, done = store.CollectGarbage(store_pb2.CollectGarbageRequest())
    assert done == told
    assert fetch(store, digest_of(published)) == published
    assert fetch(store, digest_of(waiting)) == waiting
    with pytest.raises(NotFound):
        fetch(store, digest_of(forgotten))


def test_each_tenant_s_records_keep_its_own_blobs(pair: Rig, metadata: Any, model: str) -> None:
    data = os.urandom(1000)
    publish(metadata, model, "v1", put(pair.stub(), data).upload, file("a", data))
    ana = pair.stub(Kind.USER, "ana", tenant="elsewhere")
    ana.AbortUpload(store_pb2.AbortUploadRequest(upload=put(ana, data).upload))
    list(pair.stub().CollectGarbage(store_pb2.CollectGarbageRequest()))
    assert fetch(pair.stub(), digest_of(data)) == data
    with pytest.raises(NotFound):
        fetch(ana, digest_of(data))


def test_a_collection_is_told_of_from_its_first_tenant_to_its_last(pair: Rig, metadata: Any, model: str) -> None:
    mine, theirs = os.urandom(1000), os.urandom(1001)
    ana = pair.stub(Kind.USER, "ana", tenant="elsewhere")
    for store, data in ((pair.stub(), mine), (ana, theirs)):
        store.AbortUpload(store_pb2.AbortUploadRequest(upload=put(store, data).upload))
    answers = list(pair.stub().CollectGarbage(store_pb2.CollectGarbageRequest()))
    told = [answer.deleted_bytes for answer in answers]
    assert told == sorted(told) and len(told) >= 3, "one for each tenant at least, and the totals"
    assert told[-1] >= len(mine) + len(theirs)
    for store, data in ((pair.stub(), mine), (ana, theirs)):
        with pytest.raises(NotFound):
            fetch(store, digest_of(data))


def test_only_the_owner_collects(pair: Rig) -> None:
    for kind in (Kind.USER, Kind.TASK, Kind.SERVICE):
        with pytest.raises(PermissionDenied):
            list(pair.stub(kind).CollectGarbage(store_pb2.CollectGarbageRequest()))


def test_publishings_beside_collections_lose_nothing(pair: Rig, metadata: Any, model: str, tmp_path: Path) -> None:
    stop = threading.Event()
    collected: list[int] = []

    def collect() -> None:
        store = pair.stub()
        while not stop.is_set():
            try:
                list(store.CollectGarbage(store_pb2.CollectGarbageRequest()))
                collected.append(1)
            except NoronhaError as error:
                assert error.reason == "COLLECTING"

    shared = os.urandom(5000)

    def work(number: int) -> list[tuple[str, bytes]]:
        store, done = pair.stub(), []
        for round_ in range(8):
            own = os.urandom(1000)
            folder = tmp_path / f"{number}-{round_}"
            folder.mkdir()
            (folder / "own").write_bytes(own)
            (folder / "shared").write_bytes(shared)
            sent = transfer.upload(store, [("own", folder / "own"), ("shared", folder / "shared")])
            publish(metadata, model, f"v{number}-{round_}", sent.upload, *sent.files)
            store.AbortUpload(store_pb2.AbortUploadRequest(upload=sent.upload))
            if round_ % 2:
                # Now and then everything that named the shared blob is gone, and it is garbage until it comes again.
                name = f"{model}/versions/v{number}-{round_}"
                metadata.DeleteModelVersion(metadata_pb2.DeleteModelVersionRequest(name=name))
            else:
                done.append((f"v{number}-{round_}", own))
        return done

    collector = threading.Thread(target=collect)
    collector.start()
    try:
        with ThreadPoolExecutor(3) as pool:
            published = [each for done in pool.map(work, range(3)) for each in done]
    finally:
        stop.set()
        collector.join(60)
    assert collected
    for version, own in published:
        record = metadata.GetModelVersion(metadata_pb2.GetModelVersionRequest(name=f"{model}/versions/{version}"))
        transfer.download(pair.stub(), record.files, tmp_path / version)
        assert (tmp_path / version / "own").read_bytes() == own
        assert (tmp_path / version / "shared").read_bytes() == shared


def test_a_collection_without_metadata_deletes_nothing(own_rig: Rig) -> None:
    store = own_rig.stub()
    data = os.urandom(100)
    store.AbortUpload(store_pb2.AbortUploadRequest(upload=put(store, data).upload))
    with pytest.raises(NoronhaError) as raised:
        list(store.CollectGarbage(store_pb2.CollectGarbageRequest()))
    assert raised.value.reason == "PEER_UNKNOWN"
    assert fetch(store, digest_of(data)) == data
    with pytest.raises(NoronhaError) as raised:
        list(store.CollectGarbage(store_pb2.CollectGarbageRequest()))
    assert raised.value.reason == "PEER_UNKNOWN", "the first collection still keeps others out"
