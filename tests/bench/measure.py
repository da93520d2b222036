"""How figures are taken: a thing and its reference in turn, in one run, medians compared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
NHA = str(BIN / "nha")


@dataclass
class Row:
    """One line of the table: what was measured, against what, and what was to be reached."""

    name: str
    target: str
    measured: str
    reached: bool | None
    """None where the target is only to be printed."""
    goal: str = ""
    absolute: str = ""
    spread: str = ""


ROWS: dict[str, Callable[[], list[Row]]] = {}


def row(name: str) -> Callable[[Callable[[], list[Row]]], Callable[[], list[Row]]]:
    """Registers a measurement under a name that the command line can pick."""

    def register(function: Callable[[], list[Row]]) -> Callable[[], list[Row]]:
        ROWS[name] = function
        return function

    return register


def seconds(work: Callable[[], object]) -> float:
    """Returns how long ``work()`` takes, in seconds of wall time."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(first: Callable[[], float], second: Callable[[], float], pairs: int, warm: int = 1) -> Pair:
    """Measures two things alternately, ``pairs`` times each after ``warm`` rounds that do not count."""
    for _ in range(warm):
        first(), second()
    ours, theirs = [], []
    for _ in range(pairs):
        ours.append(first())
        theirs.append(second())
    return Pair(ours, theirs)


@dataclass
class Pair:
    """Figures of a thing and of its reference, taken in turn."""

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """Median of ours over median of theirs."""
        return statistics.median(self.ours) / statistics.median(self.theirs)

    @property
    def difference(self) -> float:
        """Median of ours less median of theirs."""
        return statistics.median(self.ours) - statistics.median(self.theirs)

    def spread(self, unit: str = "s", scale: float = 1.0, digits: int = 3) -> str:
        """Returns both as ``median (least-most)``."""
        return " vs ".join(
            f"{statistics.median(each) * scale:.{digits}f} ({min(each) * scale:.{digits}f}-{max(each) * scale:.{digits}f}) {unit}"
            for each in (self.ours, self.theirs)
        )


def run(*command: str, env: dict[str, str] | None = None, cwd: Path | str | None = None, timeout: float = 600) -> str:
    """Runs a command to its end and returns its output; raises with the output when it fails."""
    answer = subprocess.run(
        command, env=env, cwd=cwd, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
    )
    if answer.returncode != 0:
        raise RuntimeError(
            f"{' '.join(command)} ended with {answer.returncode}: {answer.stdout[-2000:]}{answer.stderr[-2000:]}"
        )
    return answer.stdout


def free_port() -> int:
    """Returns a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Bench:
    """A private home with a mesh of its own."""

    home: Path
    env: dict[str, str]
    router_port: int
    folders: list[Path] = field(default_factory=list)

    @property
    def socket(self) -> str:
        """Address of the mesh."""
        return f"unix:{self.home}/mesh/mesh.sock"

    def nha(self, *arguments: str, cwd: Path | str | None = None, timeout: float = 600) -> str:
        """Runs ``nha`` against this mesh without questions and returns what it printed."""
        return run(NHA, "-s", *arguments, env=self.env, cwd=cwd or self.home, timeout=timeout)

    def process_id(self) -> int:
        """Returns the process id of the mesh."""
        return int((self.home / "mesh" / "metadata" / "lock").read_text())


@contextlib.contextmanager
def private_mesh(start: bool = True, **settings: str) -> Iterator[Bench]:
    """Makes a home of its own with a free router port, starts the mesh, and leaves nothing behind."""
    home = Path(tempfile.mkdtemp(prefix="nha-bench-"))
    port = free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    # Python keeps what it compiled, as it does for users: the references' modules were compiled when they were installed.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env |= {
        "HOME": str(home), "NHA_MESH__STATE_DIR": str(home / "mesh"), "NHA_ROUTER__PORT": str(port),
        "NHA_MESH__IDLE_STOP": "0", "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}",
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
        "UV_LINK_MODE": "copy",
    }  # fmt: skip
    env.update(settings)
    bench = Bench(home, env, port)
    try:
        if start:
            bench.nha("mesh", "up")
        yield bench
    finally:
        subprocess.run(
            [NHA, "-s", "mesh", "down", "--stop-tasks"],
            env=env,
            cwd=home,
            capture_output=True,
            timeout=120,
            check=False,
        )
        shutil.rmtree(home, ignore_errors=True)


def resident_mb(process: int) -> float:
    """Returns the resident memory of a process in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def peak_mb(process: int) -> float:
    """Returns the highest resident memory of a process so far, in MiB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def reset_peak(process: int) -> None:
    """Begins the highest resident memory of a process anew."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process}/clear_refs").write_text("5")


def table(rows: list[Row]) -> str:
    """Returns the rows as a Markdown table."""
    lines = [
        "| what | target | measured | reached | goal | absolute | medians (range), ours vs reference |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in rows:
        reached = "printed" if each.reached is None else ("yes" if each.reached else "**no**")
        lines.append(
            f"| {each.name} | {each.target} | {each.measured} | {reached} | {each.goal} | {each.absolute} | {each.spread} |"
        )
    return "\n".join(lines)


def save(rows: list[Row], file: Path) -> None:
    """Keeps rows, replacing those of the same name and leaving the others, and writes the table."""
    store = file.with_suffix(".json")
    kept: dict[str, dict[str, object]] = {}
    if store.exists():
        kept = {each["name"]: each for each in json.loads(store.read_text())}
    for each in rows:
        kept[each.name] = each.__dict__
    store.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
    everything = [Row(**each) for each in kept.values()]  # type: ignore[arg-type]
    file.write_text(
        "# Figures\n\n"
        "Written by `make bench`: each row is a ratio to a named reference that was measured alternately with it, in one run on\n"
        "one machine; absolute figures stand beside as goals. They are noisy: compare within a row, not between machines.\n"
        f"Last run: {time.strftime('%Y-%m-%d')}, {os.cpu_count()} processors, Python {sys.version.split()[0]}.\n\n"
        + table(everything)
        + "\n"
    )
