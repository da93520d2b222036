"""How the command ends when something goes wrong: one line on standard error, and an exit code for each kind.

| code | meaning |
|---|---|
| 0 | done |
| 1 | a question was answered with no, the work was cancelled, or an unexpected error |
| 2 | the command, an option, a setting or a value is wrong |
| 3 | something named does not exist |
| 4 | it exists already, or somebody else was faster |
| 5 | the state does not allow it, or this mesh cannot do it |
| 6 | the caller may not |
| 7 | the mesh is not there, or did not answer in time |
| 8 | a limit or a disk is full, or stored bytes are damaged |
| 9 | the work itself failed: the training, the build, the deployment |
| 130 | interrupted by Ctrl-C |
"""

from __future__ import annotations

DECLINED = 1
USAGE = 2
UNEXPECTED = 1
INTERRUPTED = 130

BY_CODE = {
    1: 1,  # CANCELLED
    3: 2,  # INVALID_ARGUMENT
    11: 2,  # OUT_OF_RANGE
    5: 3,  # NOT_FOUND
    6: 4,  # ALREADY_EXISTS
    10: 4,  # ABORTED
    9: 5,  # FAILED_PRECONDITION
    12: 5,  # UNIMPLEMENTED
    7: 6,  # PERMISSION_DENIED
    16: 6,  # UNAUTHENTICATED
    14: 7,  # UNAVAILABLE
    4: 7,  # DEADLINE_EXCEEDED
    8: 8,  # RESOURCE_EXHAUSTED
    15: 8,  # DATA_LOSS
}
"""Exit code for each number of ``google.rpc.Code``; 1 for the others."""

WORK_FAILED = 9


class Declined(Exception):
    """The user answered a question with no."""


def exit_code(error: Exception) -> int:
    """Returns the exit code for an error of Noronha."""
    from noronha.client.work import WorkFailed

    if isinstance(error, WorkFailed):
        return WORK_FAILED
    return BY_CODE.get(getattr(error, "code", 0), UNEXPECTED)


def one_line(text: str) -> str:
    """Returns a text with its line breaks and runs of blanks made single blanks."""
    return " ".join(str(text).split())
