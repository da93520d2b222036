"""How the command ends when something goes wrong: one line on standard error, and an exit code for each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from noronha.cli.target import Target
    from noronha.rpc.errors import NoronhaError

MEANINGS = {
    0: "done",
    1: "a question was answered with no, the training or build was cancelled, or an unexpected error",
    2: "the command, an option, a setting or a value is wrong",
    3: "something named does not exist",
    4: "it exists already, or somebody else was faster",
    5: "the state does not allow it, or this mesh cannot do it",
    6: "the caller may not",
    7: "the mesh is not there, or did not answer in time",
    8: "a limit or a disk is full, or stored bytes are damaged",
    9: "the work itself failed: the training, the build, the deployment",
    130: "interrupted by Ctrl-C",
}
"""What each exit code tells."""

DECLINED = 1
USAGE = 2
DISK_FULL = 8
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


def tell(error: Exception, target: Target) -> int:
    """Says on standard error, in one line, what went wrong; returns the exit code.

    Work that failed has a record all the same: machines get it on standard output.
    """
    from noronha.rpc.errors import NoronhaError

    if isinstance(error, Declined):
        click.echo("Aborting...", err=True)
        return DECLINED
    if isinstance(error, click.exceptions.Abort):
        click.echo("Interrupted.", err=True)
        return INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return USAGE
    if isinstance(error, click.ClickException):
        line = one_line(error.format_message()).rstrip(".")
        context = getattr(error, "ctx", None)
        if context is not None:
            line += f"{' See' if line.endswith('?') else '; see'} '{context.command_path} --help'"
        _say(line, "USAGE")
        return error.exit_code
    if target.debug:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, NoronhaError):
        from noronha.cli import wording

        record = getattr(error, "record", None)
        if record is not None and target.output != "text":
            target.show(record)
        _say(one_line(_unanswered(error, target) or wording.in_words(error)), error.reason)
        return exit_code(error)
    if isinstance(error, OSError):
        from noronha.rpc.disk import is_full

        where = f"{error.filename}: " if error.filename else ""
        full = is_full(error)
        _say(f"{where}{error.strerror or error}", "NO_SPACE" if full else "FILE_UNUSABLE")
        return DISK_FULL if full else USAGE
    _say(f"{type(error).__name__}: {one_line(str(error))}; run again with -d for details", "UNEXPECTED")
    return UNEXPECTED


def _unanswered(error: NoronhaError, target: Target) -> str | None:
    """Returns a line that people understand for a channel that found nobody; None for other errors."""
    from noronha.rpc.errors import Unavailable

    address = error.address
    if not isinstance(error, Unavailable) or not address:
        return None
    why = error.message.rpartition(": ")[2].rstrip(" ]")
    settings = target.settings
    if address == settings.mesh.address:
        # A mesh on a socket is one process, one over TCP may have servers that live on.
        others = "" if address.startswith("unix:") else " set it to another server of the mesh,"
        return (
            f"no mesh answers at {address}: {why}; mesh.address, set in {settings.origins['mesh.address']}, says that "
            f"it is there: start one there,{others} or unset it to use one of your own"
        )
    again = "; repeating the command is harmless: run it again" if target.repeatable else ""
    if settings.mesh.address:
        line = f"a server of the mesh, at {address}, does not answer: {why}; 'nha mesh status' says whose address it is"
    else:
        line = f"the mesh at {address} does not answer: {why}; 'nha mesh logs' may say why"
    return line + again


def _say(line: str, reason: str) -> None:
    click.echo(f"{click.style('Error:', fg='red')} {line} [{reason}]", err=True)
