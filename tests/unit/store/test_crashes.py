"""Nothing acknowledged is lost, whatever ends the server; and a disk that refuses is said in one line."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from noronha.chassis.principals import Kind
from noronha.rpc.errors import NoronhaError, NotFound, ResourceExhausted, Unavailable
from noronha.store.backends.file import FileObjects
from noronha.v1 import store_pb2

from .rig import CHUNK, Rig, digest_of, fetch, messages, open_upload, put, running, send


def test_what_was_acknowledged_survives_kills_in_the_middle_of_uploads(own_rig: Rig) -> None:
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    acknowledged: dict[str, bytes] = {}
    half_done: list[tuple[str, bytes, int]] = []
    for _ in range(5):
        store = own_rig.stub()
        data = [dice.randbytes(dice.choice([100, 1000, CHUNK, 3 * CHUNK + 7, 12 * CHUNK])) for _ in range(12)]
        upload = open_upload(store, *data)
        by_digest = {digest_of(each): each for each in data}
        killer = threading.Timer(dice.uniform(0.01, 0.3), own_rig.kill)
        killer.start()
        try:
            for answer in store.WriteBlobs(_slowly(messages(upload.upload, *data), dice)):
                if answer.complete:
                    acknowledged[answer.digest] = by_digest[answer.digest]
                else:
                    half_done.append((upload.upload, by_digest[answer.digest], answer.committed_offset))
        except NoronhaError:
            pass
        killer.join()
        own_rig.start()
        store = own_rig.stub()
        for digest, content in acknowledged.items():
            assert fetch(store, digest) == content
        # The upload goes on: what it misses is sent, and then it is whole.
        state = store.GetUpload(store_pb2.GetUploadRequest(upload=upload.upload))
        assert not {each.digest for each in state.missing} & set(acknowledged)
        for name, content, kept in half_done:
            if name == upload.upload and digest_of(content) in {each.digest for each in state.missing}:
                assert {each.digest: each.committed_offset for each in state.missing}[digest_of(content)] >= kept
        for each in state.missing:
            send(store, messages(upload.upload, by_digest[each.digest], begin=each.committed_offset))
        for digest, content in by_digest.items():
            assert fetch(store, digest) == content
            acknowledged[digest] = content
    assert acknowledged


def _slowly(requests: Any, dice: random.Random) -> Any:
    for each in requests:
        yield each
        if dice.random() < 0.2:
            time.sleep(0.01)


def test_a_full_disk_refuses_the_blob_and_keeps_the_rest() -> None:
    # A process that may write files of at most 4 MiB stands in for a disk that is full.
    with running(limits="ulimit -f 8192") as rig:
        store = rig.stub()
        small, large = os.urandom(CHUNK + 1), os.urandom(6 * CHUNK)
        put(store, small)
        upload = open_upload(store, large)
        with pytest.raises(ResourceExhausted) as raised:
            send(store, messages(upload.upload, large))
        assert raised.value.reason == "NO_SPACE"
        assert "\n" not in raised.value.message
        assert fetch(store, digest_of(small)) == small
        put(store, os.urandom(1000))


def test_a_folder_that_cannot_be_written_is_one_line_at_the_start(own_rig: Rig, tmp_path: Path) -> None:
    own_rig.stop()
    (tmp_path / "file").touch()
    (own_rig.root / ".nha").mkdir()
    (own_rig.root / ".nha" / "nha.yaml").write_text(f"store: {{backend: 'file:{tmp_path}/file/store'}}\n")
    (own_rig.root / "errors").unlink()
    own_rig.start(wait=False)
    assert own_rig.wait() == 2
    (line,) = own_rig.errors().splitlines()
    assert line.startswith("Error: ") and str(tmp_path) in line


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_read_only_folder_is_said_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(NoronhaError) as raised:
            FileObjects(f"file:{tmp_path}/store", tmp_path)
        assert raised.value.reason == "STORE_READ_ONLY"
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("url", ["file://host/folder", "file:relative", "file:./x"])
def test_a_url_that_names_no_absolute_folder_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(NoronhaError) as raised:
        FileObjects(url, tmp_path)
    assert raised.value.reason == "BAD_SETTING"


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
def test_a_url_names_the_folder(tmp_path: Path, form: str) -> None:
    objects = FileObjects(form.format(tmp_path / "a b"), tmp_path)
    objects.put("t/x", [b"abc"])
    objects.close()
    assert (tmp_path / "a b" / "objects" / "t" / "x").read_bytes() == b"abc"


def test_a_stop_lets_what_is_being_written_end(own_rig: Rig) -> None:
    store = own_rig.stub()
    data = os.urandom(8 * CHUNK)
    upload = open_upload(store, data)
    begun = threading.Event()

    def requests() -> Any:
        for each in messages(upload.upload, data):
            yield each
            begun.set()
            time.sleep(0.02)

    def stop() -> None:
        assert begun.wait(30)
        own_rig.stop()

    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(stop)
        try:
            complete = any(answer.complete for answer in store.WriteBlobs(requests()))
        except Unavailable:
            complete = False
        stopping.result()
    own_rig.start()
    assert complete
    assert fetch(own_rig.stub(), digest_of(data)) == data


def test_an_index_that_was_lost_is_made_anew_from_the_objects(own_rig: Rig) -> None:
    store = own_rig.stub()
    ana = own_rig.stub(Kind.USER, "ana", tenant="a.b/../c")
    data = [os.urandom(size) for size in (100, 200, 300, CHUNK, 3 * CHUNK + 5)]
    put(store, *data)
    put(store, single := os.urandom(10))
    put(ana, theirs := os.urandom(50))
    spoiled = own_rig.object_of(data[-1])
    spoiled.chmod(0o600)
    spoiled.write_bytes(os.urandom(spoiled.stat().st_size))
    own_rig.kill()
    for each in (own_rig.state / "store").glob("index.db*"):
        each.unlink()
    own_rig.start()
    store, ana = own_rig.stub(), own_rig.stub(Kind.USER, "ana", tenant="a.b/../c")
    wanted = [digest_of(each) for each in [*data[:-1], single]]
    deadline = time.monotonic() + 30
    while len(store.StatBlobs(store_pb2.StatBlobsRequest(digests=wanted)).blobs) < len(wanted):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [fetch(store, digest) for digest in wanted] == [*data[:-1], single]
    assert fetch(ana, digest_of(theirs)) == theirs
    for stub, digest in ((store, digest_of(theirs)), (store, digest_of(data[-1])), (ana, wanted[0])):
        with pytest.raises(NotFound):
            fetch(stub, digest)
