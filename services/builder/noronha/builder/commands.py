"""Runs a command of a build: its output line by line while it runs, and nothing of it left when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

MARK = "NORONHA_BUILD_RUN"
"""Environment variable that every descendant of a build inherits; by it they are found, whatever group they are in."""

_LINE = 1 << 16


async def run(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], mark: str, log: Callable[[str], None]
) -> int:
    """Runs a command and returns its exit code; output of both kinds goes to ``log`` a line at a time.

    Cancelling the call ends the command and its descendants before it returns.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={**environment, MARK: mark}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        pending = b""
        while piece := await process.stdout.read(_LINE):
            *lines, pending = (pending + piece).split(b"\n")
            if len(pending) > _LINE:
                lines, pending = [*lines, pending], b""
            for line in lines:
                log(line.decode("utf-8", "replace").rstrip("\r"))
        if pending:
            log(pending.decode("utf-8", "replace"))
        return await process.wait()
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_end(process, mark)))
        raise


async def collect(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], mark: str
) -> tuple[int, bytes]:
    """Runs a command; returns its exit code and all it wrote, which should not be much."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env={**environment, MARK: mark}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        answer, _ = await process.communicate()
        return process.returncode or 0, answer
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_end(process, mark)))
        raise


async def _end(process: asyncio.subprocess.Process, mark: str) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(process.wait(), 1.0)
    await end_marked(mark)
    await process.wait()


async def end_marked(*marks: str) -> None:
    """Ends by force every process that carries one of the marks in its environment, until none is left."""
    wanted = {f"{MARK}={mark}".encode() for mark in marks}
    for _ in range(50):
        if not await asyncio.to_thread(_kill, wanted):
            return
        await asyncio.sleep(0.02)


def _kill(wanted: set[bytes]) -> int:
    found = 0
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
            if not wanted.isdisjoint(file.read().split(b"\0")):
                os.kill(int(entry), signal.SIGKILL)
                found += 1
    return found
