"""One execution of a notebook as its driver sees it: what it is told, and what it may ask for meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from noronha.tools.failures import NotebookFailure
    from noronha.tools.kernel import Kernel


class Execution:
    """The kernel of one execution, its callbacks, and the wish to end it early.

    ``on_output`` gets text as the cells put it out; ``on_progress`` the share of cells that are done, 0 to 1; ``write``
    gets the notebook each time it is to be kept. ``cancel`` may be called by any thread, also before anything runs.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        on_output: Callable[[str], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
        write: Callable[[Any], None] | None = None,
    ):
        self.kernel = kernel
        self.failure: NotebookFailure | None = None
        self.cell: int | None = None
        """Place among the executed notebook's cells, from 0, of the one that runs or ran last."""
        self.grace = 5.0
        self._on_output = on_output
        self._on_progress = on_progress
        self._write = write
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancelled: asyncio.Event | None = None
        self._cancel_asked = False

    def cancel(self, grace: float = 5.0) -> None:
        """Asks for the end: the running cell is interrupted and, ``grace`` seconds later, its kernel killed."""
        with self._lock:
            self._cancel_asked = True
            self.grace = grace
            if self._loop is not None and self._cancelled is not None:
                self._loop.call_soon_threadsafe(self._cancelled.set)

    @property
    def cancel_asked(self) -> bool:
        """Whether somebody asked for the end."""
        return self._cancel_asked

    # -- for the engine -----------------------------------------------------------------------------------------
    @property
    def cancelled(self) -> asyncio.Event:
        """Set once the end was asked for; between `attach` and `detach`."""
        assert self._cancelled is not None, "nothing runs"
        return self._cancelled

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Says which loop runs the cells."""
        with self._lock:
            self._loop, self._cancelled = loop, asyncio.Event()
            if self._cancel_asked:
                self._cancelled.set()

    def detach(self) -> None:
        """Says that no loop runs the cells any more."""
        with self._lock:
            self._loop = self._cancelled = None

    def show(self, text: str) -> None:
        """Hands output on."""
        if self._on_output is not None and text:
            self._on_output(text)

    def report_progress(self, share: float) -> None:
        """Hands progress on."""
        if self._on_progress is not None:
            self._on_progress(share)

    def write(self, notebook: Any) -> None:
        """Has the notebook kept as it stands."""
        if self._write is not None:
            self._write(notebook)
