"""Bytes into Store and out of it, over the shell's own tools on the same file."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from pathlib import Path

from measure import Bench, Row, in_turn, peak_mb, private_mesh, reset_peak, resident_mb, row, run, seconds

HERE = Path(__file__).parent
SIZE = 1 << 30


def _transfer(bench: Bench, *arguments: str) -> dict[str, float]:
    return json.loads(run(sys.executable, str(HERE / "transfer.py"), bench.socket, *arguments, env=bench.env))


def _shell(script: str, bench: Bench) -> float:
    return seconds(lambda: run("sh", "-c", script, env=bench.env, cwd=bench.home))


def _warm(bench: Bench) -> None:
    """Leaves the machine with memory that it has used before, and nothing to flush.

    A virtual machine's memory costs many times more when a page is touched for the first time. Store keeps every
    upload and would pay that each time, while the copy that is written over and over would not.
    """
    scratch = bench.home / "scratch.bin"
    block = bytes(1 << 20)
    with scratch.open("wb") as file:
        for _ in range(2 * SIZE >> 20):
            file.write(block)
    scratch.unlink()
    os.sync()


@row("blob")
def blob() -> list[Row]:
    """1 GiB up, up again, and down."""
    rows = []
    with private_mesh() as bench:
        big = bench.home / "big.bin"
        process = bench.process_id()
        server_memory, client_memory = [], []

        def fresh() -> None:
            """Gives the file content that no store has seen."""
            with big.open("r+b" if big.exists() else "wb") as file:
                if not file.seek(0, os.SEEK_END):
                    for _ in range(SIZE >> 20):
                        file.write(os.urandom(1 << 20))
                file.seek(0)
                file.write(os.urandom(32))
            _warm(bench)

        def upload() -> float:
            fresh()
            idle = resident_mb(process)
            reset_peak(process)
            found = _transfer(bench, "upload", str(big))
            server_memory.append(peak_mb(process) - idle)
            client_memory.append(found["memory"])
            return found["seconds"]

        def copy() -> float:
            fresh()
            return _shell("sha256sum big.bin > /dev/null && cp big.bin copy.bin && sync", bench)

        pair = in_turn(upload, copy, 3)
        ratio = 1 / pair.ratio
        rows.append(
            Row(
                "upload of 1 GiB over `sha256sum && cp && sync`", "at least 0.7x", f"{ratio:.2f}x", ratio >= 0.7, "",
                f"{SIZE / statistics.median(pair.ours) / 1e6:.0f} MB/s", pair.spread(),
            )
        )  # fmt: skip
        digest = _transfer(bench, "upload", str(big))
        found: list[dict[str, float]] = []

        def again() -> float:
            found.append(_transfer(bench, "upload", str(big)))
            return found[-1]["seconds"]

        pair = in_turn(again, lambda: _shell("sha256sum big.bin > /dev/null", bench), 5)
        sent = max(each["sent"] for each in found)
        rows.append(
            Row(
                "the same upload again, over `sha256sum`", "0 payload bytes, at most 1.3x", f"{sent:.0f} bytes, {pair.ratio:.2f}x",
                sent == 0 and pair.ratio <= 1.3, "", "", pair.spread(),
            )
        )  # fmt: skip

        def download() -> float:
            _warm(bench)
            idle = resident_mb(process)
            reset_peak(process)
            got = _transfer(bench, "download", str(digest["digest"]), str(SIZE), str(bench.home / "back"))
            server_memory.append(peak_mb(process) - idle)
            client_memory.append(got["memory"])
            shutil.rmtree(bench.home / "back")
            return got["seconds"]

        def copy_back() -> float:
            _warm(bench)
            return _shell("cp big.bin copy.bin && sync && sha256sum copy.bin > /dev/null", bench)

        pair = in_turn(download, copy_back, 3)
        ratio = 1 / pair.ratio
        rows.append(
            Row(
                "download of 1 GiB over `cp && sync && sha256sum`", "at least 0.7x", f"{ratio:.2f}x", ratio >= 0.7, "",
                f"{SIZE / statistics.median(pair.ours) / 1e6:.0f} MB/s", pair.spread(),
            )
        )  # fmt: skip
        most = max(max(server_memory), max(client_memory))
        rows.append(
            Row(
                "memory above idle during these, client and server", "under 64 MB", f"{max(client_memory):.0f} and {max(server_memory):.0f} MiB",
                most < 64, "", "", "",
            )
        )  # fmt: skip
    return rows


@row("files")
def files() -> list[Row]:
    """1,000 files of 1 KiB as one version."""
    with private_mesh() as bench:
        bench.nha("model", "new", "--name", "bench")
        serial = [0]

        def fresh() -> Path:
            serial[0] += 1
            folder = bench.home / f"small-{serial[0]}"
            folder.mkdir()
            for number in range(1000):
                (folder / f"f{number}").write_bytes(os.urandom(1024))
            os.sync()
            return folder

        def publish() -> float:
            folder = fresh()
            name = f"v{serial[0]}"
            return seconds(lambda: bench.nha("movers", "new", "--model", "bench", "--name", name, "--path", str(folder)))

        def copy() -> float:
            folder = fresh()
            return _shell(f"cp -r {folder} {folder}-copy && sync", bench)

        pair = in_turn(publish, copy, 5)
    return [
        Row(
            "1,000 files of 1 KiB as one version, over `cp -r` and `sync`", "printed", f"{pair.ratio:.1f}x", None, "2 s",
            f"{statistics.median(pair.ours):.2f} s", pair.spread(),
        )
    ]  # fmt: skip
