"""Control groups, of version 1 and 2: what contains a task and holds it to its limits, where one can be made.

Groups are made below the group that the mesh itself is in, so that whatever bounds the mesh bounds its tasks too; for
limits, where that group cannot hand the controllers on, below the nearest group above that can.
"""

from __future__ import annotations

import os
import time

from noronha.runner.supervisor import processes

PERIOD = 100_000
"""Microseconds over which processor time is measured out."""

_PREFIX = "noronha-"
_ABANDONED = 60.0
"""Seconds after which a group without processes is nobody's."""


class Limits:
    """What a task can never exceed: bytes of memory, thousandths of a processor; 0 means no limit."""

    def __init__(self, memory_bytes: int = 0, cpu_milli: int = 0) -> None:
        self.memory_bytes = memory_bytes
        self.cpu_milli = cpu_milli

    @property
    def controllers(self) -> list[str]:
        """The controllers that hold a task to these limits."""
        return ["memory"] * bool(self.memory_bytes) + ["cpu"] * bool(self.cpu_milli)


class _Hierarchy:
    """One hierarchy: where it is mounted, the folder of the group that this process is in, what it controls."""

    def __init__(self, folder: str, own: str, controllers: frozenset[str], unified: bool) -> None:
        self.folder = folder
        self.own = own
        self.controllers = controllers
        self.unified = unified


def _hierarchies() -> list[_Hierarchy]:
    own: dict[str, str] = {}
    found = []
    try:
        with open("/proc/self/cgroup", encoding="utf-8") as file:
            for line in file:
                _, names, path = line.rstrip("\n").split(":", 2)
                for name in names.split(","):
                    own[name.removeprefix("name=")] = path
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                kind, _, options = after.split(" ", 2)
                if not kind.startswith("cgroup"):
                    continue
                _, _, _, root, folder, *_ = before.split(" ")
                unified = kind == "cgroup2"
                controllers = {""} if unified else {each.removeprefix("name=") for each in options.rstrip().split(",")}
                path = next((own[each] for each in controllers if each in own), "")
                if not path:
                    continue
                inside = path[len(root.rstrip("/")) :] if path.startswith(root) else path
                place = (folder + inside).rstrip("/")
                if os.path.isdir(place):
                    found.append(_Hierarchy(folder, place, frozenset(controllers), unified))
    except (OSError, ValueError):
        pass
    return found


class Group:
    """The groups of one task: one folder in each hierarchy that is used."""

    def __init__(self, folders: list[str], limits_applied: bool = False) -> None:
        self.folders = folders
        self.limits_applied = limits_applied

    def add(self, pid: int) -> bool:
        """Moves a process in; tells whether that was possible everywhere."""
        try:
            for folder in self.folders:
                _write(f"{folder}/cgroup.procs", str(pid))
        except OSError:
            return False
        return bool(self.folders)

    def pids(self) -> list[int]:
        """Returns the processes inside."""
        return sorted({pid for folder in self.folders for pid in _pids(folder)})

    def out_of_memory(self) -> bool:
        """Says whether a process inside was killed because the limit of memory was reached."""
        for folder in self.folders:
            for name in ("memory.events", "memory.oom_control"):
                try:
                    with open(f"{folder}/{name}", encoding="ascii") as file:
                        counts = dict(line.split() for line in file if line.count(" ") == 1)
                except OSError:
                    continue
                if int(counts.get("oom_kill", 0)) > 0:
                    return True
        return False

    def kill(self) -> None:
        """Kills everything inside, frozen first so that nothing can fork its way past it."""
        for folder in self.folders:
            if _try(f"{folder}/cgroup.kill", "1"):
                continue
            frozen = _try(f"{folder}/freezer.state", "FROZEN") or _try(f"{folder}/cgroup.freeze", "1")
            processes.kill(_pids(folder))
            if frozen:
                _ = _try(f"{folder}/freezer.state", "THAWED") or _try(f"{folder}/cgroup.freeze", "0")

    def remove(self, patience: float = 2.0) -> None:
        """Removes the groups once they are empty, within ``patience`` seconds; groups that the task made inside too."""
        end = time.monotonic() + patience
        for folder in self.folders:
            while os.path.isdir(folder):
                try:
                    for inner, _, _ in os.walk(folder, topdown=False):
                        os.rmdir(inner)
                except OSError:
                    if time.monotonic() > end:
                        break
                    time.sleep(0.002)
        self.folders = [folder for folder in self.folders if os.path.isdir(folder)]


def make(name: str, limits: Limits) -> Group:
    """Makes the groups of a task; without any where none can be made, and then nothing is limited either."""
    hierarchies = _hierarchies()
    folders: list[str] = []
    held = True
    for controller in limits.controllers:
        hierarchy = next(
            (each for each in hierarchies if controller in (_available(each) if each.unified else each.controllers)),
            None,
        )
        folder = _limited(hierarchy, name, controller, limits) if hierarchy is not None else None
        if folder is None:
            held = False
        elif folder not in folders:
            folders.append(folder)
    if not any(_contains(folder) for folder in folders):
        order = sorted(hierarchies, key=lambda each: (not each.unified, "freezer" not in each.controllers))
        for hierarchy in order:
            if not hierarchy.unified and not hierarchy.controllers & {"freezer", "pids", "systemd"}:
                continue
            if (folder := _below(hierarchy.own, name)) is not None:
                folders.append(folder)
                break
    for folder in folders:
        _sweep(os.path.dirname(folder))
    return Group(folders, held and bool(limits.controllers))


def _sweep(parent: str) -> None:
    """Removes groups of tasks whose supervisor was killed and that no mesh is left to clear away.

    Only old ones: one that was made a moment ago may wait for its first process. Those that hold any cannot be removed.
    """
    for name in os.listdir(parent):
        folder = f"{parent}/{name}"
        try:
            if name.startswith(_PREFIX) and time.time() - os.stat(folder).st_mtime > _ABANDONED:
                os.rmdir(folder)
        except OSError:
            continue


def _limited(hierarchy: _Hierarchy, name: str, controller: str, limits: Limits) -> str | None:
    """Makes a group with one limit set in a hierarchy; None where that cannot be done."""
    parent = hierarchy.own
    while True:
        folder = _below(parent, name)
        if folder is not None:
            if hierarchy.unified and not os.path.exists(f"{folder}/{controller}.max"):
                _try(f"{parent}/cgroup.subtree_control", f"+{controller}")
            if _set(folder, controller, limits, hierarchy.unified):
                return folder
            try:
                os.rmdir(folder)
            except OSError:
                pass
        if not hierarchy.unified or parent == hierarchy.folder:
            return None
        parent = os.path.dirname(parent)


def _set(folder: str, controller: str, limits: Limits, unified: bool) -> bool:
    if controller == "memory":
        amount = str(limits.memory_bytes)
        if unified:
            _try(f"{folder}/memory.swap.max", "0")
            return _try(f"{folder}/memory.max", amount)
        done = _try(f"{folder}/memory.limit_in_bytes", amount)
        _try(f"{folder}/memory.memsw.limit_in_bytes", amount)
        return done
    quota = max(limits.cpu_milli * PERIOD // 1000, 1000)
    if unified:
        return _try(f"{folder}/cpu.max", f"{quota} {PERIOD}")
    return _try(f"{folder}/cpu.cfs_period_us", str(PERIOD)) and _try(f"{folder}/cpu.cfs_quota_us", str(quota))


def _available(hierarchy: _Hierarchy) -> frozenset[str]:
    try:
        with open(f"{hierarchy.folder}/cgroup.controllers", encoding="ascii") as file:
            return frozenset(file.read().split())
    except OSError:
        return frozenset()


def _contains(folder: str) -> bool:
    return any(os.path.exists(f"{folder}/{name}") for name in ("cgroup.kill", "cgroup.freeze", "freezer.state"))


def _below(parent: str, name: str) -> str | None:
    folder = f"{parent}/{_PREFIX}{name}"
    try:
        os.mkdir(folder)
    except FileExistsError:
        pass
    except OSError:
        return None
    return folder if os.access(f"{folder}/cgroup.procs", os.W_OK) else None


def _pids(folder: str) -> list[int]:
    found: list[int] = []
    for inner, _, _ in os.walk(folder):
        try:
            with open(f"{inner}/cgroup.procs", encoding="ascii") as file:
                found += [int(line) for line in file]
        except OSError:
            continue
    return found


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _try(path: str, text: str) -> bool:
    try:
        _write(path, text)
    except OSError:
        return False
    return True
