"""``-b``: the command goes on without the terminal, and says what it has to say in the log file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from noronha.cli.target import Target


def leave(target: Target, arguments: list[str]) -> int:
    """Starts the same command in a session of its own with its output in the log file, and returns at once.

    In that process itself ``-b`` does nothing more, and the command simply goes on.
    """
    logger = target.settings.logger
    folder = Path(logger.directory).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / logger.file_name
    command = [sys.executable, "-m", "noronha.cli.main", *without_background(arguments)]
    with open(file, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    click.echo(f"Running in background, process {process.pid}; see {file}")
    return 0


def without_background(arguments: list[str]) -> list[str]:
    """Returns the arguments without ``-b`` among the global flags, also where it is joined to others as in ``-bs``."""
    kept: list[str] = []
    rest = list(arguments)
    while rest:
        each = rest.pop(0)
        if not each.startswith("-") or each == "--":
            return [*kept, each, *rest]
        if each in ("--background", "-b"):
            continue
        if each in ("-l", "--log-level", "-o", "--output") and rest:
            kept += [each, rest.pop(0)]
            continue
        if not each.startswith("--") and "b" in each:
            flags, letters = "", each[1:]
            while letters and letters[0] not in "lo":
                flags += letters[0].replace("b", "")
                letters = letters[1:]
            each = f"-{flags}{letters}"
            if each == "-":
                continue
            if letters in ("l", "o") and rest:
                kept += [each, rest.pop(0)]
                continue
        kept.append(each)
    return kept
