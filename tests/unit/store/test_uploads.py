"""What a client may rely on when it brings bytes."""

from __future__ import annotations

import os
import random
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from noronha.chassis.principals import Kind
from noronha.rpc.chunks import MAX_FILES
from noronha.rpc.errors import (
    Aborted,
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    OutOfRange,
    PermissionDenied,
)
from noronha.v1 import file_pb2, store_pb2
from tests.waiting import until

from .rig import CHUNK, Rig, digest_of, fetch, messages, open_upload, put, send


@pytest.fixture
def store(rig: Rig) -> Any:
    return rig.stub()


def missing(upload: store_pb2.Upload) -> dict[str, int]:
    return {each.digest: each.committed_offset for each in upload.missing}


def seal(rig: Rig, upload: str, subject: str) -> store_pb2.Upload:
    return rig.stub(Kind.SERVICE, "metadata").SealUpload(store_pb2.SealUploadRequest(upload=upload, subject=subject))


@pytest.mark.parametrize("size", [1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_what_was_sent_comes_back(store: Any, size: int) -> None:
    data = os.urandom(size)
    upload = open_upload(store, data)
    assert missing(upload) == {digest_of(data): 0}
    answers = send(store, messages(upload.upload, data))
    assert [(each.digest, each.committed_offset) for each in answers if each.complete] == [(digest_of(data), size)]
    assert fetch(store, digest_of(data)) == data
    assert missing(open_upload(store, data)) == {}


def test_an_empty_blob_need_not_travel(store: Any) -> None:
    assert missing(open_upload(store, b"")) == {}
    assert fetch(store, digest_of(b"")) == b""


def test_nothing_is_readable_before_it_is_whole(store: Any) -> None:
    data = os.urandom(3 * CHUNK)
    upload = open_upload(store, data)
    send(store, list(messages(upload.upload, data))[:2])
    with pytest.raises(NotFound):
        fetch(store, digest_of(data))
    assert store.StatBlobs(store_pb2.StatBlobsRequest(digests=[digest_of(data)])).blobs == []


def test_chunks_of_several_blobs_may_take_turns(store: Any) -> None:
    one, two = os.urandom(3 * CHUNK), os.urandom(3 * CHUNK)
    upload = open_upload(store, one, two)
    turns = [
        each for pair in zip(messages(upload.upload, one), messages(upload.upload, two), strict=True) for each in pair
    ]
    assert {each.digest for each in send(store, turns) if each.complete} == {digest_of(one), digest_of(two)}
    assert fetch(store, digest_of(one)) == one
    assert fetch(store, digest_of(two)) == two


def test_an_empty_digest_means_that_of_the_message_before(store: Any) -> None:
    data = os.urandom(3 * CHUNK)
    upload = open_upload(store, data)
    requests = list(messages(upload.upload, data))
    for each in requests[1:]:
        each.digest = each.upload = ""
    send(store, requests)
    assert fetch(store, digest_of(data)) == data


def test_an_upload_cut_at_any_byte_is_resumed_where_it_stood(store: Any) -> None:
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    data = dice.randbytes(4 * CHUNK + 123)
    upload = open_upload(store, data)
    at, cuts = 0, 0
    while at < len(data):
        count = dice.choice([1, 100, CHUNK - 1, CHUNK, 2 * CHUNK, dice.randrange(1, 2 * CHUNK)])
        end = min(len(data), at + count)
        send(store, _part(upload.upload, data, at, end))
        cuts += 1
        state = store.GetUpload(store_pb2.GetUploadRequest(upload=upload.upload))
        at = missing(state).get(digest_of(data), len(data))
        assert at == end
    assert cuts > 1
    assert fetch(store, digest_of(data)) == data


def _part(upload: str, data: bytes, begin: int, end: int) -> list[store_pb2.WriteBlobsRequest]:
    return [
        store_pb2.WriteBlobsRequest(upload=upload, digest=digest_of(data), offset=at, data=part, crc32=zlib.crc32(part))
        for at in range(begin, end, CHUNK)
        for part in [data[at : min(end, at + CHUNK)]]
    ]


def test_a_stream_given_up_in_the_middle_keeps_what_arrived(store: Any) -> None:
    data = os.urandom(6 * CHUNK)
    upload = open_upload(store, data)
    hold = threading.Event()

    def slowly() -> Any:
        yield from list(messages(upload.upload, data))[:4]
        hold.wait(30)

    call = store.WriteBlobs(slowly())
    until(lambda: _committed(store, upload, data) == 4 * CHUNK)
    call.cancel()
    hold.set()

    def rest() -> bool:
        try:
            send(store, messages(upload.upload, data, begin=4 * CHUNK))
        except Aborted as error:
            assert error.reason == "BLOB_BUSY"
            return False
        return True

    until(rest)
    assert fetch(store, digest_of(data)) == data


def _committed(store: Any, upload: store_pb2.Upload, data: bytes) -> int:
    state = store.GetUpload(store_pb2.GetUploadRequest(upload=upload.upload))
    return missing(state).get(digest_of(data), len(data))


def test_a_chunk_at_another_offset_is_refused_with_the_right_one(store: Any) -> None:
    data = os.urandom(4 * CHUNK)
    upload = open_upload(store, data)
    send(store, list(messages(upload.upload, data))[:2])
    for begin in (0, CHUNK, 3 * CHUNK, 2 * CHUNK + 1, 2 * CHUNK - 1):
        with pytest.raises(OutOfRange) as raised:
            send(store, messages(upload.upload, data, begin=begin))
        assert raised.value.reason == "WRONG_OFFSET"
        assert raised.value.metadata["committed_offset"] == str(2 * CHUNK)
    send(store, messages(upload.upload, data, begin=2 * CHUNK))
    assert fetch(store, digest_of(data)) == data


def test_a_damaged_chunk_is_refused_and_the_rest_goes_on(store: Any) -> None:
    data = os.urandom(3 * CHUNK)
    upload = open_upload(store, data)
    requests = list(messages(upload.upload, data))
    requests[1].data = b"?" + requests[1].data[1:]
    with pytest.raises(DataLoss) as raised:
        send(store, requests)
    assert raised.value.reason == "CHECKSUM_MISMATCH"
    assert _committed(store, upload, data) == CHUNK
    send(store, messages(upload.upload, data, begin=CHUNK))
    assert fetch(store, digest_of(data)) == data


@pytest.mark.parametrize("size", [1000, 3 * CHUNK])
def test_other_content_than_was_offered_is_never_seen(store: Any, size: int) -> None:
    data, other = os.urandom(size), os.urandom(size)
    upload = open_upload(store, data)
    lies = list(messages(upload.upload, other))
    for each in lies:
        each.digest = digest_of(data)
    with pytest.raises(DataLoss) as raised:
        send(store, lies)
    assert raised.value.reason == "CHECKSUM_MISMATCH"
    assert raised.value.metadata["digest"] == digest_of(data)
    for digest in (digest_of(data), digest_of(other)):
        with pytest.raises(NotFound):
            fetch(store, digest)
    assert _committed(store, upload, data) == 0
    send(store, messages(upload.upload, data))
    assert fetch(store, digest_of(data)) == data


def test_blobs_before_a_bad_one_are_kept(store: Any) -> None:
    good, bad = [os.urandom(100) for _ in range(5)], os.urandom(100)
    upload = open_upload(store, *good, bad)
    requests = list(messages(upload.upload, *good, bad))
    requests[-1].crc32 ^= 1
    with pytest.raises(DataLoss):
        send(store, requests)
    assert list(missing(store.GetUpload(store_pb2.GetUploadRequest(upload=upload.upload)))) == [digest_of(bad)]
    assert [fetch(store, digest_of(each)) for each in good] == good


def test_one_writer_for_each_blob_of_an_upload(store: Any, rig: Rig) -> None:
    data = os.urandom(4 * CHUNK)
    upload = open_upload(store, data)
    hold = threading.Event()

    def slowly() -> Any:
        yield from list(messages(upload.upload, data))[:2]
        hold.wait(30)
        yield from list(messages(upload.upload, data))[2:]

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: list(store.WriteBlobs(slowly())))
        until(lambda: _committed(store, upload, data) == 2 * CHUNK)
        with pytest.raises(Aborted) as raised:
            send(rig.stub(), messages(upload.upload, data, begin=2 * CHUNK))
        assert raised.value.reason == "BLOB_BUSY"
        hold.set()
        assert first.result(30)[-1].complete
    assert fetch(store, digest_of(data)) == data


def test_many_uploads_of_the_same_bytes_at_once_all_succeed(rig: Rig) -> None:
    data = [os.urandom(2 * CHUNK), os.urandom(500)]

    def one(_: int) -> int:
        store = rig.stub()
        upload = open_upload(store, *data)
        absent = missing(upload)
        return len(send(store, messages(upload.upload, *(each for each in data if digest_of(each) in absent))))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))
    store = rig.stub()
    assert [fetch(store, digest_of(each)) for each in data] == data
    assert len(list(rig.objects.glob(f"*/blobs/*/{digest_of(data[0])[7:]}-*"))) == 1, "copies were left behind"


def test_a_thousand_small_blobs_cost_few_objects(store: Any, rig: Rig) -> None:
    before = sum(1 for each in rig.objects.rglob("*") if each.is_file())
    data = [os.urandom(1024) for _ in range(1000)]
    upload = open_upload(store, *data)
    answers = send(store, messages(upload.upload, *data))
    assert {each.digest for each in answers if each.complete} == {digest_of(each) for each in data}
    assert sum(1 for each in rig.objects.rglob("*") if each.is_file()) - before < 50
    for each in random.sample(data, 20):
        assert fetch(store, digest_of(each)) == each


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r: r.entries.add(digest="sha256:" + "A" * 64, size_bytes=1), "BAD_DIGEST"),
        (lambda r: r.entries.add(digest="sha256:" + "a" * 63, size_bytes=1), "BAD_DIGEST"),
        (lambda r: r.entries.add(digest="md5:" + "a" * 64, size_bytes=1), "BAD_DIGEST"),
        (lambda r: r.entries.add(digest="sha256:" + "a" * 64 + "\n", size_bytes=1), "BAD_DIGEST"),
        (lambda r: r.entries.add(digest="", size_bytes=1), "BAD_DIGEST"),
        (lambda r: r.entries.add(digest="sha256:" + "a" * 64, size_bytes=-1), "BAD_SIZE"),
        (lambda r: r.entries.add(digest="sha256:" + "a" * 64, size_bytes=0), "BAD_SIZE"),
        (lambda r: r.entries.add(digest=digest_of(b""), size_bytes=1), "BAD_SIZE"),
        (lambda r: r.entries.extend([store_pb2.Blob(digest="sha256:" + "a" * 64, size_bytes=1)] * 2), "DUPLICATE_DIGEST"),
        (lambda r: setattr(r, "request_id", "x" * 37), "BAD_REQUEST_ID"),
    ],
)  # fmt: skip
def test_offers_that_make_no_sense_are_refused(store: Any, change: Any, reason: str) -> None:
    request = store_pb2.OpenUploadRequest()
    change(request)
    with pytest.raises(InvalidArgument) as raised:
        store.OpenUpload(request)
    assert raised.value.reason == reason


def test_an_offer_has_at_most_ten_thousand_blobs(store: Any) -> None:
    entries = [store_pb2.Blob(digest=f"sha256:{number:064x}", size_bytes=1) for number in range(MAX_FILES + 1)]
    with pytest.raises(InvalidArgument) as raised:
        store.OpenUpload(store_pb2.OpenUploadRequest(entries=entries))
    assert raised.value.reason == "TOO_MANY_FILES"
    upload = store.OpenUpload(store_pb2.OpenUploadRequest(entries=entries[:-1]))
    assert len(upload.missing) == MAX_FILES


def test_the_lightweight_class_takes_small_blobs_only(store: Any) -> None:
    light = file_pb2.STORAGE_CLASS_LIGHTWEIGHT
    entry = store_pb2.Blob(digest="sha256:" + "c" * 64, size_bytes=(10 << 20) + 1)
    with pytest.raises(FailedPrecondition) as raised:
        store.OpenUpload(store_pb2.OpenUploadRequest(entries=[entry], storage_class=light))
    assert raised.value.reason == "NOT_LIGHTWEIGHT"
    entry.size_bytes = 10 << 20
    store.OpenUpload(store_pb2.OpenUploadRequest(entries=[entry], storage_class=light))


def test_a_known_blob_with_another_size_is_refused(store: Any) -> None:
    data = os.urandom(100)
    put(store, data)
    with pytest.raises(InvalidArgument) as raised:
        store.OpenUpload(store_pb2.OpenUploadRequest(entries=[store_pb2.Blob(digest=digest_of(data), size_bytes=99)]))
    assert raised.value.reason == "WRONG_SIZE"


def test_more_room_than_there_is_is_refused_before_bytes_travel(store: Any) -> None:
    entry = store_pb2.Blob(digest="sha256:" + "d" * 64, size_bytes=1 << 60)
    with pytest.raises(NoronhaError) as raised:
        store.OpenUpload(store_pb2.OpenUploadRequest(entries=[entry]))
    assert raised.value.reason == "NO_SPACE"
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("requests", "kind", "reason"),
    [
        (lambda u, d: [], InvalidArgument, "NO_UPLOAD"),
        (lambda u, d: messages("0" * 32, d), NotFound, "NOT_FOUND"),
        (lambda u, d: messages("", d), NotFound, "NOT_FOUND"),
        (lambda u, d: messages("../../etc", d), NotFound, "NOT_FOUND"),
        (lambda u, d: messages(u, b"never offered"), FailedPrecondition, "BLOB_NOT_OFFERED"),
        (lambda u, d: [store_pb2.WriteBlobsRequest(upload=u, digest="x", data=b"x")], InvalidArgument, "BAD_DIGEST"),
        (lambda u, d: [store_pb2.WriteBlobsRequest(upload=u, data=b"x")], FailedPrecondition, "BLOB_NOT_OFFERED"),
        (lambda u, d: messages(u, d, size=CHUNK + 1), InvalidArgument, "CHUNK_TOO_LARGE"),
        (
            lambda u, d: [
                *messages(u, d, size=CHUNK),
                store_pb2.WriteBlobsRequest(upload=u, digest="sha256:" + "e" * 64, data=b"x", crc32=zlib.crc32(b"x")),
            ],
            FailedPrecondition,
            "BLOB_NOT_OFFERED",
        ),
        (
            lambda u, d: [
                *list(messages(u, d))[:-1],
                store_pb2.WriteBlobsRequest(
                    digest=digest_of(d), offset=2 * CHUNK, data=d[-1:] * 11, crc32=zlib.crc32(d[-1:] * 11)
                ),
            ],
            InvalidArgument,
            "BLOB_TOO_LONG",
        ),
    ],
)
def test_streams_that_make_no_sense_are_refused(store: Any, requests: Any, kind: type, reason: str) -> None:
    data = os.urandom(2 * CHUNK + 10)
    upload = open_upload(store, data)
    with pytest.raises(kind) as raised:
        send(store, requests(upload.upload, data))
    assert raised.value.reason == reason


def test_a_repeated_opening_is_answered_as_it_stands_now(store: Any) -> None:
    data = os.urandom(3 * CHUNK)
    first = open_upload(store, data, request_id="same-" + digest_of(data)[-20:])
    send(store, list(messages(first.upload, data))[:1])
    again = open_upload(store, data, request_id="same-" + digest_of(data)[-20:])
    assert again.upload == first.upload
    assert missing(again) == {digest_of(data): CHUNK}
    with pytest.raises(AlreadyExists) as raised:
        open_upload(store, b"something else", request_id="same-" + digest_of(data)[-20:])
    assert raised.value.reason == "REQUEST_ID_REUSED"


def test_somebody_elses_upload_does_not_exist(store: Any, rig: Rig) -> None:
    data = os.urandom(100)
    upload = open_upload(store, data).upload
    stranger = rig.stub(Kind.USER, "stranger")
    for attempt in (
        lambda: stranger.GetUpload(store_pb2.GetUploadRequest(upload=upload)),
        lambda: send(stranger, messages(upload, data)),
    ):
        with pytest.raises(NotFound):
            attempt()
    stranger.AbortUpload(store_pb2.AbortUploadRequest(upload=upload))
    assert missing(store.GetUpload(store_pb2.GetUploadRequest(upload=upload))) == {digest_of(data): 0}


def test_a_task_is_offered_only_what_it_wrote_itself(store: Any, rig: Rig) -> None:
    theirs, mine = os.urandom(100), os.urandom(2 * CHUNK)
    put(store, theirs)
    task = rig.stub(Kind.TASK, "projects/a/trainings/t")
    upload = open_upload(task, theirs, mine)
    assert missing(upload) == {digest_of(theirs): 0, digest_of(mine): 0}
    send(task, messages(upload.upload, theirs, mine))
    assert missing(task.GetUpload(store_pb2.GetUploadRequest(upload=upload.upload))) == {}
    assert missing(open_upload(task, theirs, mine)) == {}
    other = rig.stub(Kind.TASK, "projects/a/trainings/u")
    assert missing(open_upload(other, theirs, mine)) == {digest_of(theirs): 0, digest_of(mine): 0}


def test_a_task_cannot_claim_a_blob_by_its_digest_alone(store: Any, rig: Rig) -> None:
    secret = os.urandom(1000)
    put(store, secret)
    task = rig.stub(Kind.TASK, "projects/a/trainings/thief")
    upload = open_upload(task, secret)
    with pytest.raises(FailedPrecondition) as raised:
        seal(rig, upload.upload, "task:projects/a/trainings/thief")
    assert raised.value.reason == "UPLOAD_INCOMPLETE"


def test_tenants_share_nothing(store: Any, rig: Rig) -> None:
    data = os.urandom(1000)
    put(store, data)
    stranger = rig.stub(Kind.USER, "ana", tenant="other")
    with pytest.raises(NotFound):
        fetch(stranger, digest_of(data))
    assert missing(open_upload(stranger, data)) == {digest_of(data): 0}
    put(stranger, data)
    assert fetch(stranger, digest_of(data)) == data


def test_a_sealed_upload_tells_all_it_holds_and_is_not_given_up(rig: Rig) -> None:
    ana = rig.stub(Kind.USER, "ana")
    data = [os.urandom(100), os.urandom(2 * CHUNK)]
    upload = put(ana, *data)
    sealed = seal(rig, upload.upload, "user:ana")
    assert {(each.digest, each.size_bytes) for each in sealed.entries} == {(digest_of(d), len(d)) for d in data}
    assert sealed.storage_class == file_pb2.STORAGE_CLASS_STANDARD
    ana.AbortUpload(store_pb2.AbortUploadRequest(upload=upload.upload))
    assert seal(rig, upload.upload, "user:ana").entries == sealed.entries
    held = rig.stub(Kind.SERVICE, "metadata").DeleteBlobs(
        store_pb2.DeleteBlobsRequest(digests=[digest_of(each) for each in data])
    )
    assert set(held.held) == {digest_of(each) for each in data}


def test_only_a_complete_upload_of_the_publisher_is_sealed(rig: Rig) -> None:
    ana = rig.stub(Kind.USER, "ana")
    data = os.urandom(1000)
    upload = open_upload(ana, data).upload
    with pytest.raises(FailedPrecondition) as incomplete:
        seal(rig, upload, "user:ana")
    assert incomplete.value.reason == "UPLOAD_INCOMPLETE"
    send(ana, messages(upload, data))
    with pytest.raises(PermissionDenied) as foreign:
        seal(rig, upload, "user:bob")
    assert foreign.value.reason == "NOT_YOUR_UPLOAD"
    with pytest.raises(NotFound):
        seal(rig, "0" * 32, "user:ana")
    seal(rig, upload, "user:ana")


def test_an_aborted_upload_is_gone_and_its_bytes_with_it(store: Any, rig: Rig) -> None:
    data = os.urandom(3 * CHUNK)
    upload = open_upload(store, data).upload
    send(store, list(messages(upload, data))[:2])
    assert (rig.staging / upload).exists()
    for _ in range(2):
        store.AbortUpload(store_pb2.AbortUploadRequest(upload=upload))
    assert not (rig.staging / upload).exists()
    with pytest.raises(NotFound):
        store.GetUpload(store_pb2.GetUploadRequest(upload=upload))


def test_stat_names_what_is_there_in_the_order_asked(store: Any) -> None:
    data = [os.urandom(10), os.urandom(20)]
    put(store, *data)
    digests = [digest_of(data[1]), "sha256:" + "0" * 64, digest_of(data[0])]
    found = store.StatBlobs(store_pb2.StatBlobsRequest(digests=digests)).blobs
    assert [(each.digest, each.size_bytes) for each in found] == [(digests[0], 20), (digests[2], 10)]
    with pytest.raises(InvalidArgument) as raised:
        store.StatBlobs(store_pb2.StatBlobsRequest(digests=["nonsense"]))
    assert raised.value.reason == "BAD_DIGEST"


def test_deleted_blobs_are_gone(rig: Rig) -> None:
    ana = rig.stub(Kind.USER, "ana")
    data = os.urandom(2 * CHUNK)
    upload = put(ana, data)
    service = rig.stub(Kind.SERVICE, "metadata")
    request = store_pb2.DeleteBlobsRequest(digests=[digest_of(data), "sha256:" + "0" * 64])
    assert list(service.DeleteBlobs(request).held) == [digest_of(data)]
    ana.AbortUpload(store_pb2.AbortUploadRequest(upload=upload.upload))
    file = rig.object_of(data)
    assert list(service.DeleteBlobs(request).held) == []
    assert not file.exists()
    with pytest.raises(NotFound):
        fetch(ana, digest_of(data))
