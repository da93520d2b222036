"""Why a task did not succeed: the closed set of reasons, and the exception that carries one.

The reason goes into the record of the training or the replica, so that people and programs can tell a notebook
that raised from a kernel that was killed.
"""

from __future__ import annotations

REASONS = {
    "NOTEBOOK_NOT_FOUND": "the project has no such file",
    "NOTEBOOK_INVALID": "the file is not a notebook that can be read",
    "NOTEBOOK_LANGUAGE": "the notebook is written in another language than Python",
    "PARAMETERS_INVALID": "the parameters cannot be given to the notebook",
    "KERNEL_NOT_STARTED": "the project's environment could not start a kernel",
    "CELL_RAISED": "a cell of the notebook raised an exception",
    "KERNEL_DIED": "the kernel ended before the notebook did",
    "CANCELLED": "somebody cancelled it",
    "ASSET_UNAVAILABLE": "a dataset or a model version could not be fetched",
    "NOT_SERVING": "the notebook of a deployment ended without serving",
    "TASK_ERROR": "the task itself failed; its log says how",
}
"""Every reason and what it means."""


class NotebookFailure(Exception):
    """Ends the execution of a notebook with a reason out of `REASONS` and a message of one line.

    ``cell`` is where it happened, counted as ``In [n]`` counts the cells of the author's own notebook; ``name``,
    ``value`` and ``traceback`` are those of the exception that it raised.
    """

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        name: str = "",
        value: str = "",
        traceback: str = "",
        cell: int | None = None,
    ):
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.name = name
        self.value = value
        self.traceback = traceback
        self.cell = cell
