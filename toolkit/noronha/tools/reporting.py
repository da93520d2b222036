"""Tells the mesh how a task fares: heartbeats, progress, warnings, and at last how it ended."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noronha.rpc.errors import (
    Aborted,
    Cancelled,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unknown,
    to_status,
)

if TYPE_CHECKING:
    from noronha.client.connection import Mesh
    from noronha.tools.notebook import Result

logger = logging.getLogger("noronha.task")

TRACEBACK_KEPT = 8000
"""Characters of a traceback that go into the record; all of it is in the log and in the executed notebook."""

FINAL = (FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated)
"""Refusals that no repeat changes."""

_KINDS: dict[str, type[NoronhaError]] = {
    "NOTEBOOK_NOT_FOUND": NotFound,
    "NOTEBOOK_INVALID": InvalidArgument,
    "NOTEBOOK_LANGUAGE": InvalidArgument,
    "PARAMETERS_INVALID": InvalidArgument,
    "CANCELLED": Cancelled,
    "KERNEL_DIED": Aborted,
    "CELL_RAISED": Unknown,
}
"""What kind of error each reason is; the others are preconditions that did not hold."""


class Reporter:
    """Sends heartbeats at their interval and what else changed at once, from one thread; waits while the mesh is away.

    ``on_ended`` is called when the mesh says that the task has ended already.
    """

    def __init__(self, mesh: Mesh, *, interval: float, on_ended: Callable[[], None] = lambda: None):
        self._mesh = mesh
        self._interval = max(0.1, interval)
        self._on_ended = on_ended
        self._progress = 0.0
        self._warnings: list[str] = []
        self._endpoint: tuple[bool, str, int] = (False, "", 0)
        self._told: dict[str, Any] = {"progress": 0.0, "endpoint": self._endpoint}
        self._closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def progress(self, share: float) -> None:
        """Tells how far the task is, 0 to 1; values that go back are left out."""
        with self._condition:
            if math.isfinite(share) and share > self._progress:
                self._progress = min(1.0, share)
                self._condition.notify_all()

    def warn(self, text: str) -> None:
        """Tells something that the user should know."""
        with self._condition:
            self._warnings.append(text)
            self._condition.notify_all()

    def serving(self, ready: bool, host: str, port: int) -> None:
        """Tells whether a replica serves, and where."""
        with self._condition:
            self._endpoint = (ready, host, port)
            self._condition.notify_all()

    def close(self, timeout: float = 2.0) -> None:
        """Sends what is left, if the mesh takes it within ``timeout`` seconds, and stops."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        self._thread.join(timeout)

    def _news(self) -> bool:
        return bool(
            self._warnings or self._progress != self._told["progress"] or self._endpoint != self._told["endpoint"]
        )

    def _run(self) -> None:
        beat = time.monotonic() + self._interval
        pause = 0.0
        while True:
            with self._condition:
                if pause:
                    self._condition.wait_for(lambda: self._closed, pause)
                else:
                    self._condition.wait_for(lambda: self._closed or self._news(), max(0.0, beat - time.monotonic()))
                if self._closed and (pause or not self._news()):
                    return
                progress, endpoint = self._progress, self._endpoint
                warning = self._warnings[0] if self._warnings else ""
            try:
                if warning or progress != self._told["progress"]:
                    self._send_progress(progress, warning)
                if endpoint != self._told["endpoint"] or time.monotonic() >= beat:
                    self._send_heartbeat(endpoint)
                    beat = time.monotonic() + self._interval
                pause = 0.0
            except FailedPrecondition as error:
                logger.warning("the mesh no longer listens to this task: %s", error)
                if error.reason == "TASK_ENDED":
                    self._on_ended()
                return
            except NoronhaError as error:
                logger.debug("the mesh does not answer: %s", error)
                pause = min(2.0, pause * 2 or 0.1)

    def _send_progress(self, progress: float, warning: str) -> None:
        from noronha.v1 import tasks_pb2

        self._mesh.tasks.ReportProgress(
            tasks_pb2.ReportProgressRequest(progress=progress, warning=warning), timeout=10, wait_for_ready=False
        )
        with self._condition:
            self._told["progress"] = progress
            if warning:
                self._warnings.pop(0)

    def _send_heartbeat(self, endpoint: tuple[bool, str, int]) -> None:
        from noronha.v1 import tasks_pb2

        ready, host, port = endpoint
        self._mesh.tasks.Heartbeat(tasks_pb2.HeartbeatRequest(ready=ready, host=host, port=port), timeout=10)
        self._told["endpoint"] = endpoint


def insist(call: Callable[[], Any], *, until: Callable[[], bool] = lambda: False) -> Any:
    """Returns what ``call`` returns, called again while the mesh is away, for as long as it takes or ``until`` says no.

    Raises at once what no repeat changes (`FINAL`), and the last error when ``until`` says so.
    """
    pause = 0.1
    while True:
        try:
            return call()
        except FINAL:
            raise
        except NoronhaError as error:
            if until():
                raise
            logger.debug("asked again in %.1f s: %s", pause, error)
        time.sleep(pause)
        pause = min(2.0, pause * 2)


def report_outcome(
    mesh: Mesh, result: Result, executed: Path | None, *, name: str, until: Callable[[], bool] = lambda: False
) -> None:
    """Uploads the executed notebook and reports how the task ended, however long the mesh is away.

    ``name`` is what the notebook is called. A notebook that cannot be kept does not keep the outcome from being told.
    """
    from noronha.v1 import tasks_pb2

    request = tasks_pb2.ReportOutcomeRequest(
        outcome=tasks_pb2.ReportOutcomeRequest.Outcome.Value(result.outcome), error=_status(result)
    )
    if executed is not None and executed.exists():
        from noronha.client import transfer

        try:
            uploaded = insist(lambda: transfer.upload(mesh.store, [(name, executed)]), until=until)
            request.upload = uploaded.upload
            request.executed_notebook.CopyFrom(uploaded.files[0])
        except NoronhaError as error:
            logger.error("the executed notebook could not be kept: %s", error)
    try:
        insist(lambda: mesh.tasks.ReportOutcome(request, timeout=30), until=until)
    except FINAL as error:
        if not request.upload:
            raise
        logger.error("the outcome was refused with its notebook, and is told without it: %s", error)
        request.ClearField("upload")
        request.ClearField("executed_notebook")
        insist(lambda: mesh.tasks.ReportOutcome(request, timeout=30), until=until)


def _status(result: Result) -> Any:
    if result.succeeded:
        return None
    metadata: dict[str, object] = {}
    if result.cell is not None:
        metadata["cell"] = result.cell
    if result.name:
        metadata |= {"name": result.name, "value": result.value[:1000], "traceback": result.traceback[-TRACEBACK_KEPT:]}
    kind = _KINDS.get(result.reason, FailedPrecondition)
    error = kind(result.message, reason=result.reason)
    error.metadata = {key: str(value) for key, value in metadata.items()}
    return to_status(error)
