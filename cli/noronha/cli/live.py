"""Work shown as it happens: log, progress, Ctrl-C, how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from noronha.cli.failures import one_line
from noronha.cli.output import Progress
from noronha.cli.target import Target


def watch(
    target: Target,
    following: Any,
    record: Any,
    describe: Callable[[Any], tuple[str, float | None]],
    cancel: Callable[[], Any],
    what: str,
) -> Any:
    """Shows a piece of work until it has ended; returns its record as it was last seen.

    The first Ctrl-C asks the mesh to cancel the work and goes on showing it; the second leaves it alone. ``describe``
    gives the line of state for a record.
    """
    from noronha.client.follow import Change

    progress = Progress(target.voice, to_stderr=target.output != "text")
    asked = False
    with following:
        while True:
            try:
                for event in following:
                    if isinstance(event, Change):
                        record = event.record
                        progress.state(*describe(record))
                    else:
                        progress.write(event.data)
                break
            except KeyboardInterrupt:
                progress.done(ended=False)
                if asked:
                    raise
                asked = True
                target.voice.warn(f"cancelling {what}; press Ctrl-C again to leave it to the mesh")
                cancel()
    progress.done()
    return record


def print_log(tail: Callable[[Any], Any], name: str, *, replica: str = "", lines: int = 0) -> None:
    """Prints a log as it is now."""
    from noronha.v1 import log_pb2

    for answer in tail(log_pb2.TailLogsRequest(name=name, replica=replica, tail_lines=lines)):
        _write(answer.data)


def print_following(following: Any) -> None:
    """Prints a log as it grows, until the work has ended."""
    from noronha.client.follow import Output

    with following:
        for event in following:
            if isinstance(event, Output):
                _write(event.data)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def warnings(target: Target, lines: Any) -> None:
    """Says what the user should know of a record."""
    for line in lines:
        target.voice.warn(one_line(line))
