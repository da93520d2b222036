"""What ``ds`` and ``movers`` share when they publish files."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noronha.cli.failures import Declined
from noronha.cli.target import Target

if TYPE_CHECKING:
    from noronha.client.publish import Files

WORDS = {"digest": "Reading", "send": "Uploading", "receive": "Downloading"}


def files(path: Path | None, *, compress: bool = False, skip_upload: bool = False, lightweight: bool = False) -> Files:
    """Returns what is to be published; without a path the current directory, with ``skip_upload`` nothing."""
    from noronha.client.publish import Files

    return Files(None if skip_upload else path or Path("."), compress=compress, lightweight=lightweight)


def overwrite(target: Target, what: str) -> Callable[[Any], bool]:
    """Returns the question whether an existing record is to be replaced; "no" raises Declined."""

    def asked(existing: Any) -> bool:
        target.voice.warn(f"{what} exists; overwriting publishes revision {existing.revision + 1}, earlier ones stay")
        if not target.ask("Would you like to overwrite it?"):
            raise Declined
        return True

    return asked


@contextlib.contextmanager
def progress(target: Target) -> Iterator[Callable[[str, int, int], None] | None]:
    """Yields what shows the progress of a transfer on a terminal; nothing without one."""
    if not sys.stderr.isatty() or target.voice.level > 20:
        yield None
        return
    last = 0.0
    shown = False

    def show(step: str, done: int, total: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if total < 1 << 20 or (now - last < 0.1 and done < total):
            return
        last, shown = now, True
        sys.stderr.write(f"\r\x1b[K{WORDS.get(step, step)} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")
        sys.stderr.flush()

    def wipe() -> None:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    target.voice.before = wipe
    try:
        yield show
    finally:
        target.voice.before = None
        wipe()
