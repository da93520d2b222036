"""What a reader may rely on, also when the disk has lied."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from noronha.rpc.errors import DataLoss, InvalidArgument, NotFound, OutOfRange
from noronha.v1 import store_pb2

from .rig import CHUNK, Rig, digest_of, fetch, messages, open_upload, put, send


@pytest.fixture
def store(rig: Rig) -> Any:
    return rig.stub()


def test_any_part_of_a_blob_can_be_read(store: Any) -> None:
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    data = dice.randbytes(5 * CHUNK + 77)
    small = [dice.randbytes(1000) for _ in range(3)]
    put(store, data, *small)
    edges = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK, len(data) - 1, len(data)]
    for begin in edges + [dice.randrange(len(data)) for _ in range(5)]:
        for limit in [0, 1, CHUNK, dice.randrange(1, len(data)), 2 * len(data)]:
            expected = data[begin : begin + limit] if limit else data[begin:]
            assert fetch(store, digest_of(data), begin, limit) == expected
    for each in small:
        assert fetch(store, digest_of(each), 10, 100) == each[10:110]
        assert fetch(store, digest_of(each), 990) == each[990:]


def test_the_first_answer_carries_the_size(store: Any) -> None:
    data = os.urandom(2 * CHUNK + 5)
    put(store, data)
    for offset in (0, 7, len(data)):
        answers = list(store.ReadBlob(store_pb2.ReadBlobRequest(digest=digest_of(data), offset=offset)))
        assert [each.size_bytes for each in answers] == [len(data)] + [0] * (len(answers) - 1)


def test_reads_that_make_no_sense_are_refused(store: Any) -> None:
    data = os.urandom(1000)
    put(store, data)
    for kind, reason, fields in (
        (OutOfRange, "OFFSET_PAST_END", {"digest": digest_of(data), "offset": 1001}),
        (InvalidArgument, "BAD_RANGE", {"digest": digest_of(data), "offset": -1}),
        (InvalidArgument, "BAD_RANGE", {"digest": digest_of(data), "limit": -1}),
        (InvalidArgument, "BAD_DIGEST", {"digest": "../../../etc/passwd"}),
        (NotFound, "NOT_FOUND", {"digest": "sha256:" + "0" * 64}),
    ):
        with pytest.raises(kind) as raised:
            list(store.ReadBlob(store_pb2.ReadBlobRequest(**fields)))
        assert raised.value.reason == reason


def _spoil(file: Path, at: int, how: str) -> None:
    file.chmod(0o600)
    if how == "flip":
        with open(file, "r+b") as opened:
            opened.seek(at)
            byte = opened.read(1)
            opened.seek(at)
            opened.write(bytes([byte[0] ^ 1]))
    elif how == "shorten":
        os.truncate(file, at)
    elif how == "zero":
        with open(file, "r+b") as opened:
            opened.seek(at)
            opened.write(b"\0" * 512)
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["flip", "shorten", "zero", "remove"])
@pytest.mark.parametrize("at", [0, CHUNK + 5, 3 * CHUNK + 99])
def test_a_blob_that_the_disk_changed_is_never_delivered_whole_and_heals(
    rig: Rig, store: Any, how: str, at: int
) -> None:
    data = os.urandom(3 * CHUNK + 700)
    put(store, data)
    _spoil(rig.object_of(data), at, how)
    got = b""
    with pytest.raises(DataLoss) as raised:
        for answer in store.ReadBlob(store_pb2.ReadBlobRequest(digest=digest_of(data))):
            got += answer.data
    assert raised.value.reason == "CHECKSUM_MISMATCH"
    assert digest_of(data) in raised.value.message and "\n" not in raised.value.message
    assert len(got) < len(data) and data.startswith(got)
    # It is set aside: still told as damaged, no longer offered as there, and healed by the same bytes.
    with pytest.raises(DataLoss):
        fetch(store, digest_of(data))
    assert store.StatBlobs(store_pb2.StatBlobsRequest(digests=[digest_of(data)])).blobs == []
    upload = open_upload(store, data)
    assert [each.digest for each in upload.missing] == [digest_of(data)]
    send(store, messages(upload.upload, data))
    assert fetch(store, digest_of(data)) == data


def test_a_part_that_the_disk_changed_is_found_and_other_parts_are_given(rig: Rig, store: Any) -> None:
    data = os.urandom(4 * CHUNK)
    put(store, data)
    _spoil(rig.object_of(data), 2 * CHUNK + 3, "flip")
    assert fetch(store, digest_of(data), 0, CHUNK) == data[:CHUNK]
    with pytest.raises(DataLoss):
        fetch(store, digest_of(data), 2 * CHUNK + 100, 10)


def test_a_small_blob_in_a_pack_that_the_disk_changed_is_found_and_heals(rig: Rig, store: Any) -> None:
    data = [os.urandom(1000) for _ in range(20)]
    before = set(rig.objects.glob("*/packs/*/*"))
    put(store, *data)
    packs = set(rig.objects.glob("*/packs/*/*")) - before
    spoiled = data[7]
    (pack,) = [each for each in packs if spoiled in each.read_bytes()]
    _spoil(pack, pack.read_bytes().index(spoiled) + 500, "flip")
    with pytest.raises(DataLoss):
        fetch(store, digest_of(spoiled))
    for each in data:
        if each != spoiled:
            assert fetch(store, digest_of(each)) == each
    put(store, spoiled)
    assert fetch(store, digest_of(spoiled)) == spoiled


def test_a_blob_whose_object_was_taken_away_travels_again(rig: Rig, store: Any) -> None:
    data = os.urandom(2 * CHUNK)
    put(store, data)
    rig.object_of(data).unlink()
    upload = open_upload(store, data)
    assert [each.digest for each in upload.missing] == [digest_of(data)]
    send(store, messages(upload.upload, data))
    assert fetch(store, digest_of(data)) == data
