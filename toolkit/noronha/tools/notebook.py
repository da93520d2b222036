"""Executes one notebook: parameters in, outcome and executed notebook out.

    result = execute("train.ipynb", "executed.ipynb", params_json='{"gamma": 0.1}')
    result.succeeded or print(result.reason, result.message)

Importing this module is quick. What it takes to talk to a kernel is imported while the kernel boots.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noronha.tools import parameters
from noronha.tools.execution import Execution
from noronha.tools.failures import NotebookFailure
from noronha.tools.kernel import Kernel, RuntimeFolder

SUCCEEDED = "SUCCEEDED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"

MAX_NOTEBOOK_BYTES = 512 << 20
"""Largest notebook that is read."""

_PYTHON = re.compile(r"i?python *[0-9.]*", re.IGNORECASE)


@dataclass(frozen=True)
class Result:
    """How an execution ended."""

    outcome: str
    """``SUCCEEDED``, ``FAILED`` or ``CANCELLED``."""
    reason: str = ""
    """Why it did not succeed: one of `noronha.tools.failures.REASONS`; empty when it did."""
    message: str = ""
    """The same for people, in one line."""
    cell: int | None = None
    """Where it happened, counted from 1 as ``In [n]`` counts the cells of the author's own notebook; None when it was
    in no cell."""
    name: str = ""
    """Class of the exception that a cell raised."""
    value: str = ""
    """Text of that exception."""
    traceback: str = ""
    """Its traceback, without colours."""

    @property
    def succeeded(self) -> bool:
        """Whether the notebook ran to its end."""
        return self.outcome == SUCCEEDED


def execute(
    notebook: str | os.PathLike[str],
    executed: str | os.PathLike[str],
    *,
    params_json: str = "",
    interpreter: str = sys.executable,
    cwd: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] | None = None,
    on_output: Callable[[str], None] | None = None,
    on_progress: Callable[[float], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> Result:
    """Executes ``notebook``, keeps it with its outputs in ``executed``, returns how it ended; never raises for that.

    ``interpreter`` is the Python that runs the cells, ``cwd`` its folder (default: the notebook's), ``environment`` all
    of its variables (default: ours). ``on_output`` gets text as cells put it out, ``on_progress`` the share of cells
    done, ``on_warning`` what the user should know.
    """
    runtime = RuntimeFolder()
    kernel = Kernel(interpreter, runtime=runtime, cwd=cwd or Path(notebook).resolve().parent, environment=environment)
    run = NotebookRun(
        kernel,
        notebook,
        executed,
        params_json=params_json,
        on_output=on_output,
        on_progress=on_progress,
        on_warning=on_warning,
    )
    try:
        run.start()
        return run.run()
    finally:
        run.close()
        runtime.remove()


class NotebookRun:
    """One execution in steps, so that a caller can start the kernel early and report the outcome before it is gone.

    `start` launches the kernel and returns at once; `run` executes the cells; `cancel` may come from any thread at any
    time; `close` ends the kernel.
    """

    def __init__(
        self,
        kernel: Kernel,
        notebook: str | os.PathLike[str],
        executed: str | os.PathLike[str],
        *,
        params_json: str = "",
        on_output: Callable[[str], None] | None = None,
        on_progress: Callable[[float], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
    ):
        self.kernel = kernel
        self._notebook = Path(notebook)
        self._executed = Path(executed)
        self._params_json = params_json
        self._on_warning = on_warning
        self._execution = Execution(
            kernel, on_output=on_output, on_progress=on_progress, write=lambda document: write(document, self._executed)
        )
        self._early: NotebookFailure | None = None

    def start(self) -> None:
        """Starts the kernel, unless it is plain already that the notebook cannot run."""
        try:
            if not self._notebook.is_file():
                raise missing(self._notebook)
            parameters.parse(self._params_json)
            self.kernel.start()
        except NotebookFailure as failure:
            self._early = failure

    def cancel(self, grace: float = 5.0) -> None:
        """Interrupts the notebook; its kernel is killed when it has not stopped ``grace`` seconds later."""
        self._execution.cancel(grace)

    def run(self) -> Result:
        """Executes the cells and returns how it ended; the executed notebook has been kept by then."""
        document = None
        try:
            if self._early is not None:
                raise self._early
            document = read(self._notebook)
            params = parameters.parse(self._params_json)
            if params and not parameters.inject(document, params) and self._on_warning is not None:
                self._on_warning(
                    f"{self._notebook.name} has no cell tagged 'parameters': the parameters were put before its first "
                    "cell, so a later cell may overwrite them"
                )
            if self._execution.cancel_asked:
                raise NotebookFailure("CANCELLED", "The notebook was cancelled before it began.")
            self._run_cells(document)
            failure = self._execution.failure
        except NotebookFailure as early:
            failure = early
        except Exception as defect:
            logging.getLogger("noronha.notebook").exception("the execution of %s failed", self._notebook)
            failure = NotebookFailure(
                "TASK_ERROR", f"The notebook could not be executed: {type(defect).__name__}: {defect}"
            )
        if document is not None:
            if failure is not None:
                from noronha.tools.engine import note_failure

                note_failure(document, failure, self._execution.cell)
            write(document, self._executed)
        else:
            self.keep()
        return result_of(failure)

    def keep(self) -> None:
        """Keeps the notebook as it is, where it came to no execution."""
        if self._notebook.is_file() and not self._executed.exists():
            keep_unreadable(self._notebook, self._executed)

    def _run_cells(self, document: Any) -> None:
        from noronha.tools.engine import CellEngine, Record

        record = Record(document, self._execution)
        record.notebook_start()
        try:
            CellEngine.execute_managed_notebook(record, "python3", execution=self._execution)
        finally:
            record.notebook_complete()

    def close(self, timeout: float = 5.0) -> None:
        """Ends the kernel: waits up to ``timeout`` seconds for one that was asked to, then kills it."""
        self.kernel.close(timeout)


def result_of(failure: NotebookFailure | None) -> Result:
    """Returns the result that a failure, or none, stands for."""
    if failure is None:
        return Result(SUCCEEDED)
    outcome = CANCELLED if failure.reason == "CANCELLED" else FAILED
    return Result(
        outcome, failure.reason, failure.message, failure.cell, failure.name, failure.value, failure.traceback
    )


def missing(notebook: Path) -> NotebookFailure:
    """Returns the failure for a notebook that is not there."""
    return NotebookFailure(
        "NOTEBOOK_NOT_FOUND",
        f"There is no notebook {notebook.name!r} in the project's {notebook.parent.name or '/'} folder; "
        "name it relative to the project, and build the project again if it is new.",
    )


def read(notebook: Path) -> Any:
    """Reads a notebook of any version as version 4.

    Raises NotebookFailure ``NOTEBOOK_NOT_FOUND``, ``NOTEBOOK_INVALID`` or ``NOTEBOOK_LANGUAGE``.
    """
    import nbformat

    try:
        if notebook.stat().st_size > MAX_NOTEBOOK_BYTES:
            raise ValueError(f"it is larger than {MAX_NOTEBOOK_BYTES >> 20} MiB")
        content = json.loads(notebook.read_bytes().decode("utf-8-sig"))
        if not isinstance(content, dict) or not isinstance(content.get("nbformat"), int):
            raise ValueError("it has no 'nbformat'")
        if content["nbformat"] > 4:
            raise ValueError(f"its format {content['nbformat']} is newer than what is understood")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about ids that older notebooks lack
            document = nbformat.convert(nbformat.reader.reads(json.dumps(content)), 4)
        if not isinstance(document.get("cells"), list):
            raise ValueError("it has no cells")
        for number, cell in enumerate(document.cells):
            _check_cell(number, cell)
        if not isinstance(document.get("metadata"), dict):
            document.metadata = nbformat.NotebookNode()
    except FileNotFoundError:
        raise missing(notebook) from None
    except OSError as error:
        raise NotebookFailure("NOTEBOOK_INVALID", f"{notebook.name} cannot be read: {error.strerror}.") from None
    except RecursionError:
        raise NotebookFailure("NOTEBOOK_INVALID", f"{notebook.name} is nested too deeply.") from None
    except Exception as error:  # whatever a broken file makes nbformat stumble over
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise NotebookFailure("NOTEBOOK_INVALID", f"{notebook.name} is not a notebook: {words}.") from None
    if (language := language_of(document.metadata)) and not _PYTHON.fullmatch(language):
        raise NotebookFailure(
            "NOTEBOOK_LANGUAGE",
            f"{notebook.name} is written in {' '.join(language.split())[:40]}; Noronha runs notebooks in Python.",
        )
    document.metadata.setdefault("papermill", nbformat.NotebookNode())
    return document


def language_of(metadata: Mapping[str, Any]) -> str:
    """Returns the language that a notebook says it is written in, '' when it does not say.

    The kernel that its author chose decides, before what the last kernel said of itself. The kernel's name says
    nothing: it is whatever the author's machine calls it.
    """
    for part, key in (("kernelspec", "language"), ("language_info", "name")):
        told = metadata.get(part)
        language = told.get(key) if isinstance(told, Mapping) else None
        if isinstance(language, str) and language.strip():
            return language.strip()
    return ""


def _check_cell(number: int, cell: Any) -> None:
    if not isinstance(cell, dict) or cell.get("cell_type") not in ("code", "markdown", "raw"):
        raise ValueError(f"cell {number + 1} is none")
    if isinstance(cell.get("source"), list):
        cell["source"] = "".join(cell["source"])
    if not isinstance(cell.get("source"), str):
        raise ValueError(f"cell {number + 1} has no source")
    if not isinstance(cell.get("metadata"), dict):
        cell["metadata"] = type(cell)()


def write(document: Any, path: Path) -> None:
    """Writes a notebook whole or not at all."""
    import nbformat

    text = nbformat.versions[4].writes_json(document)
    replace(path, text.encode("utf-8", "surrogatepass" if not _encodable(text) else "strict"))


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def keep_unreadable(notebook: Path, executed: Path) -> None:
    """Keeps a notebook that could not be read as it is, so that there is always one to look at."""
    replace(executed, notebook.read_bytes() if notebook.stat().st_size <= MAX_NOTEBOOK_BYTES else b"")


def replace(path: Path, content: bytes) -> None:
    """Puts content at a path in one step, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


class NotebookRunner:
    """Runs a notebook of the current folder as 1.6 did: ``NotebookRunner(debug)(note_path, params) -> exit code``.

    The executed notebook is ``<name>.ipynb`` in the current folder, output goes to standard output.
    """

    def __init__(self, debug: bool = False):
        self.debug = debug

    def __call__(self, note_path: str, params: dict[str, Any] | str | None = None) -> int:
        path = Path(note_path if note_path.endswith(".ipynb") else f"{note_path}.ipynb")
        text = params if isinstance(params, str) else json.dumps(params or {})
        executed = Path.cwd() / path.name
        if executed.resolve() == path.resolve():
            executed = executed.with_name(f"{path.stem}.executed.ipynb")  # never over the notebook itself
        result = execute(
            path,
            executed,
            params_json=text,
            cwd=Path.cwd(),
            on_output=lambda text: print(text, end="", flush=True),
            on_warning=lambda text: print(text, file=sys.stderr),
        )
        if not result.succeeded:
            print(f"{result.reason}: {result.message}", file=sys.stderr)
            if self.debug and result.traceback:
                print(result.traceback, file=sys.stderr)
        return 0 if result.succeeded else 1


class NoronhaEngine:
    """Papermill's engine ``noronha_engine``: papermill finds it by its entry point and treats it as any engine.

    No subclass of papermill's own, because papermill loads its engines while it is itself being imported.
    """

    @classmethod
    def execute_notebook(cls, nb: Any, kernel_name: str, **settings: Any) -> Any:
        """Runs the cells of a notebook with the interpreter that runs papermill, and returns the notebook."""
        from noronha.tools.engine import CellEngine

        return CellEngine.execute_notebook(nb, kernel_name, **settings)

    @classmethod
    def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
        """Returns a name for the record only: the kernelspec of a notebook is not looked up."""
        return name or "python3"

    @classmethod
    def nb_language(cls, nb: Any, language: str | None = None) -> str:
        """Returns the language that every kernel of ours speaks."""
        return language or "python"
