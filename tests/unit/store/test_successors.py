"""A client that was killed is followed by its successor: what Store has taken is not sent again, whoever else is there."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis.principals import Kind
from noronha.client import transfer
from noronha.rpc.dial import dial
from noronha.rpc.errors import OutOfRange, ResourceExhausted
from noronha.store.backends.file import FileObjects
from noronha.v1 import store_pb2, store_pb2_grpc

from .proxy import CuttingProxy
from .rig import CHUNK, Rig, digest_of, fetch, messages, open_upload, running, send
from .test_transfer import Counting, make

TAKEN = 5 * CHUNK


@pytest.fixture
def data() -> bytes:
    return os.urandom(8 * CHUNK + 17)


def missing(upload: store_pb2.Upload) -> dict[str, int]:
    return {each.digest: each.committed_offset for each in upload.missing}


def leave(store: Any, data: bytes, count: int = TAKEN) -> str:
    """Opens an upload, sends the beginning of its blob, and is heard of no more; returns the upload."""
    upload = open_upload(store, data).upload
    send(store, itertools.takewhile(lambda each: each.offset < count, messages(upload, data)))
    return upload


def stage_of(rig: Rig, upload: str, data: bytes) -> Path:
    return rig.staging / upload / digest_of(data).removeprefix("sha256:")


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def is_let_go(stage: Path) -> bool:
    with open(stage, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_successor_sends_only_the_rest(rig: Rig, data: bytes, tmp_path: Path) -> None:
    leave(rig.stub(), data)
    told: list[tuple[str, int, int]] = []
    stub = Counting(rig.stub())
    done = transfer.upload(stub, make(tmp_path, big=data), progress=lambda *step: told.append(step))
    assert stub.sent == len(data) - TAKEN
    assert fetch(rig.stub(), done.files[0].digest) == data
    assert [each[1] for each in told if each[0] == "send"][1:3] == [TAKEN, TAKEN + CHUNK]


def test_each_of_a_row_of_successors_goes_on_where_the_last_one_stopped(own_rig: Rig, data: bytes) -> None:
    for count in range(CHUNK, 8 * CHUNK, CHUNK):
        store = own_rig.stub()
        upload = open_upload(store, data)
        assert missing(upload) == {digest_of(data): count - CHUNK}
        send(store, list(messages(upload.upload, data, begin=count - CHUNK))[:1])
        own_rig.kill()
        own_rig.start()
    assert [each.name for each in own_rig.staging.iterdir()] == [upload.upload], "copies were left behind"


def test_of_several_beginnings_the_longest_is_taken(rig: Rig, data: bytes) -> None:
    store = rig.stub()
    uploads = [open_upload(store, data).upload for _ in range(3)]
    for upload, count in zip(uploads, (1, 4, 2), strict=True):
        send(store, list(messages(upload, data))[:count])
    assert missing(open_upload(store, data)) == {digest_of(data): 4 * CHUNK}


def test_a_beginning_goes_to_nobody_else(rig: Rig, data: bytes) -> None:
    leave(rig.stub(Kind.TASK, "projects/a/trainings/t"), data)
    for other in (
        rig.stub(), rig.stub(Kind.TASK, "projects/a/trainings/u"), rig.stub(Kind.USER, "ana", tenant="elsewhere"),
    ):  # fmt: skip
        assert missing(open_upload(other, data)) == {digest_of(data): 0}
    assert missing(open_upload(rig.stub(Kind.TASK, "projects/a/trainings/t"), data)) == {digest_of(data): TAKEN}


def test_a_beginning_that_was_damaged_is_found_out_and_sent_again(rig: Rig, data: bytes, tmp_path: Path) -> None:
    with open(stage_of(rig, leave(rig.stub(), data), data), "r+b") as file:
        file.seek(3 * CHUNK)
        file.write(b"damaged")
    stub = Counting(rig.stub())
    done = transfer.upload(stub, make(tmp_path, big=data))
    assert stub.sent == len(data) - TAKEN + len(data)
    assert fetch(rig.stub(), done.files[0].digest) == data


def test_a_successor_that_comes_before_the_last_stream_is_over_waits_for_it(rig: Rig, data: bytes) -> None:
    upload = leave(rig.stub(), data)
    objects = FileObjects(f"file:{rig.staging.parent}", rig.root)
    stage = objects.stage(f"{upload}/{digest_of(data)[7:]}")
    ending = threading.Timer(0.5, stage.close)
    ending.start()
    try:
        assert missing(open_upload(rig.stub(), data)) == {digest_of(data): TAKEN}
    finally:
        ending.join()
        objects.close()


def test_who_is_writing_is_not_robbed(rig: Rig, data: bytes, tmp_path: Path) -> None:
    store = rig.stub()
    upload = open_upload(store, data)
    other = Counting(rig.stub())

    def requests() -> Iterator[store_pb2.WriteBlobsRequest]:
        for each in messages(upload.upload, data):
            if each.offset == TAKEN:
                until(lambda: stage_of(rig, upload.upload, data).stat().st_size == TAKEN)
                transfer.upload(other, make(tmp_path, big=data))
            yield each

    answers = list(store.WriteBlobs(requests()))
    assert [each.digest for each in answers if each.complete] == [digest_of(data)]
    assert other.sent == len(data)
    assert fetch(store, digest_of(data)) == data


def test_who_was_between_two_streams_begins_anew_and_both_end(rig: Rig, data: bytes) -> None:
    store = rig.stub()
    first = leave(store, data)
    second = open_upload(store, data)
    assert missing(second) == {digest_of(data): TAKEN}
    with pytest.raises(OutOfRange) as raised:
        send(store, messages(first, data, begin=TAKEN))
    assert raised.value.metadata["committed_offset"] == "0"
    assert missing(store.GetUpload(store_pb2.GetUploadRequest(upload=first))) == {digest_of(data): 0}
    with ThreadPoolExecutor(2) as pool:
        sending = [
            pool.submit(send, store, messages(first, data)),
            pool.submit(send, store, messages(second.upload, data, begin=TAKEN)),
        ]
        assert all(each.result()[-1].complete for each in sending)
    for upload in (first, second.upload):
        assert missing(store.GetUpload(store_pb2.GetUploadRequest(upload=upload))) == {}
    assert fetch(store, digest_of(data)) == data
    assert rig.object_of(data).stat().st_size == len(data), "of two copies one is kept"


def test_giving_up_the_first_leaves_what_the_second_has(rig: Rig, data: bytes) -> None:
    store = rig.stub()
    first = leave(store, data)
    second = open_upload(store, data)
    store.AbortUpload(store_pb2.AbortUploadRequest(upload=first))
    send(store, messages(second.upload, data, begin=TAKEN))
    assert fetch(store, digest_of(data)) == data


def test_an_opening_refused_for_want_of_room_leaves_the_beginning_where_it_is(rig: Rig, data: bytes) -> None:
    store = rig.stub()
    leave(store, data)
    request = store_pb2.OpenUploadRequest()
    request.entries.add(digest=digest_of(data), size_bytes=len(data))
    request.entries.add(digest="sha256:" + "d" * 64, size_bytes=1 << 60)
    with pytest.raises(ResourceExhausted):
        store.OpenUpload(request)
    assert missing(open_upload(store, data)) == {digest_of(data): TAKEN}


def test_an_opening_that_is_repeated_leaves_its_blob_alone(rig: Rig, data: bytes) -> None:
    store = rig.stub()
    request_id = digest_of(data)[-20:]
    upload = open_upload(store, data, request_id=request_id)
    send(store, list(messages(upload.upload, data))[:1])
    longer = open_upload(store, os.urandom(10), data)
    assert missing(longer)[digest_of(data)] == CHUNK
    send(store, list(messages(longer.upload, data, begin=CHUNK))[:3])
    again = open_upload(store, data, request_id=request_id)
    assert (again.upload, missing(again)) == (upload.upload, {digest_of(data): 0})
    assert missing(store.GetUpload(store_pb2.GetUploadRequest(upload=longer.upload)))[digest_of(data)] == 4 * CHUNK


def test_many_of_the_same_files_at_once_with_cut_connections_all_end_right(own_rig: Rig, tmp_path: Path) -> None:
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    content = {f"f{number}": dice.randbytes(dice.choice([10, 3 * CHUNK + 1, 9 * CHUNK])) for number in range(4)}
    pairs = make(tmp_path, **content)
    target = Path(own_rig.address.removeprefix("unix:"))
    allowances = [dice.randrange(1, 12 * CHUNK) for _ in range(24)]

    def one(number: int) -> None:
        def allowance() -> int | None:
            return allowances.pop() if allowances else None

        with CuttingProxy(own_rig.root / f"p{number}", target, allowance) as proxy, dial(proxy.address) as channel:
            for _ in range(2):
                transfer.upload(store_pb2_grpc.StoreStub(channel), pairs)

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(one, range(5)))
    for each in content.values():
        assert fetch(own_rig.stub(), digest_of(each)) == each
    assert not [each for each in own_rig.staging.rglob("*") if each.is_file() and each.stat().st_size]


def nha(rig: Rig, address: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts the command as a user whose mesh is at ``address``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    environment |= {"HOME": str(rig.root), "NHA_MESH__ADDRESS": address}
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "nha"), "-s", *arguments], env=environment, cwd=rig.root, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["ds", "movers"])
def test_a_command_that_is_killed_and_repeated_sends_only_the_rest(tmp_path: Path, kind: str) -> None:
    data = os.urandom(40 * CHUNK + 5)
    make(tmp_path, folder__big=data)
    with running(services=("metadata", "store")) as rig, contextlib.ExitStack() as stack:
        target = Path(rig.address.removeprefix("unix:"))

        def through(name: str, allowance: int | None) -> CuttingProxy:
            return stack.enter_context(CuttingProxy(rig.root / name, target, lambda: allowance, silent=True))

        def done(process: subprocess.Popen[str]) -> None:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output

        done(nha(rig, rig.address, "model", "new", "--name", "m"))
        command = (kind, "new", "--model", "m", "--name", "n", "--path", str(tmp_path / "folder"))
        proxy = through("a", 24 * CHUNK)
        victim = nha(rig, proxy.address, *command)
        try:
            until(lambda: proxy.cuts)
        finally:
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        (stage,) = rig.staging.glob("*/*")
        until(lambda: is_let_go(stage))
        taken = stage.stat().st_size
        assert taken > 16 * CHUNK
        proxy = through("b", None)
        done(nha(rig, proxy.address, *command))
        assert len(data) - taken <= proxy.sent < len(data) - taken + CHUNK
        assert fetch(rig.stub(), digest_of(data)) == data
        assert not list(rig.staging.glob("*/*"))
