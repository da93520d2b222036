"""Runs the cells of one notebook on a kernel of ours, as an engine of papermill.

Papermill keeps the notebook's papermill metadata; nbclient knows what each kind of output means. Ours is what lies
between: output that is live and bounded, a kernel whose death is noticed, cancellation, and a kernel over Unix
sockets with the interpreter of the project's environment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any

import zmq
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellExecutionError
from nbformat.v4 import new_output
from papermill.engines import Engine, NotebookExecutionManager

from noronha.tools import parameters
from noronha.tools.execution import Execution
from noronha.tools.failures import NotebookFailure
from noronha.tools.kernel import Kernel, RuntimeFolder
from noronha.tools.outputs import Kept, plain

CHECK_EVERY = 0.25
"""Seconds between looks at whether the kernel still runs."""

QUIET = 4.0
"""Seconds without a message after which a cell that answered counts as done, should its "idle" have been lost."""

DRAINED_AT_ONCE = 500
"""Messages read in one go before anything else gets its turn."""


class CellEngine(Engine):
    """What `noronha.tools.notebook.NoronhaEngine` is made of, once papermill is imported."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        execution: Execution | None = None,
        log_output: bool = False,
        **ignored: Any,
    ) -> None:
        """Runs the cells of ``nb_man.nb``.

        Without ``execution``, as from papermill's own command, the kernel is this very interpreter's and its output
        goes to standard output when ``log_output`` is set.
        """
        if execution is not None:
            run_cells(nb_man, execution)
            return
        runtime = RuntimeFolder()
        kernel = Kernel(sys.executable, runtime=runtime, cwd=os.getcwd())
        try:
            kernel.start()
            execution = Execution(
                kernel, on_output=(lambda text: print(text, end="", flush=True)) if log_output else None
            )
            run_cells(nb_man, execution)
            kernel.close()
            if execution.failure is not None and execution.failure.reason != "CELL_RAISED":
                raise execution.failure  # a cell that raised is in the notebook, where papermill looks
        finally:
            kernel.kill()
            runtime.remove()


def run_cells(nb_man: NotebookExecutionManager, execution: Execution) -> None:
    """Runs the cells, and leaves how it went in ``execution``. Never raises for what the notebook does."""
    asyncio.run(_Cells(nb_man, execution).run())


class _Cells(NotebookClient):
    """nbclient's knowledge of outputs, with our way of waiting for them."""

    def __init__(self, nb_man: NotebookExecutionManager, execution: Execution):
        logger = logging.getLogger("noronha.notebook")
        super().__init__(nb_man.nb, km=None, log=logger, record_timing=False)  # the record has the times
        self._record = nb_man
        self._execution = execution
        self._kept = Kept()
        self._places: dict[str, tuple[Any, int]] = {}  # message id of an execution -> its cell
        self._idle: set[str] = set()
        self._last_message = 0.0
        self._output: Any = None
        self._number = 0
        self.kc: Any = None

    async def run(self) -> None:
        execution = self._execution
        execution.attach(asyncio.get_running_loop())
        try:
            self.kc = await execution.kernel.connect(execution.cancelled)
            if self.kc is None:
                raise _cancelled()
            self._output = zmq.Socket.shadow(self.kc.iopub_channel.socket)
            self.reset_execution_trackers()
            await self._run_all()
            self.set_widgets_metadata()
        except NotebookFailure as failure:
            execution.failure = failure
        finally:
            self._drain()
            self._kept.settle()
            execution.kernel.ask_shutdown()
            execution.detach()
            execution.kernel.disconnect()
            self.kc = None

    async def _run_all(self) -> None:
        execution, cells = self._execution, self.nb.cells
        for index, cell in enumerate(cells):
            if execution.cancelled.is_set():
                raise _cancelled()
            self._record.cell_start(cell, index)
            try:
                finished = await self._run_cell(cell, index)
            except NotebookFailure as failure:
                if failure.reason == "CELL_RAISED":
                    self._record.cell_exception(cell, cell_index=index, exception=failure)
                raise
            finally:
                self._kept.settle()
                self._record.cell_complete(cell, cell_index=index)
            execution.report_progress((index + 1) / len(cells))
            if not finished:
                return

    async def _run_cell(self, cell: Any, index: int) -> bool:
        """Runs one cell; returns False when it asked for the notebook to end here, with success."""
        if cell.cell_type != "code" or not cell.source.strip() or self.skip_cells_with_tag in _tags(cell):
            return True
        execution = self._execution
        tolerated = "raises-exception" in _tags(cell)
        execution.cell = index
        cell.outputs = []
        cell.execution_count = None
        self.clear_before_next_output = False
        # A cell with parameters is none of the author's: it takes no number, so that a message, a traceback and the
        # author's own notebook mean the same cell.
        numbered = not parameters.is_injected(cell)
        self._number += numbered
        message = self.kc.execute(cell.source, store_history=numbered, stop_on_error=not tolerated)
        self._places[message] = (cell, index)
        reply = await self._settled(message)
        content = reply["content"]
        if not numbered:
            cell.execution_count = None
        elif content.get("execution_count") is not None:
            cell.execution_count = content["execution_count"]
        if content["status"] == "ok":
            asked = any(one.get("source") == "ask_exit" for one in content.get("payload") or [])
            return not asked  # exit(): likewise
        if execution.cancelled.is_set():
            raise _cancelled()
        name, value = content.get("ename", ""), content.get("evalue", "")
        if name == "SystemExit" and value in ("", "0", "None"):
            return False  # sys.exit(): the author says that all is done
        if tolerated:
            return True
        raise NotebookFailure(
            "CELL_RAISED",
            f"Cell {self._number} raised {_in_one_line(name or content['status'], plain(value))}.",
            name=name,
            value=plain(value),
            traceback=plain("\n".join(content.get("traceback", []))),
            cell=self._number,
        )

    async def _settled(self, message: str) -> dict[str, Any]:
        """Waits for the reply to an execution and for all its output."""
        execution, kernel = self._execution, self._execution.kernel
        shell = self.kc.shell_channel
        reply: dict[str, Any] | None = None
        cancelled = asyncio.ensure_future(execution.cancelled.wait())
        force_at: float | None = None
        waiting: dict[str, asyncio.Future[Any]] = {}
        self._last_message = time.monotonic()
        try:
            while reply is None or message not in self._idle:
                if "output" not in waiting:
                    waiting["output"] = asyncio.ensure_future(
                        self.kc.iopub_channel.socket.poll(int(CHECK_EVERY * 1000))
                    )
                if reply is None and "shell" not in waiting:
                    waiting["shell"] = asyncio.ensure_future(shell.socket.poll(int(CHECK_EVERY * 1000)))
                watched = {*waiting.values()} | ({cancelled} if force_at is None else set())
                await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED, timeout=CHECK_EVERY)
                waiting = {name: future for name, future in waiting.items() if not future.done()}
                self._drain()
                while reply is None and await shell.msg_ready():
                    answer = await shell.get_msg(timeout=0)
                    if answer["parent_header"].get("msg_id") == message:
                        reply = answer
                        self._last_message = time.monotonic()
                if cancelled.done() and force_at is None:
                    force_at = time.monotonic() + execution.grace
                    kernel.interrupt()
                if force_at is not None and time.monotonic() > force_at:
                    kernel.kill()
                if kernel.ended() is not None and reply is None:
                    self._drain()
                    if force_at is not None:
                        raise _cancelled()
                    raise self._died()
                if reply is not None and time.monotonic() - self._last_message > QUIET:
                    break
            return reply
        finally:
            cancelled.cancel()
            for future in waiting.values():
                future.cancel()

    def _died(self) -> NotebookFailure:
        kernel = self._execution.kernel
        words = kernel.last_words().strip()
        if words:
            self._execution.show(f"\n{words}\n")
        return NotebookFailure(
            "KERNEL_DIED", f"The kernel {kernel.describe_end()} while cell {self._number} ran.", cell=self._number
        )

    # -- output -------------------------------------------------------------------------------------------------
    def _drain(self) -> None:
        """Takes in the messages that wait on the output channel, at most a fixed number of them."""
        if self._output is None or self._output.closed:
            return
        for _ in range(DRAINED_AT_ONCE):
            try:
                frames = self._output.recv_multipart(zmq.NOBLOCK)
            except zmq.ZMQError:
                return
            self._last_message = time.monotonic()
            self._take(frames)

    def _take(self, frames: list[bytes]) -> None:
        session = self.kc.session
        _, parts = session.feed_identities(frames)
        # Printed text is by far the most frequent message: it is read without the ceremony the others get.
        if b'"stream"' in parts[1] and json.loads(parts[1]).get("msg_type") == "stream":
            parent = json.loads(parts[2]).get("msg_id") or ""
            # What a notebook prints need not be text: the kernel passes bytes that are none on as they are.
            content = json.loads(parts[4].decode("utf-8", "replace"))
            self._printed(parent, content.get("name", "stdout"), content.get("text", ""))
            return
        try:
            message = session.deserialize(parts)
        except ValueError:
            return  # not signed with our key
        self._published(message)

    def _printed(self, parent: str, name: str, text: str) -> None:
        self._execution.show(text)
        place = self._places.get(parent)
        if place is None:
            return
        cell, index = place
        self._clear_if_due(cell, index)
        if self.output_hook_stack[parent]:
            self.output_hook_stack[parent][-1].output(
                cell.outputs,
                {
                    "msg_type": "stream",
                    "header": {"msg_type": "stream"},
                    "parent_header": {"msg_id": parent},
                    "content": {"name": name, "text": text},
                    "metadata": {},
                },
                None,
                index,
            )
            return
        self._kept.stream(cell, index, name, text)

    def _published(self, message: dict[str, Any]) -> None:
        parent = message["parent_header"].get("msg_id")
        kind, content = message["msg_type"], message["content"]
        place = self._places.get(parent or "")
        if place is None:
            return
        cell, index = place
        if kind == "status":
            if content["execution_state"] == "idle":
                self._idle.add(parent)
            return
        if kind in ("execute_result", "display_data"):
            text = content.get("data", {}).get("text/plain", "")
            self._execution.show(_line(text))
        elif kind == "error":
            self._execution.show(_line(plain("\n".join(content.get("traceback", [])))))
        if kind in ("execute_result", "display_data", "error"):
            self._clear_if_due(cell, index)
            if not self._kept.admits(cell, index, _size(content)):
                return
        elif kind == "clear_output":
            self._kept.settle()
        try:
            self.process_message(message, cell, index)
        except (CellExecutionComplete, CellExecutionError):
            pass
        if kind == "clear_output" and not content.get("wait"):
            self._kept.cleared(index)

    def _clear_if_due(self, cell: Any, index: int) -> None:
        """Clears a cell that asked to be cleared before its next output, as animations do."""
        if self.clear_before_next_output:
            self.clear_before_next_output = False
            cell.outputs = []
            self.clear_display_id_mapping(index)
            self._kept.cleared(index)


class Record(NotebookExecutionManager):
    """Papermill's record of an execution, written whole and not at every step."""

    def __init__(self, notebook: Any, execution: Execution):
        super().__init__(notebook, output_path=None, progress_bar=False)
        self._execution = execution
        self._saved = -float("inf")
        self._spent = 0.0

    def save(self, **ignored: Any) -> None:
        """Writes the notebook, unless it was written a moment ago; `write` writes it for certain."""
        now = time.monotonic()
        if now - self._saved >= max(5.0, 20 * self._spent):
            self.write()

    def write(self) -> None:
        """Writes the notebook as it stands."""
        begun = time.monotonic()
        self._execution.write(self.nb)
        self._saved = time.monotonic()
        self._spent = self._saved - begun


def note_failure(notebook: Any, failure: NotebookFailure, index: int | None) -> None:
    """Leaves a failure that no cell output tells of in the cell at ``index``, or in the first code cell."""
    if failure.reason == "CELL_RAISED":
        return
    cells = [one for one in notebook.cells if one.cell_type == "code"]
    cell = notebook.cells[index] if index is not None and index < len(notebook.cells) else (cells[0] if cells else None)
    if cell is not None and cell.cell_type == "code":
        cell.outputs = [
            *cell.get("outputs", []),
            new_output("error", ename=failure.reason, evalue=failure.message, traceback=[failure.message]),
        ]


def _in_one_line(name: str, value: str) -> str:
    """Returns an exception as a line of text, without a full stop."""
    if name == "StdinNotImplementedError":
        return f"{name}: input() has nobody to ask here; make what it asks for a parameter"
    lines = value.strip().splitlines()
    return f"{name}: {lines[0][:500].rstrip('.')}" if lines else name


def _cancelled() -> NotebookFailure:
    return NotebookFailure("CANCELLED", "The notebook was cancelled.")


def _tags(cell: Any) -> list[str]:
    tags = cell.get("metadata", {}).get("tags", [])
    return tags if isinstance(tags, list) else []


def _line(text: Any) -> str:
    text = str("".join(text) if isinstance(text, list) else text)
    return text if not text or text.endswith("\n") else f"{text}\n"


def _size(content: dict[str, Any]) -> int:
    data = content.get("data")
    if isinstance(data, dict):
        return sum(len(value) if isinstance(value, str) else len(str(value)) for value in data.values())
    return sum(len(line) for line in content.get("traceback", [])) + 200
