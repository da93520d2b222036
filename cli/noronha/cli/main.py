"""The entry point of ``nha`` and ``noronha``: global options, subjects loaded when used, and one place for errors."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from noronha.cli import failures
from noronha.cli.options import Leaf, Resolved, output_option, resolve
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

LATER = {"note": "notebook sessions", "isle": "islands", "tchest": "treasure chests"}
"""Subjects of Noronha 1.6 that this version does not have yet."""


class Root(click.Group):
    """The command itself; it knows its subjects by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*SUBJECTS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in SUBJECTS:
            command: click.Command = import_module(f"noronha.cli.subjects.{cmd_name}").subject
            return command
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Resolved:
        given = args[0]
        if given in LATER:
            from noronha.rpc.errors import Unimplemented

            raise Unimplemented(f"this version of Noronha has no {LATER[given]} yet", reason="NOT_IMPLEMENTED")
        return resolve(self, ctx, args, super().resolve_command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = list(SUBJECTS.items())
        rows += [(name, command.get_short_help_str(80)) for name, command in self.commands.items()]
        with formatter.section("Subjects and commands"):
            formatter.write_dl(rows)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in failures.MEANINGS.items()])


SKIP = (
    "Skip questions: answer yes, also where something is overwritten or removed. Only whether the current directory is "
    "a new project's home is answered with no."
)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("-s", "--skip-questions", is_flag=True, help=SKIP)
@click.option(
    "-l", "--log-level", type=click.Choice(["DEBUG", "INFO", "WARN", "ERROR"], case_sensitive=False),
    help="Level of log verbosity (default: logger.level, which is INFO).",
)  # fmt: skip
@click.option("-d", "--debug", is_flag=True, help="Set log level to DEBUG, which shows each call, and show tracebacks.")
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
    from noronha.rpc.release import own_version

    found = own_version()
    if target.output == "text":
        click.echo(f"Noronha Dataops v{found}")
    else:
        target.present({"version": found}, found)


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
        result = root.main(args=arguments, prog_name="nha", obj=target, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Exception as error:
        return failures.tell(error, target)


def entry() -> Any:
    """Runs the command as a process."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
