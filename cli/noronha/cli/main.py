"""The entry point of ``nha`` and ``noronha``: global options, subjects loaded when used, and one place for errors."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from noronha.cli import failures
from noronha.cli.failures import Declined, one_line
from noronha.cli.options import Leaf, output_option
from noronha.cli.target import Target, pass_target

SUBJECTS = {
    "model": "Model definitions: what a version of a model and its datasets are made of.",
    "ds": "Datasets: files that a model is trained with.",
    "proj": "Projects: the code that is built, trained and deployed.",
    "bvers": "Build versions: projects made runnable.",
    "train": "Trainings: runs of a training notebook.",
    "movers": "Model versions: what trainings produced.",
    "depl": "Deployments: replicated prediction services.",
    "mesh": "The mesh: the services behind all of this.",
}
"""Subjects with the line that ``nha --help`` shows, so that it need not load them."""


class Root(click.Group):
    """The command itself; it knows its subjects by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*SUBJECTS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in SUBJECTS:
            command: click.Command = import_module(f"noronha.cli.subjects.{cmd_name}").subject
            return command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = list(SUBJECTS.items())
        rows += [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Subjects and commands"):
            formatter.write_dl(rows)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-s", "--skip-questions", is_flag=True, help="Skip questions: answer them as is safe for scripts.")
@click.option(
    "-l", "--log-level", type=click.Choice(["DEBUG", "INFO", "WARN", "ERROR"], case_sensitive=False),
    help="Level of log verbosity (default: logger.level, which is INFO).",
)  # fmt: skip
@click.option("-d", "--debug", is_flag=True, help="Set log level to DEBUG and show tracebacks.")
@click.option("-p", "--pretty", is_flag=True, help="Less compact, more readable output.")
@click.option("-b", "--background", is_flag=True, help="Run in background, only log to files.")
@click.pass_context
def root(
    context: click.Context, skip_questions: bool, log_level: str | None, debug: bool, pretty: bool, background: bool
) -> None:
    """Noronha hosts machine-learning projects: it builds, trains, versions, deploys and routes them.

    Without a mesh configured, the first command starts one in the background.
    """
    target = context.ensure_object(Target)
    target.skip_questions, target.log_level = skip_questions, log_level
    target.debug, target.pretty = debug, pretty
    if background:
        from noronha.cli.background import leave

        context.exit(leave(target, sys.argv[1:]))


root.params.append(output_option())


@root.command(cls=Leaf)
@pass_target
def version(target: Target) -> None:
    """Show the version of Noronha that is installed."""
    from importlib import metadata

    found = metadata.version("noronha-dataops")
    if target.output in ("json", "yaml"):
        from noronha.cli import output

        output.show({"version": found}, found, target.output, pretty=target.pretty)
    else:
        click.echo(found if target.output == "name" else f"Noronha Dataops v{found}")


@root.command("get-me-started", cls=Leaf)
@pass_target
def get_me_started(target: Target) -> None:
    """Get everything ready that a first project needs."""
    from noronha.client.mesh import settled

    info = settled(target.mesh)
    if target.output != "text":
        from noronha.cli.subjects import mesh

        mesh.show(target, info)
        return
    for service in info.services:
        backend = f" ({service.backend})" if service.backend else ""
        click.echo(f"{service.name}{backend}: {'ready' if service.serving else service.problem}")
    click.echo("Metadata and file storage are built in; nothing has to be set up. Next: nha model new --help")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code; ``arguments`` default to those of the process."""
    target = Target()
    try:
        result = root.main(args=arguments, obj=target, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Exception as error:
        return _fail(error, target)


def _fail(error: Exception, target: Target) -> int:
    """Says on standard error, in one line, what went wrong; returns the exit code."""
    from noronha.rpc.errors import NoronhaError

    if isinstance(error, Declined):
        click.echo("Aborting...", err=True)
        return failures.DECLINED
    if isinstance(error, click.exceptions.Abort):
        click.echo("Interrupted.", err=True)
        return failures.INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return failures.USAGE
    if isinstance(error, click.ClickException):
        hint = ""
        context = getattr(error, "ctx", None)
        if context is not None:
            hint = f"; see '{context.command_path} --help'"
        _say(f"{one_line(error.format_message()).rstrip('.')}{hint}", "USAGE")
        return error.exit_code
    if target.debug:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, NoronhaError):
        _say(one_line(_unanswered(error, target) or error.message), error.reason)
        return failures.exit_code(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}", type(error).__name__.upper())
        return failures.UNEXPECTED
    _say(f"{type(error).__name__}: {one_line(str(error))}; run again with -d for details", "UNEXPECTED")
    return failures.UNEXPECTED


def _unanswered(error: Exception, target: Target) -> str | None:
    """Returns a line that people understand for a channel that found nobody; None for other errors."""
    from noronha.rpc.errors import Unavailable

    if not isinstance(error, Unavailable) or error.reason != Unavailable.default_reason or error.metadata:
        return None
    mesh = target.__dict__.get("mesh")
    if mesh is None:
        return None
    why = error.message.rpartition(": ")[2]
    return f"the mesh at {mesh.address} does not answer: {why}; 'nha mesh status' says how it stands"


def _say(line: str, reason: str) -> None:
    click.echo(f"{click.style('Error:', fg='red')} {line} [{reason}]", err=True)


def entry() -> Any:
    """Runs the command as a process."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
