"""``nha mesh``: the services behind all of this."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from noronha.cli import output
from noronha.cli.options import Number, Subject
from noronha.cli.target import Target, pass_target

if TYPE_CHECKING:
    from noronha.v1 import mesh_pb2

SERVICE_COLUMNS = ("name", "state", "address", "backend", "problem")
"""What ``-o table`` shows of each service, below the mesh itself."""


@click.group(cls=Subject)
def subject() -> None:
    """The mesh: the services behind all of this."""


def _document(info: mesh_pb2.MeshInfo, address: str, router: str) -> dict[str, Any]:
    return {
        "mesh": "up",
        "address": address,
        "version": info.version,
        "mesh_id": info.mesh_id,
        "process": info.process_id,
        "state_dir": info.state_dir,
        "router": router,
        "services": [
            {
                "name": each.name,
                "state": "SERVING" if each.serving else "NOT_SERVING",
                "backend": each.backend,
                "address": each.address,
                "problem": each.problem,
            }
            for each in info.services
        ],
    }


def show(target: Target, info: mesh_pb2.MeshInfo) -> None:
    """Shows the overview of a mesh."""
    from noronha.client.connection import routing_of

    document = _document(info, target.mesh.address, routing_of(info).address)
    target.present(document, info.mesh_id)
    if target.output == "table":
        click.echo()
        here = document["address"]
        services = [{**each, "address": each["address"] or here} for each in document["services"]]
        output.table(services, SERVICE_COLUMNS)


@subject.command()
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file for the mesh (default: ~/.nha/nha.yaml).",
)  # fmt: skip
@pass_target
def up(target: Target, config: Path | None) -> None:
    """Start the mesh in the background if it does not run yet, and say where it is once its services are up."""
    from noronha.client import configuration, mesh

    if not target.configuration.client.mesh.address:
        chosen = target.configuration if config is None else configuration.load(mesh_file=config.absolute())
        mesh.start_mesh(chosen, notice=target.voice.warn, config_file=config)
    show(target, mesh.settled(target.mesh))


@subject.command()
@click.option("--stop-tasks", is_flag=True, help="Stop trainings, deployments and the proxy as well.")
@pass_target
def down(target: Target, stop_tasks: bool) -> None:
    """Stop the mesh.

    Trainings and deployments go on unless --stop-tasks is given; the next command finds them again. With
    --stop-tasks they are stopped also when the embedded mesh itself is down already; a mesh at mesh.address has to run
    for that.
    """
    from noronha.client.mesh import stop_mesh
    from noronha.rpc.errors import Unavailable

    # What an embedded mesh has left running only the next one finds, so one is started to stop it.
    embedded = not target.configuration.client.mesh.address
    target.may_start = stop_tasks and embedded and (target.configuration.mesh.state_dir / "mesh_id").exists()
    try:
        stopped = stop_mesh(target.mesh, stop_tasks=stop_tasks)
    except Unavailable as error:
        if error.reason != "NO_MESH":
            raise
        _say_down(target, "No mesh runs")
        return
    _say_down(target, f"Stopped the mesh, process {', '.join(map(str, stopped))}")


def _say_down(target: Target, line: str) -> None:
    if target.output == "text":
        click.echo(line)
    else:
        target.present({"mesh": "down"}, "down")


@subject.command()
@pass_target
def status(target: Target) -> None:
    """Say what runs and how each service stands. Starts nothing; exits with 7 when no mesh runs."""
    target.may_start = False
    show(target, target.mesh.overview())


@subject.command()
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--tail", "lines", type=Number(min=1), default=200, show_default=True, help="Last lines to show.")
@click.option("--calls", is_flag=True, help="Show the log of calls, a line of JSON each, instead.")
@pass_target
def logs(target: Target, follow: bool, lines: int, calls: bool) -> None:
    """Show the embedded mesh's own log."""
    from noronha.rpc.errors import FailedPrecondition, NotFound

    if target.settings.mesh.address:
        raise FailedPrecondition(
            "the log of a mesh at mesh.address is kept where that mesh runs", reason="NOT_EMBEDDED"
        )
    file = target.configuration.mesh.state_dir / "logs" / ("mesh-calls.log" if calls else "mesh.log")
    try:
        stream = open(file, "rb")  # noqa: SIM115  closed below; its own error is told here
    except FileNotFoundError:
        raise NotFound(f"there is no log at {file}; no mesh has run yet") from None
    with stream:
        out = sys.stdout.buffer
        out.write(b"".join(_tail(stream.read(), lines)))
        out.flush()
        while follow:
            more = stream.read()
            out.write(more)
            out.flush()
            if not more:
                time.sleep(0.2)


def _tail(content: bytes, lines: int) -> list[bytes]:
    return content.splitlines(keepends=True)[-lines:]
