"""``nha proj``: projects, the code that is built, trained and deployed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from noronha.cli import options
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target


@click.group(cls=Subject)
def subject() -> None:
    """Projects: the code that is built, trained and deployed."""


project_name = click.option(
    "-n", "--name", "--proj", "name", type=options.NAME, help="Name of the project (default: current working project)."
)
model_option = click.option(
    "-m", "--model", "models", type=options.NAME, multiple=True,
    help="Name of an existing model (further info: nha model --help). Can be given several times.",
)  # fmt: skip
home_dir_option = click.option("--home-dir", help="Local directory where the project is hosted. Example: /path/to/proj")
git_repo_option = click.option(
    "--git-repo", help="The project's remote Git repository. Example: https://<git_server>/<proj_repo>"
)
docker_repo_option = click.option(
    "--docker-repo", help="The project's remote Docker repository. Example: <docker_registry>/<proj_image>"
)


def _home(text: str) -> str:
    path = Path(text).expanduser().absolute()
    if not path.is_dir():
        raise click.BadParameter(f"{text} is not a local directory", param_hint="--home-dir")
    import os

    return os.path.normpath(path)


@subject.command()
@project_name
@pass_target
def info(target: Target, name: str | None) -> None:
    """Information about a project."""

    found = target.project(name)
    target.show(found)


@subject.command("list")
@options.listing()
@click.option("-m", "--model", type=options.NAME, help="Only projects that use this model will be listed.")
@pass_target
def list_(
    target: Target, query: str | None, expand: bool, limit: int | None, order_by: str | None, model: str | None
) -> None:
    """List hosted projects."""
    from noronha.cli.lists import run
    from noronha.client.references import to_name
    from noronha.v1 import metadata_pb2

    also = None if model is None else {"models": to_name("model", model)}
    request = metadata_pb2.ListProjectsRequest(order_by=order_by or "")
    run(target, "project", request, query=query, expand=expand, limit=limit, also=also)


@subject.command()
@project_name
@pass_target
def rm(target: Target, name: str | None) -> None:
    """Remove a project and everything related to it."""
    from noronha.cli.removals import report
    from noronha.client import projects
    from noronha.client.references import last_id

    project = target.project(name)
    key = last_id(project.name)
    target.voice.warn(f"Builds, trainings and deployments of project '{key}' are stopped and removed with it")
    target.must("Do you want to proceed?")
    removed = projects.remove(target.mesh, project.name)
    report(
        target,
        {
            "Removed Deployments": [last_id(each) for each in removed["deployments"]],
            "Removed Trainings": [last_id(each) for each in removed["trainings"]],
            "Removed BuildVersions": [last_id(each) for each in removed["builds"]],
            "Removed Project": key,
        },
        key,
    )


@subject.command()
@click.option("-n", "--name", type=options.NAME, required=True, help="Name of the project.")
@click.option("-d", "--desc", default="", help="Free text description.")
@model_option
@home_dir_option
@git_repo_option
@docker_repo_option
@pass_target
def new(
    target: Target,
    name: str,
    desc: str,
    models: tuple[str, ...],
    home_dir: str | None,
    git_repo: str | None,
    docker_repo: str | None,
) -> None:
    """Host a new project in the framework."""
    from noronha.client.references import to_name
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import metadata_pb2, project_pb2

    if not models:
        target.voice.warn("Creating project without a model")
    if home_dir is None:
        target.voice.warn("Home directory was not provided")
        home = (
            str(Path.cwd()) if target.ask("Would you like to use the current working directory?", skipped=False) else ""
        )
    else:
        home = _home(home_dir)
    wanted = project_pb2.Project(
        description=desc, models=[to_name("model", each) for each in models], home_dir=home,
        git_repository=git_repo or "", docker_repository=docker_repo or "",
    )  # fmt: skip
    made = target.mesh.metadata.CreateProject(
        metadata_pb2.CreateProjectRequest(project_id=name, project=wanted, request_id=new_request_id())
    )
    target.show(made)


@subject.command()
@click.option(
    "-n", "--name", "--proj", "name", type=options.NAME,
    help="Name of the project you want to update (default: current working project).",
)  # fmt: skip
@click.option("-d", "--desc", help="Free text description.")
@model_option
@home_dir_option
@git_repo_option
@docker_repo_option
@pass_target
def update(
    target: Target,
    name: str | None,
    desc: str | None,
    models: tuple[str, ...],
    home_dir: str | None,
    git_repo: str | None,
    docker_repo: str | None,
) -> None:
    """Update a project in the database; what is not given stays."""
    from noronha.client.references import to_name
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import metadata_pb2, project_pb2

    changes: dict[str, Any] = {
        "description": desc,
        "models": [to_name("model", each) for each in models] or None,
        "home_dir": None if home_dir is None else _home(home_dir),
        "git_repository": git_repo,
        "docker_repository": docker_repo,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if not changes:
        raise click.UsageError("nothing to update; give at least one of the options")
    project = target.project(name)
    request = metadata_pb2.UpdateProjectRequest(
        project=project_pb2.Project(name=project.name, **changes), request_id=new_request_id()
    )
    request.update_mask.paths.extend(changes)
    made = target.mesh.metadata.UpdateProject(request)
    target.show(made)


@subject.command()
@click.option(
    "-n", "--name", "--proj", "name", type=options.NAME, help="Name of the project (default: current working project)."
)
@options.tag("Tag for the build.")
@click.option(
    "--no-cache", is_flag=True,
    help="Slower build, but useful when the cached layers contain outdated information.",
)  # fmt: skip
@click.option(
    "--from-here", is_flag=True,
    help="Build from current working directory (default option; inside a project's home that home is).",
)  # fmt: skip
@click.option("--from-home", is_flag=True, help="Build from project's home directory.")
@click.option("--from-git", is_flag=True, help="Build from project's Git repository (default branch).")
@click.option(
    "--pre-built", is_flag=True,
    help="Don't build, just pull and tag a pre-built image from project's Docker repository.",
)  # fmt: skip
@pass_target
def build(
    target: Target,
    name: str | None,
    tag: str,
    no_cache: bool,
    from_here: bool,
    from_home: bool,
    from_git: bool,
    pre_built: bool,
) -> None:
    """Build the project: make its source runnable under a tag.

    Ctrl-C asks the mesh to cancel the build and goes on showing it until it has ended; a second one only stops the
    showing. Exits with 9 when the build failed, with 1 when it was cancelled.
    """
    from noronha.cli import live, publishing
    from noronha.client import builds
    from noronha.client.references import to_key
    from noronha.client.words import state_word

    if from_here + from_home + from_git + pre_built > 1:
        raise click.UsageError("give only one of --from-here, --from-home, --from-git and --pre-built")
    project = target.project(name)
    if from_git:
        made = builds.from_git(target.mesh, project, tag, no_cache=no_cache, notice=target.voice.info)
    elif pre_built:
        made = builds.pre_built(target.mesh, project, tag, notice=target.voice.info)
    else:
        folder = builds.home_of(project) if from_home else Path.cwd()
        if not from_home and not from_here and builds.is_inside_home(project, folder):
            if name is None:  # the project was found by the folder above, which is therefore what is meant
                folder = builds.home_of(project)
                target.voice.info(f"building from the project's home {folder}; --from-here builds this folder alone")
            else:
                target.voice.warn(
                    f"only {folder} is built, which is inside the project's home; --from-home builds all of it"
                )
        with publishing.progress(target) as progress:
            made = builds.from_folder(
                target.mesh, project, tag, folder, no_cache=no_cache, notice=target.voice.info, progress=progress
            )
    key = to_key(made.name)

    def describe(found: Any) -> tuple[str, float | None]:
        return f"Build {key}: {state_word(found)}", None

    made = live.watch(
        target,
        builds.follow(target.mesh, made),
        made,
        describe,
        lambda: builds.cancel(target.mesh, made),
        f"build {key}",
    )
    builds.check(made)
    target.show(made)
