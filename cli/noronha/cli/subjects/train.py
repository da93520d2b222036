"""``nha train``: trainings, runs of a training notebook."""

from __future__ import annotations

import sys
from typing import Any

import click

from noronha.cli import options
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target


@click.group(cls=Subject)
def subject() -> None:
    """Trainings: runs of a training notebook."""


name = click.option("-n", "--name", type=options.NAME, required=True, help="Name of the training.")
proj = options.project("Name of the project responsible for this training (default: current working project).")


def _full(target: Target, proj: str | None, name: str) -> str:
    return target.within("training", proj, name)


def _again(full: str) -> str:
    """Returns the command that follows a training again."""
    from noronha.client.references import to_key

    project, training = to_key(full).split(":")
    return f"nha train logs -f --proj {project} --name {training}"


@subject.command()
@name
@proj
@pass_target
def info(target: Target, name: str, proj: str | None) -> None:
    """Information about a training execution."""
    from noronha.v1 import metadata_pb2

    found = target.mesh.metadata.GetTraining(metadata_pb2.GetTrainingRequest(name=_full(target, proj, name)))
    target.show(found)


@subject.command("list")
@options.listing()
@options.project("Name of the project responsible for the trainings (default: current working project).")
@pass_target
def list_(
    target: Target, query: str | None, expand: bool, limit: int | None, order_by: str | None, proj: str | None
) -> None:
    """List training executions."""
    from noronha.cli.lists import run
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.ListTrainingsRequest(parent=target.project_parent(proj), order_by=order_by or "")
    run(target, "training", request, query=query, expand=expand, limit=limit)


@subject.command()
@name
@proj
@pass_target
def rm(target: Target, name: str, proj: str | None) -> None:
    """Remove a training's metadata."""
    from noronha.cli.removals import report
    from noronha.client import trainings
    from noronha.client.references import to_key

    full = _full(target, proj, name)
    trainings.remove(target.mesh, full)
    report(target, {"Removed Training": to_key(full)}, to_key(full))


@subject.command()
@name
@proj
@pass_target
def cancel(target: Target, name: str, proj: str | None) -> None:
    """Ask a running training to end; one that has ended already stays as it is."""
    from noronha.client import trainings, work
    from noronha.client.references import to_key
    from noronha.client.words import state_word

    full = _full(target, proj, name)
    found = trainings.get(target.mesh, full)
    if work.has_ended(found):
        target.voice.info(f"training {to_key(full)} had ended already: {state_word(found)}")
    else:
        found = trainings.cancel(target.mesh, full)
    target.show(found)


@subject.command()
@name
@proj
@click.option("-f", "--follow", is_flag=True, help="Go on until the training has ended.")
@click.option("--tail", "lines", type=options.Number(min=1), help="Start with about this many of the last lines.")
@pass_target
def logs(target: Target, name: str, proj: str | None, follow: bool, lines: int | None) -> None:
    """Show what a training wrote."""
    from noronha.cli.live import going_on, print_following, print_log
    from noronha.client import trainings
    from noronha.client.references import to_key

    full = _full(target, proj, name)
    if follow:
        with going_on(f"training {to_key(full)}", _again(full)):
            print_following(trainings.follow(target.mesh, full, lines=lines or 0))
    else:
        print_log(target.mesh.runner.TailLogs, full, lines=lines or 0)


@subject.command()
@name
@proj
@click.option(
    "--path", type=click.Path(dir_okay=False), help="File to write (default: <name>.ipynb); '-' writes to the terminal."
)
@pass_target
def notebook(target: Target, name: str, proj: str | None, path: str | None) -> None:
    """Fetch the notebook as a training executed it, outputs included."""
    from pathlib import Path

    from noronha.client import trainings

    if path == "-":
        full = _full(target, proj, name)
        for chunk in trainings.executed_notebook(target.mesh, full, notice=target.voice.info):
            sys.stdout.buffer.write(chunk)
        return
    chosen = Path(path or f"{name}.ipynb")
    if not chosen.parent.is_dir():
        raise click.BadParameter(f"there is no folder {chosen.parent}", param_hint="--path")
    if chosen.exists():
        target.must(f"{chosen} exists. Would you like to overwrite it?")
    full = _full(target, proj, name)
    content = b"".join(trainings.executed_notebook(target.mesh, full, notice=target.voice.info))
    chosen.write_bytes(content)
    if target.output == "text":
        click.echo(f"Executed notebook: {chosen}")
    else:
        target.present({"name": name, "path": str(chosen), "size_bytes": len(content)}, str(chosen))


@subject.command()
@click.option("-n", "--name", type=options.NAME, help="Name of the training (defaults to a random name).")
@proj
@click.option(
    "--notebook", "--nb", "notebook", required=True,
    help="Relative path, inside the project's directory structure, to the notebook that will be executed.",
)  # fmt: skip
@click.option("-p", "--params", type=options.JSON, help="JSON with parameters to be injected in the notebook.")
@options.tag("Tag of the project's build version that the training runs on.")
@options.environment
@options.mounts
@click.option(
    "--dataset", "--ds", "datasets", multiple=True,
    help="Reference to a dataset for the training: <model_name>:<dataset_name>, such as iris-clf:iris-data-v0. "
    "Can be given several times.",
)  # fmt: skip
@click.option(
    "--pretrained", multiple=True,
    help="Reference to a model version that is used as a pre-trained model: <model_name>:<version_name>, such as "
    "word2vec:en-us-v1. Can be given several times.",
)  # fmt: skip
@options.resource_profile
@click.option(
    "--target-deploy", "--td", "target_deploy", type=options.NAME,
    help="Name of a deployment of the project that takes up the published version when the training succeeds.",
)  # fmt: skip
@pass_target
def new(
    target: Target,
    name: str | None,
    proj: str | None,
    notebook: str,
    params: str | None,
    tag: str,
    environment: tuple[tuple[str, str], ...],
    mounts: tuple[tuple[str, str, bool], ...],
    datasets: tuple[str, ...],
    pretrained: tuple[str, ...],
    resource_profile: str | None,
    target_deploy: str | None,
) -> None:
    """Execute a new training and show it until it has ended.

    Ctrl-C asks the mesh to cancel the training and goes on showing it until it has ended; a second one only stops the
    showing, for the mesh cancels it all the same. Exits with 9 when the training failed, with 1 when it
    was cancelled.
    """
    from noronha.cli import live, tasks
    from noronha.client import trainings
    from noronha.client.references import last_id, to_key, to_name, within
    from noronha.client.resources import resources
    from noronha.client.words import state_word

    given: dict[str, Any] = {
        "notebook": notebook,
        "params_json": params or "",
        "datasets": [to_name("dataset", each) for each in datasets],
        "pretrained": [to_name("model_version", each) for each in pretrained],
        "environment": tasks.environment(environment),
        "mounts": tasks.mounts(mounts),
        "resources": resources(target.settings, "nha-train", resource_profile),
    }
    mesh = target.mesh
    project = target.project(proj)
    owner = last_id(project.name)
    given["build"] = within("build", owner, tag)
    if target_deploy is not None:
        given["target_deployment"] = within("deployment", owner, target_deploy)
    exists = name is not None and trainings.find(mesh, within("training", owner, name)) is not None
    if exists:
        target.voice.warn("Training exists")
        target.must("Would you like to overwrite it?")
    made = trainings.create(mesh, project.name, training_id=name or "", replace=exists, **given)
    key = to_key(made.name)
    if name is None:
        target.voice.warn(f"Training is anonymous. Using random name: {last_id(made.name)}")

    def describe(found: Any) -> tuple[str, float | None]:
        return f"Training {key}: {state_word(found)}", found.status.progress

    with live.going_on(f"training {key}", _again(made.name)):
        made = live.watch(
            target, trainings.follow(mesh, made.name), made, describe,
            lambda: trainings.cancel(mesh, made.name), f"training {key}",
        )  # fmt: skip
    live.warnings(target, made.warnings)
    for version in made.published:
        target.voice.info(f"Published model version: {to_key(version)}")
    trainings.check(made)
    if target.output != "text":
        target.show(made)
