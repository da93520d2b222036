"""The command's start, and the mesh's."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from measure import NHA, Pair, Row, in_turn, private_mesh, resident_mb, row, run, seconds


def _reference(code: str, env: dict[str, str]) -> float:
    return seconds(lambda: run(sys.executable, "-c", code, env=env))


def _absolute(pair: Pair) -> str:
    return f"{statistics.median(pair.ours) * 1000:.0f} ms"


@row("help")
def help_text() -> list[Row]:
    """``nha --help`` over ``python -c 'import click'``."""
    with private_mesh(start=False) as bench:
        pair = in_turn(
            lambda: seconds(lambda: run(NHA, "--help", env=bench.env)),
            lambda: _reference("import click", bench.env),
            15,
        )
    return [
        Row("`nha --help` over `import click`", "at most 3x", f"{pair.ratio:.2f}x", pair.ratio <= 3, "150 ms", _absolute(pair), pair.spread())
    ]  # fmt: skip


@row("list")
def model_list() -> list[Row]:
    """``nha model list`` over ``python -c 'import click, grpc'``."""
    with private_mesh() as bench:
        bench.nha("model", "new", "--name", "bench")
        pair = in_turn(
            lambda: seconds(lambda: bench.nha("model", "list")), lambda: _reference("import click, grpc", bench.env), 15
        )
    return [
        Row("`nha model list` over `import click, grpc`", "at most 2.5x", f"{pair.ratio:.2f}x", pair.ratio <= 2.5, "250 ms", _absolute(pair), pair.spread())
    ]  # fmt: skip


@row("start")
def start() -> list[Row]:
    """The embedded mesh from nothing to answering, and its idle memory without Envoy."""
    times, memory = [], []
    for _ in range(5):
        with private_mesh(start=False) as bench:
            times.append(seconds(lambda bench=bench: bench.nha("model", "list")))
            time.sleep(3)  # what starts beside the first answer has settled; the figure is of a mesh at rest
            memory.append(resident_mb(bench.process_id()))
            children = subprocess.run(
                ["ps", "--ppid", str(bench.process_id()), "-o", "pid=,comm="], capture_output=True, text=True, check=False
            ).stdout.splitlines()
            memory[-1] += sum(resident_mb(int(line.split()[0])) for line in children if line.split()[1] != "envoy")
    return [
        Row("embedded mesh from nothing to answering", "printed", f"{statistics.median(times):.2f} s", None, "1.5 s", "", f"{min(times):.2f}-{max(times):.2f} s"),
        Row("its resident memory without Envoy, idle", "printed", f"{statistics.median(memory):.0f} MiB", None, "150 MB", "", f"{min(memory):.0f}-{max(memory):.0f} MiB"),
    ]  # fmt: skip
