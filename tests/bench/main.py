"""Measures and prints: ``python tests/bench/main.py [ROW ...]``; keeps the table in docs/bench.md."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import command_rows
import measure
import metadata_rows
import serving_rows
import store_rows
import training_rows

MODULES = (command_rows, metadata_rows, store_rows, training_rows, serving_rows)
"""Importing them registers their rows."""


def main() -> int:
    """Runs the chosen rows, all by default; 1 when a measurement could not be taken, never for a missed target."""
    parser = argparse.ArgumentParser(description="Measures Noronha against named references.")
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(measure.ROWS)}; default all")
    parser.add_argument("--output", type=Path, default=measure.ROOT / "docs" / "bench.md", help="file of the table")
    given = parser.parse_args()
    failed = []
    for name in given.rows or list(measure.ROWS):
        began = time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            rows = measure.ROWS[name]()
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        measure.save(rows, given.output)
        print(measure.table(rows), f"\n({time.monotonic() - began:.0f} s)\n", flush=True)
    print(f"kept in {given.output}")
    if failed:
        print(f"could not be measured: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
