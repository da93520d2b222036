"""Processes as ``/proc`` shows them: which one is meant, who descends from whom, and how to end them all.

A process is meant by its id, the tick of the clock it started at, and the boot of the machine: an id that was given to
another process since never fools us.
"""

from __future__ import annotations

import os
import signal

MARK = "IN_NORONHA_TASK"
"""Variable in the environment of a task and all it starts: its folder. What nothing else contains is found by it."""


class Identity:
    """One process for certain: its id, the clock's ticks from the boot to its start, and which boot it was."""

    def __init__(self, pid: int, start: int, boot: str) -> None:
        self.pid = pid
        self.start = start
        self.boot = boot


class _Status:
    def __init__(self, state: str, parent: int, start: int) -> None:
        self.state = state
        self.parent = parent
        self.start = start


def boot() -> str:
    """Returns the id of this boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def _status(pid: int | str) -> _Status | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()
    return _Status(fields[0].decode(), int(fields[1]), int(fields[19]))


def identify(pid: int) -> Identity | None:
    """Returns the identity of a process, None when it is gone."""
    status = _status(pid)
    return None if status is None else Identity(pid, status.start, boot())


def is_alive(identity: Identity) -> bool:
    """Says whether that very process still runs; one that only waits to be reaped does not."""
    status = _status(identity.pid)
    return (
        status is not None and status.start == identity.start and status.state not in "ZX" and boot() == identity.boot
    )


def all_pids() -> list[int]:
    """Returns every process that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Returns the direct children of a process."""
    try:
        found = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += [int(each) for each in file.read().split()]
        return found
    except FileNotFoundError:  # gone, or a kernel without that file
        if not os.path.exists(f"/proc/{pid}"):
            return []
    except OSError:
        return []
    return [each for each in all_pids() if (status := _status(each)) is not None and status.parent == pid]


def descendants(pid: int) -> list[int]:
    """Returns the children of a process, their children and so on, the process itself left out."""
    found: list[int] = []
    layer = [pid]
    while layer:
        layer = [child for each in layer for child in children(each)]
        found += layer
    return found


def marked(folder: str) -> list[int]:
    """Returns the processes that carry the mark of a task; those of other users cannot be read and are left out."""
    wanted = f"{MARK}={folder}".encode()
    found = []
    for pid in all_pids():
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(pid)
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def kill(pids: list[int]) -> None:
    """Kills processes; those that are gone do not matter."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
