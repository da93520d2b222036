"""``nha bvers``: build versions, projects made runnable."""

from __future__ import annotations

import click

from noronha.cli import options
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target


@click.group(cls=Subject)
def subject() -> None:
    """Build versions: projects made runnable."""


@subject.command()
@options.project("The project to which this build version belongs (default: current working project).")
@options.tag("The build version's tag; with @n for one revision.")
@pass_target
def info(target: Target, proj: str | None, tag: str) -> None:
    """Information about a build version."""
    from noronha.v1 import metadata_pb2

    target.show(target.mesh.metadata.GetBuild(metadata_pb2.GetBuildRequest(name=target.within("build", proj, tag))))


@subject.command("list")
@options.project("The project whose versions you want to list (default: current working project).")
@options.listing()
@pass_target
def list_(
    target: Target, proj: str | None, query: str | None, expand: bool, limit: int | None, order_by: str | None
) -> None:
    """List build versions."""
    from noronha.cli.lists import run
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.ListBuildsRequest(parent=target.project_parent(proj), order_by=order_by or "")
    run(target, "build", request, query=query, expand=expand, limit=limit)


@subject.command()
@options.project("The project in which this version belongs (default: current working project).")
@options.tag("The version's tag; with @n for one revision.")
@pass_target
def rm(target: Target, proj: str | None, tag: str) -> None:
    """Remove a build version."""
    from noronha.cli.removals import report
    from noronha.client.references import to_key
    from noronha.v1 import builder_pb2

    name = target.within("build", proj, tag)
    target.mesh.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=name), timeout=120)
    report(target, {"Removed BuildVersion": to_key(name)}, to_key(name))


@subject.command()
@options.project("The project to which this build version belongs (default: current working project).")
@options.tag("The build version's tag; with @n for one revision.")
@click.option("--tail", "lines", type=options.Number(min=1), help="Only about this many of the last lines.")
@pass_target
def logs(target: Target, proj: str | None, tag: str, lines: int | None) -> None:
    """Show the log of a build."""
    from noronha.cli.live import print_log

    print_log(target.mesh.builder.TailLogs, target.within("build", proj, tag), lines=lines or 0)
