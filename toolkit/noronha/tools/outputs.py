"""What a notebook's cells put out: shown while they run, kept in the executed notebook, both within bounds.

Neither a million prints nor an endless one may use up memory, time or disk. Live output is gathered for a moment
and handed on in one piece; what the executed notebook keeps of a cell has a beginning, an end and a note between.
"""

from __future__ import annotations

import collections
import re
import threading
import time
from collections.abc import Callable
from typing import Any

KEPT_TEXT = 1 << 20
"""Characters of printed text that the executed notebook keeps of one cell; the first and the last half."""

KEPT_RICH = 64 << 20
"""Characters of figures, tables and other results that the executed notebook keeps altogether."""

KEPT_OUTPUTS = 1000
"""Separate outputs that the executed notebook keeps of one cell."""

_KEPT_TAIL = KEPT_TEXT - KEPT_TEXT // 2
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def plain(text: str) -> str:
    """Returns the text without terminal colours."""
    return _ESCAPES.sub("", text)


class Live:
    """Gathers text for a moment and hands it on, in order, from a thread of its own.

    ``deliver`` gets pieces of at most ``piece`` characters. Text may be added by any thread, ever so fast:
    past ``burst`` characters ahead of ``rate`` characters a second it is dropped, and a line says how much.
    """

    def __init__(
        self,
        deliver: Callable[[str], None],
        *,
        wait: float = 0.1,
        piece: int = 64 * 1024,
        rate: float = 2 << 20,
        burst: float = 64 << 20,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._deliver = deliver
        self._wait = wait
        self._piece = piece
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._allowance = burst
        self._refilled = clock()
        self._dropped = 0
        self._parts: list[str] = []
        self._size = 0
        self._busy = False
        self._hurried = 0
        self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="live-output", daemon=True)
        self._thread.start()

    def add(self, text: str) -> None:
        """Adds text; returns at once."""
        if not text:
            return
        with self._condition:
            now = self._clock()
            self._allowance = min(self._burst, self._allowance + (now - self._refilled) * self._rate)
            self._refilled = now
            if len(text) > self._allowance:
                self._dropped += len(text)
                return
            if self._dropped:
                left_out = f"{self._dropped:,} characters of output left out: they came faster than they can be kept"
                text = f"\n[… {left_out} …]\n{text}"
                self._dropped = 0
            self._allowance -= len(text)
            self._parts.append(text)
            self._size += len(text)
            self._condition.notify_all()

    def flush(self, timeout: float = 10.0) -> bool:
        """Waits until all text added so far was handed on; returns whether it was, within ``timeout`` seconds."""
        with self._condition:
            self._hurried += 1
            self._condition.notify_all()
            try:
                return self._condition.wait_for(lambda: not self._parts and not self._busy, timeout)
            finally:
                self._hurried -= 1

    def close(self, timeout: float = 10.0) -> None:
        """Hands on what is left and ends the thread."""
        with self._condition:
            if self._dropped:
                self._parts.append(f"\n[… {self._dropped:,} characters of output left out …]\n")
                self._dropped = 0
            self._closed = True
            self._condition.notify_all()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._parts or self._closed)
                if self._closed and not self._parts:
                    return
                text, self._parts, self._size = "".join(self._parts), [], 0
                self._busy = True
            try:
                for start in range(0, len(text), self._piece):
                    self._deliver(text[start : start + self._piece])
            finally:
                with self._condition:
                    self._busy = False
                    self._condition.notify_all()
                    # The first words after a quiet moment went at once; those that follow closely are gathered.
                    self._condition.wait_for(
                        lambda: self._closed or self._hurried or self._size >= self._piece, self._wait
                    )


class Kept:
    """Adds outputs to the cells of an executed notebook, within bounds for each cell and for the whole."""

    def __init__(self) -> None:
        self._rich_left = KEPT_RICH
        self._cells: dict[int, _CellText] = {}

    def stream(self, cell: Any, index: int, name: str, text: str) -> None:
        """Adds printed text to a cell; ``name`` is ``stdout`` or ``stderr``."""
        self._of(cell, index).add(name, text)

    def admits(self, cell: Any, index: int, size: int) -> bool:
        """Tells whether one more rich output of this size may be kept, and counts it; leaves a note when not."""
        state = self._of(cell, index)
        state.settle()
        if len(cell.outputs) >= KEPT_OUTPUTS or size > self._rich_left:
            state.note_rich()
            return False
        self._rich_left -= size
        return True

    def cleared(self, index: int) -> None:
        """Forgets what a cell had, after its outputs were cleared."""
        self._cells.pop(index, None)

    def settle(self) -> None:
        """Writes gathered text into the cells; to be called before the notebook is saved."""
        for state in self._cells.values():
            state.settle()

    def _of(self, cell: Any, index: int) -> _CellText:
        state = self._cells.get(index)
        if state is None or state.cell is not cell:
            state = self._cells[index] = _CellText(cell)
        return state


class _CellText:
    """The printed text of one cell: the beginning grows in its outputs; past half of the bound only the end is kept."""

    def __init__(self, cell: Any):
        self.cell = cell
        self._head_left = KEPT_TEXT // 2
        self._open: Any = None  # the stream output that grows
        self._parts: list[str] = []
        self._tail: collections.deque[tuple[str, str]] = collections.deque()
        self._tail_size = 0
        self._left_out = 0
        self._tail_outputs: list[Any] = []  # what settle() wrote for the tail, to be written anew
        self._rich_dropped = 0

    def add(self, name: str, text: str) -> None:
        if self._head_left > 0:
            head, text = text[: self._head_left], text[self._head_left :]
            self._head_left -= len(head)
            self._grow(name, head)
        if text:
            if self._tail and self._tail[-1][0] == name and len(self._tail[-1][1]) < 256:
                self._tail[-1] = (name, self._tail[-1][1] + text)
            else:
                self._tail.append((name, text))
            self._tail_size += len(text)
            while self._tail_size > _KEPT_TAIL:
                first_name, first = self._tail[0]
                excess = self._tail_size - _KEPT_TAIL
                if len(first) <= excess:
                    self._tail.popleft()
                    cut = len(first)
                else:
                    self._tail[0] = (first_name, first[excess:])
                    cut = excess
                self._tail_size -= cut
                self._left_out += cut

    def _grow(self, name: str, text: str) -> None:
        from nbformat.v4 import new_output

        outputs = self.cell.outputs
        if self._open is None or self._open.name != name or not outputs or outputs[-1] is not self._open:
            self._write_open()
            if len(outputs) >= KEPT_OUTPUTS:
                self._head_left = 0
                self._tail.append((name, text))
                self._tail_size += len(text)
                return
            self._open = new_output("stream", name=name, text="")
            outputs.append(self._open)
        self._parts.append(text)

    def _write_open(self) -> None:
        if self._open is not None and self._parts:
            self._open.text += "".join(self._parts)
            self._parts = []

    def note_rich(self) -> None:
        self._rich_dropped += 1

    def settle(self) -> None:
        from nbformat.v4 import new_output

        self._write_open()
        outputs = self.cell.outputs
        if self._tail or self._rich_dropped:
            kept = {id(one) for one in self._tail_outputs}
            if kept:
                outputs[:] = [one for one in outputs if id(one) not in kept]
            self._tail_outputs = []
            if self._left_out:
                self._tail_outputs.append(_note(f"{self._left_out:,} characters of output left out here"))
            self._tail_outputs += [new_output("stream", name=name, text=text) for name, text in self._tail]
            if self._rich_dropped:
                self._tail_outputs.append(_note(f"{self._rich_dropped:,} further results left out"))
            outputs.extend(self._tail_outputs)
            if self._open is not None and self._open is not outputs[-1]:
                self._open = None


def _note(text: str) -> Any:
    from nbformat.v4 import new_output

    return new_output("stream", name="stderr", text=f"\n[… {text} …]\n")
