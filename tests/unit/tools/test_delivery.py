"""Output on its way: gathered, bounded, in order, at positions; and assets on theirs."""

import io
import os
import random
import tarfile
import threading
import time

import pytest

from noronha.client.archive import packed
from noronha.rpc.errors import DataLoss, FailedPrecondition, InvalidArgument, OutOfRange, Unavailable
from noronha.tools.assets import extract
from noronha.tools.delivery import PIECE, Delivery
from noronha.tools.kernel import RuntimeFolder
from noronha.tools.outputs import Live
from noronha.v1 import tasks_pb2


class Log:
    """A log that takes appends, and fails as it is told."""

    def __init__(self):
        self.data = b""
        self.fail = lambda: None
        self.sizes = []

    def AppendOutput(self, request, timeout):
        self.fail()
        self.sizes.append(len(request.data))
        if request.position > len(self.data):
            raise OutOfRange("gap", reason="LOG_GAP", committed_position=len(self.data))
        self.data += request.data[len(self.data) - request.position :]
        return tasks_pb2.AppendOutputResponse(committed_position=len(self.data))


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def delivery(log, tmp_path):
    made = Delivery(lambda: log, tmp_path)
    yield made
    made.close()


def test_everything_arrives_in_order_over_a_mesh_that_comes_and_goes(log, delivery):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)

    def fail():
        if chance.random() < 0.5:
            raise Unavailable("away")

    log.fail = fail
    lines = [f"line {number} {'x' * chance.randrange(2000)}\n" for number in range(300)]
    for line in lines:
        delivery.add(line)
    assert delivery.flush(60)
    assert log.data.decode() == "".join(lines)


def test_large_output_goes_in_pieces(log, delivery):
    text = "ação\n" * 400_000
    delivery.add(text)
    assert delivery.flush(30)
    assert log.data.decode() == text and max(log.sizes) == PIECE


def test_what_a_mesh_lost_is_filled_up_so_that_positions_stay(log, delivery):
    delivery.add("a" * (2 << 20))
    assert delivery.flush(30)
    log.data = log.data[:1000]
    delivery.add("the end")
    assert delivery.flush(30)
    assert len(log.data) == (2 << 20) + 7 and log.data.endswith(b"the end")
    assert "output was lost here" in log.data.decode("utf-8", "replace")


def test_a_task_that_has_ended_delivers_no_more(log, tmp_path):
    def fail():
        raise FailedPrecondition("over", reason="TASK_ENDED")

    log.fail = fail
    told = threading.Event()
    delivery = Delivery(lambda: log, tmp_path, on_ended=told.set)
    delivery.add("x")
    assert told.wait(10) and delivery.flush(10)


def test_live_output_is_gathered_and_given_on_in_order():
    given = []
    live = Live(given.append, wait=0.05)
    live.add("first")
    deadline = time.monotonic() + 10
    while not given and time.monotonic() < deadline:
        time.sleep(0.01)
    assert given == ["first"]
    for number in range(100_000):
        live.add(f"{number}\n")
    live.close()
    assert "".join(given[1:]).split() == [str(number) for number in range(100_000)]
    assert len(given) < 1000 and max(map(len, given)) <= 64 * 1024


def test_output_faster_than_can_be_kept_is_left_out_with_a_note():
    now = [0.0]
    given = []
    live = Live(given.append, wait=0.01, rate=100, burst=1000, clock=lambda: now[0])
    for _ in range(30):
        live.add("x" * 100)
    assert live.flush()
    now[0] = 100.0
    live.add("later")
    live.close()
    text = "".join(given)
    assert text.startswith("x" * 1000 + "\n[… 2,000 characters") and text.endswith("later")


def test_a_runtime_folder_is_private_and_reachable_by_sockets_however_deep(tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    runtime = RuntimeFolder(deep)
    assert runtime.path.parent == deep and os.stat(runtime.path).st_mode & 0o777 == 0o700
    assert len(str(runtime.for_sockets / "kernel-5")) < 107
    (runtime.for_sockets / "x").touch()
    assert (runtime.path / "x").exists()
    runtime.remove()
    assert not runtime.path.exists()


def archive(path, *members):
    with tarfile.open(path, "w:gz") as made:
        for name, kind in members:
            info = tarfile.TarInfo(name)
            if kind is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                made.addfile(info)
            else:
                info.size = len(kind)
                made.addfile(info, io.BytesIO(kind))
    return path


def test_archives_are_unpacked(tmp_path):
    extract(archive(tmp_path / "a.tar.gz", ("clf.pkl", b"model"), ("./sub/b.txt", b"b")), tmp_path / "out")
    assert (tmp_path / "out" / "clf.pkl").read_bytes() == b"model"
    assert (tmp_path / "out" / "sub" / "b.txt").read_bytes() == b"b"


def test_what_is_packed_is_unpacked_also_where_two_names_are_one_file(tmp_path):
    source = tmp_path / "from"
    source.mkdir()
    (source / "clf.pkl").write_bytes(b"model" * 1000)
    os.link(source / "clf.pkl", source / "twin.pkl")
    (source / "empty").touch()
    (source / "run.sh").write_bytes(b"#!/bin/sh")
    (source / "run.sh").chmod(0o750)
    files = [(each.name, each) for each in source.iterdir()]
    with packed(files, "v") as (name, first):
        content = first.read_bytes()
        extract(first, tmp_path / "to")
    os.utime(source / "clf.pkl", (1, 1))
    with packed(files[::-1], "v") as (again, second):
        assert (again, second.read_bytes()) == (name, content) == ("v.tar.gz", content)
    assert not first.exists() and not second.exists()
    for path, each in files:
        assert (tmp_path / "to" / path).read_bytes() == each.read_bytes()
        assert os.access(tmp_path / "to" / path, os.X_OK) == (path == "run.sh")


@pytest.mark.parametrize(
    "members", [[("../evil", b"x")], [("/etc/evil", b"x")], [("ok", b"x"), ("link", None)], [("a/../../evil", b"x")]]
)
def test_archives_never_reach_out_of_their_folder(tmp_path, members):
    with pytest.raises((InvalidArgument, DataLoss)):
        extract(archive(tmp_path / "a.tar.gz", *members), tmp_path / "box" / "out")
    assert not (tmp_path / "box" / "out").exists()
    assert not list(tmp_path.glob("**/evil"))


def test_a_broken_archive_is_said_to_be_broken(tmp_path):
    whole = archive(tmp_path / "a.tar.gz", ("clf.pkl", os.urandom(100_000)))
    (tmp_path / "b.tar.gz").write_bytes(whole.read_bytes()[:50_000])
    with pytest.raises(DataLoss):
        extract(tmp_path / "b.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
