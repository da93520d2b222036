"""Logs of builds are read by position, while they grow and afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from noronha.builder.logs import MAX_BYTES, PIECE, Logs
from noronha.rpc.errors import InvalidArgument


async def read(logs: Logs, name: str, **options: object) -> list[tuple[bytes, str]]:
    return [tuple(piece) async for piece in logs.tail(name, **options)]  # type: ignore[arg-type]


async def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.write("x", "one")
    ((data, position),) = await read(logs, "x")
    assert data == b"one\n"
    logs.write("x", "two")
    ((data, _),) = await read(logs, "x", position=position)
    assert data == b"two\n"


async def test_pieces_are_bounded_and_end_with_lines(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    for number in range(20_000):
        logs.write("x", f"line {number} \u00e9")
    pieces = await read(logs, "x")
    assert len(pieces) > 1
    assert all(len(data) <= PIECE and data.endswith(b"\n") for data, _ in pieces)
    assert b"".join(data for data, _ in pieces).decode().count("\n") == 20_000


@pytest.mark.parametrize(("lines", "expected"), [(1, b"c\n"), (2, b"b\nc\n"), (9, b"a\nb\nc\n")])
async def test_the_last_lines(tmp_path: Path, lines: int, expected: bytes) -> None:
    logs = Logs(tmp_path)
    for line in "abc":
        logs.write("x", line)
    assert b"".join(data for data, _ in await read(logs, "x", lines=lines)) == expected


@pytest.mark.parametrize("position", ["nonsense", "!!", "MCAw", "-1"])
async def test_a_strange_position_is_refused(tmp_path: Path, position: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await read(Logs(tmp_path), "x", position=position)
    assert caught.value.reason == "BAD_POSITION"


async def test_a_position_of_another_log_is_refused(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    logs.write("x", "one")
    ((_, position),) = await read(logs, "x")
    with pytest.raises(InvalidArgument):
        await read(logs, "y", position=position)


async def test_following_sees_lines_as_they_come_and_ends_with_the_work(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    over = False

    async def ended() -> bool:
        return over

    seen: list[bytes] = []

    async def follow() -> None:
        async for data, _ in logs.tail("x", ended=ended):
            seen.append(data)

    task = asyncio.create_task(follow())
    for word in ("one", "two"):
        await asyncio.to_thread(logs.write, "x", word)
        deadline = asyncio.get_running_loop().time() + 10
        while f"{word}\n".encode() not in b"".join(seen):
            assert asyncio.get_running_loop().time() < deadline, seen
            await asyncio.sleep(0.01)
    over = True
    logs.wake("x")
    await asyncio.wait_for(task, 5)
    assert b"".join(seen) == b"one\ntwo\n"


async def test_a_log_stops_growing_at_its_limit(tmp_path: Path) -> None:
    logs = Logs(tmp_path)
    for _ in range(MAX_BYTES // 1_000_000 + 2):
        logs.write("x", "x" * 1_000_000)
    (file,) = tmp_path.iterdir()
    assert MAX_BYTES < file.stat().st_size < MAX_BYTES + 1000
    pieces = await read(logs, "x")
    assert b"the rest is dropped" in b"".join(data for data, _ in pieces)
