"""What a client's ``upload`` and ``download`` promise, against a real Store."""

from __future__ import annotations

import os
import random
import resource
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from noronha.client import transfer
from noronha.rpc.dial import dial
from noronha.rpc.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    Unavailable,
)
from noronha.v1 import file_pb2, store_pb2_grpc

from .proxy import CuttingProxy
from .rig import CHUNK, Rig, digest_of, fetch, put


@pytest.fixture
def store(rig: Rig) -> Any:
    return rig.stub()


class Counting:
    """A stub that counts the payload bytes that leave, and can do something before each chunk."""

    def __init__(self, stub: Any, before: Any = None) -> None:
        self._stub = stub
        self._before = before
        self.sent = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def WriteBlobs(self, requests: Any) -> Any:
        def counted() -> Any:
            for request in requests:
                if self._before is not None:
                    self._before(self.sent)
                self.sent += len(request.data)
                yield request

        return self._stub.WriteBlobs(counted())


def make(folder: Path, **content: bytes) -> list[tuple[str, Path]]:
    pairs = []
    for path, data in content.items():
        path = path.replace("__", "/")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        pairs.append((path, target))
    return pairs


def test_files_come_back_as_they_went(store: Any, tmp_path: Path) -> None:
    content = {
        "empty": b"", "one": b"1", "sub__deep__two": os.urandom(1000), "sub__same": os.urandom(1000),
        "chunk": os.urandom(CHUNK), "big": os.urandom(20 * CHUNK + 3),
    }  # fmt: skip
    content["twin"] = content["sub__same"]
    pairs = make(tmp_path / "from", **content)
    (tmp_path / "from" / "one").chmod(0o755)
    done = transfer.upload(store, pairs)
    assert [each.path for each in done.files] == sorted(path for path, _ in pairs)
    transfer.download(store, done.files, tmp_path / "to")
    for path, source in pairs:
        assert (tmp_path / "to" / path).read_bytes() == source.read_bytes()
        assert bool((tmp_path / "to" / path).stat().st_mode & stat.S_IXUSR) == (path == "one")
    assert sum(1 for each in (tmp_path / "to").rglob("*") if each.is_file()) == len(pairs)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["from", "to"]


def test_the_same_upload_again_sends_nothing(store: Any, tmp_path: Path) -> None:
    pairs = make(tmp_path, big=os.urandom(5 * CHUNK), small=os.urandom(100))
    first, second = Counting(store), Counting(store)
    assert transfer.upload(first, pairs).files == transfer.upload(second, pairs).files
    assert (first.sent, second.sent) == (5 * CHUNK + 100, 0)


def test_a_plain_channel_serves_as_well(rig: Rig, tmp_path: Path) -> None:
    with grpc.insecure_channel(rig.address) as channel:
        stub = store_pb2_grpc.StoreStub(channel)
        done = transfer.upload(stub, make(tmp_path, file=os.urandom(2 * CHUNK)))
        transfer.download(stub, done.files, tmp_path / "to")
        with pytest.raises(NotFound):
            transfer.download(
                stub, [file_pb2.File(path="x", digest="sha256:" + "0" * 64, size_bytes=1)], tmp_path / "never"
            )
    assert not (tmp_path / "never").exists()


def test_progress_begins_at_nothing_and_ends_at_all(store: Any, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    pairs = make(tmp_path, big=os.urandom(3 * CHUNK), small=os.urandom(100))
    done = transfer.upload(store, pairs, progress=lambda *step: told.append(step))
    transfer.download(store, done.files, tmp_path / "to", progress=lambda *step: told.append(step))
    total = 3 * CHUNK + 100
    for step in ("digest", "send", "receive"):
        mine = [each[1:] for each in told if each[0] == step]
        assert mine[0] == (0, total) and mine[-1] == (total, total)
        assert mine == sorted(mine)


def test_transfers_cut_at_any_byte_go_on(rig: Rig, store: Any, tmp_path: Path) -> None:
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 30)))
    print(f"seed {seed}")
    dice = random.Random(seed)
    content = {f"f{number}": dice.randbytes(dice.choice([10, CHUNK, 7 * CHUNK + 1])) for number in range(8)}
    pairs = make(tmp_path / "from", **content)
    allowances = [dice.choice([100, 5_000, CHUNK, 3 * CHUNK, dice.randrange(1, 9 * CHUNK)]) for _ in range(7)]
    target = Path(rig.address.removeprefix("unix:"))
    with CuttingProxy(rig.root / f"p{seed}", target, lambda: allowances.pop() if allowances else None) as proxy:
        with dial(proxy.address) as channel:
            cut = store_pb2_grpc.StoreStub(channel)
            done = transfer.upload(cut, pairs)
            assert proxy.cuts > 0
            allowances += [dice.choice([300, CHUNK, dice.randrange(1, 9 * CHUNK)]) for _ in range(4)]
            channel.close()
        with dial(proxy.address) as channel:
            transfer.download(store_pb2_grpc.StoreStub(channel), done.files, tmp_path / "to")
    for path, source in pairs:
        assert (tmp_path / "to" / path).read_bytes() == source.read_bytes()
        assert fetch(store, digest_of(source.read_bytes())) == source.read_bytes()


def test_an_upload_outlives_kills_of_the_server(own_rig: Rig, tmp_path: Path) -> None:
    data = os.urandom(40 * CHUNK)
    kills = [5 * CHUNK, 20 * CHUNK, 30 * CHUNK]

    def before(sent: int) -> None:
        if kills and sent >= kills[0]:
            del kills[0]
            own_rig.kill()
            threading.Timer(0.2, own_rig.start).start()

    stub = Counting(own_rig.stub(), before)
    done = transfer.upload(stub, make(tmp_path, big=data))
    assert not kills
    assert stub.sent < 3 * len(data)
    assert fetch(own_rig.stub(), done.files[0].digest) == data


def test_patience_ends_when_nothing_moves(own_rig: Rig, tmp_path: Path) -> None:
    pairs = make(tmp_path, file=b"abc")
    own_rig.kill()
    calls: list[int] = []
    with pytest.raises(Unavailable):
        transfer.upload(own_rig.stub(), pairs, patience=3, revive=lambda: calls.append(1))
    assert calls


def test_the_mesh_is_revived_while_it_is_away(own_rig: Rig, tmp_path: Path) -> None:
    data = os.urandom(100)
    own_rig.kill()
    started: list[int] = []

    def revive() -> None:
        if not started:
            started.append(1)
            own_rig.start()

    transfer.upload(own_rig.stub(), make(tmp_path, file=data), revive=revive)
    assert fetch(own_rig.stub(), digest_of(data)) == data


def test_an_upload_that_was_forgotten_begins_anew(own_rig: Rig, tmp_path: Path) -> None:
    data = os.urandom(10 * CHUNK)
    wiped: list[int] = []

    def before(sent: int) -> None:
        if sent >= 4 * CHUNK and not wiped:
            wiped.append(1)
            own_rig.kill()
            for each in (own_rig.state / "store").glob("index.db*"):
                each.unlink()
            own_rig.start()

    done = transfer.upload(Counting(own_rig.stub(), before), make(tmp_path, big=data))
    assert wiped
    assert fetch(own_rig.stub(), done.files[0].digest) == data


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        listener.bind(path.name)
    finally:
        os.chdir(here)
    listener.close()


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    path.with_name("real").write_bytes(b"x")
    path.symlink_to("real")


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("kind", [_fifo, _socket, _folder, _link, _device])
def test_only_regular_files_are_taken(store: Any, tmp_path: Path, kind: Any) -> None:
    kind(tmp_path / "odd")
    with pytest.raises(InvalidArgument) as raised:
        transfer.upload(store, [("odd", tmp_path / "odd")])
    assert raised.value.reason == "NOT_A_FILE"
    assert str(tmp_path / "odd") in raised.value.message and "\n" not in raised.value.message


def test_a_file_that_is_not_there_is_named(store: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="absent"):
        transfer.upload(store, [("a", tmp_path / "absent")])


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite", "replace", "remove"])
def test_a_file_that_changes_while_it_is_sent_is_refused(store: Any, tmp_path: Path, change: str) -> None:
    data = os.urandom(4 * CHUNK)
    ((path, source),) = make(tmp_path, big=data)

    def before(sent: int) -> None:
        if sent != CHUNK:
            return
        time.sleep(0.01)
        if change == "grow":
            with open(source, "ab") as file:
                file.write(b"more")
        elif change == "shrink":
            os.truncate(source, 3 * CHUNK)
        elif change == "rewrite":
            with open(source, "r+b") as file:
                file.seek(3 * CHUNK)
                file.write(b"other")
        elif change == "replace":
            source.with_name("new").write_bytes(os.urandom(4 * CHUNK))
            source.with_name("new").replace(source)
            source.touch()
        else:
            source.unlink()

    if change in ("replace", "remove"):
        # Whoever has it open goes on with what was digested; what is opened next is another file.
        pairs = [("a", make(tmp_path, a=os.urandom(2 * CHUNK))[0][1]), (path, source)]
    else:
        pairs = [(path, source)]
    with pytest.raises((FailedPrecondition, NotFound)) as raised:
        transfer.upload(Counting(store, before), pairs)
    assert raised.value.reason == ("NOT_FOUND" if change == "remove" else "FILE_CHANGED")
    assert str(source) in raised.value.message


def test_a_file_that_grows_without_end_is_refused_while_it_is_digested(store: Any, tmp_path: Path) -> None:
    ((path, source),) = make(tmp_path, log=os.urandom(CHUNK))
    stop = threading.Event()

    def write() -> None:
        with open(source, "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 65536)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(FailedPrecondition) as raised:
            transfer.upload(store, [(path, source)])
    finally:
        stop.set()
        writer.join()
    assert raised.value.reason == "FILE_CHANGED"


@pytest.mark.parametrize(
    "path", ["../x", "/x", "a/../b", "a//b", "./a", "", "a/", "a\nb", "a\0b", "a\\b", "x" * 1025, "\ud800"]
)
def test_paths_that_could_leave_their_folder_are_refused(store: Any, tmp_path: Path, path: str) -> None:
    ((_, source),) = make(tmp_path, fine=b"x")
    put(store, b"x")
    with pytest.raises(InvalidArgument) as raised:
        transfer.upload(store, [(path, source)])
    assert raised.value.reason == "BAD_PATH"
    if "\ud800" in path:
        return  # cannot be put into a message at all
    evil = file_pb2.File(path=path, digest=digest_of(b"x"), size_bytes=1)
    with pytest.raises(InvalidArgument) as raised:
        transfer.download(store, [evil], tmp_path / "to")
    assert raised.value.reason == "BAD_PATH"
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/c", "a/b"), ("e\u0301", "\u00e9")])
def test_paths_that_cannot_be_together_are_refused(store: Any, tmp_path: Path, paths: tuple[str, str]) -> None:
    ((_, source),) = make(tmp_path, fine=b"x")
    with pytest.raises(InvalidArgument) as raised:
        transfer.upload(store, [(path, source) for path in paths])
    assert raised.value.reason == "BAD_PATH"


def test_a_download_into_a_folder_in_use_replaces_only_its_own_files(store: Any, tmp_path: Path) -> None:
    done = transfer.upload(store, make(tmp_path / "from", a=b"new", sub__b=b"new"))
    make(tmp_path / "to", a=b"old", sub__c=b"kept")
    transfer.download(store, done.files, tmp_path / "to", durable=True)
    found = {
        str(each.relative_to(tmp_path / "to")): each.read_bytes()
        for each in (tmp_path / "to").rglob("*")
        if each.is_file()
    }
    assert found == {"a": b"new", "sub/b": b"new", "sub/c": b"kept"}


def test_a_download_follows_no_link_inside_its_folder(store: Any, tmp_path: Path) -> None:
    done = transfer.upload(store, make(tmp_path / "from", sub__b=b"new"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(FailedPrecondition) as raised:
        transfer.download(store, done.files, tmp_path / "to")
    assert raised.value.reason == "UNWRITABLE"
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_failed_download_leaves_nothing(rig: Rig, store: Any, tmp_path: Path) -> None:
    good, bad = os.urandom(3 * CHUNK), os.urandom(3 * CHUNK)
    done = transfer.upload(store, make(tmp_path / "from", good=good, bad=bad))
    file = rig.object_of(bad)
    file.chmod(0o600)
    file.write_bytes(bytes(3 * CHUNK))
    with pytest.raises(DataLoss):
        transfer.download(store, done.files, tmp_path / "to")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["from"]


def test_a_record_that_lies_about_a_size_is_found(store: Any, tmp_path: Path) -> None:
    put(store, b"abc")
    with pytest.raises(DataLoss):
        transfer.download(store, [file_pb2.File(path="a", digest=digest_of(b"abc"), size_bytes=4)], tmp_path / "to")


def test_a_file_where_a_folder_is_wanted_is_said_so(store: Any, tmp_path: Path) -> None:
    ((_, source),) = make(tmp_path, fine=b"x")
    with pytest.raises(InvalidArgument) as raised:
        transfer.download(store, [], source)
    assert raised.value.reason == "NOT_A_FOLDER"


def test_too_many_files_are_refused_before_any_is_read(store: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as raised:
        transfer.upload(store, [(f"f{number}", tmp_path / "absent") for number in range(10_001)])
    assert raised.value.reason == "TOO_MANY_FILES"


def test_memory_stays_flat(own_rig: Rig, tmp_path: Path) -> None:
    """In processes of their own: 400 MiB travel, and neither end grows by more than 64."""
    import subprocess
    import sys

    (tmp_path / "big").write_bytes(b"")
    with open(tmp_path / "big", "wb") as file:
        block = os.urandom(8 * CHUNK)
        for number in range(50):
            file.write(number.to_bytes(8, "big") + block[8:])
    program = (
        "import sys, pathlib, resource\n"
        "from noronha.client import transfer\n"
        "from noronha.rpc.dial import dial\n"
        "from noronha.v1 import store_pb2_grpc\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "folder = pathlib.Path(sys.argv[2])\n"
        "idle = peak()\n"
        "stub = store_pb2_grpc.StoreStub(dial(sys.argv[1]))\n"
        "done = transfer.upload(stub, [('big', folder / 'big')])\n"
        "transfer.download(stub, done.files, folder / 'to')\n"
        "print(peak() - idle)\n"
    )
    idle = _peak(own_rig.process_id)
    client = subprocess.run(
        [sys.executable, "-c", program, own_rig.address, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert client.returncode == 0, client.stderr
    assert int(client.stdout) < 64
    assert _peak(own_rig.process_id) - idle < 64


def _peak(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmHWM")


def test_no_descriptor_is_left_open(store: Any, tmp_path: Path) -> None:
    pairs = make(tmp_path, a=os.urandom(2 * CHUNK), b=b"x")
    transfer.upload(store, pairs)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        done = transfer.upload(store, pairs)
        transfer.download(store, done.files, tmp_path / f"to{number}")
        with pytest.raises(NoronhaError):
            transfer.upload(store, [*pairs, ("c", tmp_path / "absent")])
    assert len(os.listdir("/proc/self/fd")) <= before
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before
