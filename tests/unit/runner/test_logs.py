"""Logs by position: repeats, gaps, the largest size, reading while they grow."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from noronha.rpc.errors import InvalidArgument, OutOfRange
from noronha.runner.logs import MAX_APPEND, PIECE, Log, Logs, Part, tail


def whole(log: Log, offset: int = 0) -> bytes:
    found = b""
    while (read := log.read(offset)) is not None:
        found += read.data
        offset = read.next
    return found


def test_output_is_read_as_it_was_written(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 1 << 20)
    assert log.append(0, b"one\n") == 4
    assert log.append(4, b"two\n") == 8
    assert whole(log) == b"one\ntwo\n"
    assert whole(Log(tmp_path / "a", 1 << 20)) == b"one\ntwo\n"


def test_what_is_there_already_is_skipped(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 1 << 20)
    log.append(0, b"abcdef")
    assert log.append(0, b"abcdef") == 6
    assert log.append(3, b"defghi") == 9
    assert log.append(2, b"cd") == 9
    assert whole(log) == b"abcdefghi"


def test_a_gap_says_where_to_go_on(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 1 << 20)
    log.append(0, b"abc")
    with pytest.raises(OutOfRange) as caught:
        log.append(5, b"f")
    assert caught.value.reason == "LOG_GAP"
    assert caught.value.metadata["committed_position"] == "3"


@pytest.mark.parametrize(("position", "size"), [(-1, 1), (0, MAX_APPEND + 1)])
def test_senseless_appends_are_refused(tmp_path: Path, position: int, size: int) -> None:
    with pytest.raises(InvalidArgument):
        Log(tmp_path / "a", 1 << 20).append(position, b"x" * size)


def test_a_log_past_its_size_loses_its_middle_and_says_so(tmp_path: Path) -> None:
    limit = 1 << 20
    log = Log(tmp_path / "a", limit)
    line = b"%09d\n"
    written = 0
    for start in range(0, 1_000_000, 20_000):
        written = log.append(written, b"".join(line % number for number in range(start, start + 20_000)))
    assert written == 10_000_000
    size = sum(each.stat().st_size for each in (tmp_path / "a").iterdir())
    assert size <= limit
    text = whole(log)
    assert text.startswith(line % 0)
    assert text.endswith(line % 999_999)
    assert text.count(b"bytes are missing here") == 1
    head, _, rest = text.partition(b"\n[... ")
    missing = int(rest.split(b" ")[0])
    kept = rest.partition(b"...]\n")[2]
    assert len(head) + missing + len(kept) == written
    again = Log(tmp_path / "a", limit)
    assert again.committed == written
    assert whole(again) == text
    assert again.append(written, b"more\n") == written + 5


def test_a_reader_behind_what_was_dropped_is_told(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 8 * PIECE)
    block = b"x" * (PIECE - 1) + b"\n"
    position = log.append(0, block * 2)
    reader = position
    for _ in range(30):
        position = log.append(position, block)
    read, truncated = b"", False
    while (piece := log.read(reader)) is not None:
        read += piece.data
        truncated |= piece.truncated
        reader = piece.next
    assert truncated
    assert reader == log.committed
    assert b"missing here" in read


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_division_into_appends_is_the_same_log(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    chance = random.Random(seed)
    data = bytes(chance.randrange(256) for _ in range(600_000))
    log = Log(tmp_path / "a", 8 * PIECE)
    position = 0
    while position < len(data):
        start = max(0, position - chance.randrange(1000))
        position = log.append(start, data[start : start + chance.randrange(1, 60_000)])
        if chance.random() < 0.1:
            log = Log(tmp_path / "a", 8 * PIECE)
    text = whole(log)
    head, _, rest = text.partition(b"\n[... ")
    assert data.startswith(head)
    assert data.endswith(rest.partition(b"...]\n")[2])


def test_no_character_is_cut_in_two_while_it_arrives(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 1 << 20)
    smile = "🙂".encode()
    log.append(0, b"a" + smile[:2])
    read = log.read(0, whole=False)
    assert read is not None and read.data == b"a"
    assert log.read(read.next, whole=False) is None
    assert log.read(read.next) is not None, "at the end of a log, half a character is all there is"
    log.append(3, smile[2:])
    read = log.read(read.next, whole=False)
    assert read is not None and read.data == smile


def test_pieces_cut_no_character_in_two(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 4 << 20)
    text = "x" + "é🙂" * 40_000
    data = text.encode()
    for start in range(0, len(data), MAX_APPEND):
        log.append(start, data[start : start + MAX_APPEND])
    found, offset = "", 0
    while (read := log.read(offset, whole=False)) is not None:
        assert len(read.data) <= PIECE
        found += read.data.decode()
        offset = read.next
    assert found == text


@pytest.mark.parametrize(
    ("text", "lines", "expected"),
    [
        (b"a\nb\nc\n", 1, b"c\n"),
        (b"a\nb\nc\n", 2, b"b\nc\n"),
        (b"a\nb\nc", 2, b"b\nc"),
        (b"a\nb\nc\n", 9, b"a\nb\nc\n"),
        (b"", 3, b""),
        (b"\n\n\n", 2, b"\n\n"),
        (b"".join(b"%d\n" % number for number in range(50_000)), 2, b"49998\n49999\n"),
        (b"x" * 200_000 + b"\nlast\n", 2, b"x" * 200_000 + b"\nlast\n"),
    ],
)
def test_the_last_lines(tmp_path: Path, text: bytes, lines: int, expected: bytes) -> None:
    log = Log(tmp_path / "a", 4 << 20)
    for start in range(0, len(text), MAX_APPEND):
        log.append(start, text[start : start + MAX_APPEND])
    assert whole(log, log.last_lines(lines)) == expected


def test_the_last_lines_of_a_log_that_lost_its_middle(tmp_path: Path) -> None:
    log = Log(tmp_path / "a", 8 * PIECE)
    position = 0
    for number in range(200_000):
        position = log.append(position, b"%d\n" % number)
    assert whole(log, log.last_lines(3)) == b"199997\n199998\n199999\n"
    assert b"199999" in whole(log, log.last_lines(1_000_000))


async def test_following_ends_when_the_work_does(tmp_path: Path) -> None:
    log = Logs(tmp_path, 1 << 20).open("a")
    event, over = asyncio.Event(), []

    async def write() -> None:
        for number in range(5):
            log.append(log.committed, b"%d\n" % number)
            await asyncio.sleep(0.01)
        over.append(True)
        log.wake()

    writing = asyncio.create_task(write())
    found = b""
    pieces = tail("n", lambda: {"": Part(log, bool(over))}, follow=event, ended=lambda: bool(over))
    async for piece in pieces:
        found += piece.data
    await writing
    assert found == b"0\n1\n2\n3\n4\n"


async def test_a_position_goes_on_where_it_was(tmp_path: Path) -> None:
    log = Logs(tmp_path, 1 << 20).open("a")
    log.append(0, b"before\n")
    positions = [piece.position async for piece in tail("n", lambda: {"": Part(log, True)})]
    log.append(7, b"after\n")
    again = [piece.data async for piece in tail("n", lambda: {"": Part(log, True)}, position=positions[-1])]
    assert again == [b"after\n"]


@pytest.mark.parametrize("position", ["x", "bm90IG91cnM=", "é", "A" * 5000])
async def test_a_position_that_is_not_ours_is_refused(tmp_path: Path, position: str) -> None:
    log = Logs(tmp_path, 1 << 20).open("a")
    log.append(0, b"x")
    with pytest.raises(InvalidArgument) as caught:
        async for _ in tail("n", lambda: {"": Part(log, True)}, position=position):
            pass
    assert caught.value.reason == "BAD_POSITION"
    others = [piece.position async for piece in tail("m", lambda: {"": Part(log, True)})]
    with pytest.raises(InvalidArgument):
        async for _ in tail("n", lambda: {"": Part(log, True)}, position=others[0]):
            pass


async def test_several_logs_are_read_together(tmp_path: Path) -> None:
    logs = Logs(tmp_path, 1 << 20)
    a, b = logs.open("a"), logs.open("b")
    a.append(0, b"from a\n")
    b.append(0, b"from b\n")
    parts = {"r1": Part(a, True), "r2": Part(b, True)}
    pieces = [piece async for piece in tail("n", lambda: parts)]
    assert [(piece.part, piece.data) for piece in pieces] == [("r1", b"from a\n"), ("r2", b"from b\n")]
    a.append(7, b"more of a\n")
    more = [piece async for piece in tail("n", lambda: parts, position=pieces[-1].position)]
    assert [(piece.part, piece.data) for piece in more] == [("r1", b"more of a\n")]


def test_a_log_is_one_object_for_all_and_goes_away(tmp_path: Path) -> None:
    logs = Logs(tmp_path, 1 << 20)
    log = logs.open("a")
    assert logs.open("a") is log
    log.append(0, b"x")
    assert logs.ids() == ["a"]
    logs.remove("a")
    logs.remove("a")
    assert logs.ids() == []
