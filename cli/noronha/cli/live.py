"""Work shown as it happens: log, progress, Ctrl-C, how it ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from noronha.cli.failures import one_line
from noronha.cli.output import Progress
from noronha.cli.target import Target


@contextlib.contextmanager
def going_on(what: str, command: str) -> Iterator[None]:
    """Says how to see work again when the mesh is stopped on which it is followed."""
    from noronha.rpc.errors import Unavailable

    try:
        yield
    except Unavailable as error:
        if error.reason != "MESH_STOPPED":
            raise
        raise Unavailable(
            f"the mesh was stopped; {what} goes on without it, see '{command}'", reason=error.reason
        ) from None


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


def print_log(tail: Callable[[Any], Any], name: str, *, replica: str = "", lines: int = 0, label: bool = False) -> None:
    """Prints a log as it is now; ``label`` says which replica wrote each line."""
    from noronha.v1 import log_pb2

    with _Printing(label) as printing:
        for answer in tail(log_pb2.TailLogsRequest(name=name, replica=replica, tail_lines=lines)):
            printing.write(answer.data, answer.replica)


def print_following(following: Any, *, label: bool = False) -> None:
    """Prints a log as it grows, until the work has ended; ``label`` says which replica wrote each line."""
    from noronha.client.follow import Output

    with following, _Printing(label) as printing:
        for event in following:
            if isinstance(event, Output):
                printing.write(event.data, event.replica)


class _Printing:
    """Writes logs to standard output; with labels, a line only once it is whole, for replicas write side by side."""

    def __init__(self, label: bool) -> None:
        self._label = label
        self._begun: dict[str, bytes] = {}

    def __enter__(self) -> _Printing:
        return self

    def __exit__(self, *exception: object) -> None:
        for replica, rest in self._begun.items():
            self._print(replica, [rest + b"\n"] if rest else [])

    def write(self, data: bytes, replica: str) -> None:
        """Writes what a replica wrote."""
        if not self._label:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        *whole, self._begun[replica] = (self._begun.get(replica, b"") + data).split(b"\n")
        self._print(replica, [line + b"\n" for line in whole])

    def _print(self, replica: str, lines: list[bytes]) -> None:
        label = f"{replica} | ".encode()
        sys.stdout.buffer.write(b"".join(label + line for line in lines))
        sys.stdout.buffer.flush()


def warnings(target: Target, lines: Any) -> None:
    """Says what the user should know of a record."""
    from noronha.client.words import in_words

    for line in lines:
        target.voice.warn(one_line(in_words(line).text))
