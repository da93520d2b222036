"""``nha depl``: deployments, replicated prediction services."""

from __future__ import annotations

from typing import Any

import click

from noronha.cli import options, output
from noronha.cli.options import Subject
from noronha.cli.target import Target, pass_target


@click.group(cls=Subject)
def subject() -> None:
    """Deployments: replicated prediction services."""


name = click.option("-n", "--name", type=options.NAME, required=True, help="Name of the deployment.")
proj = options.project("Name of the project responsible for this deployment (default: current working project).")


def _full(target: Target, proj: str | None, name: str) -> str:
    return target.within("deployment", proj, name)


@subject.command()
@name
@proj
@pass_target
def info(target: Target, name: str, proj: str | None) -> None:
    """Information about a deployment and its replicas."""
    from noronha.cli import documents
    from noronha.client import deployments
    from noronha.client.references import to_key
    from noronha.v1 import metadata_pb2

    full = _full(target, proj, name)
    found = target.mesh.metadata.GetDeployment(metadata_pb2.GetDeploymentRequest(name=full))
    document = documents.deployment(found)
    document["replica_list"] = [documents.replica(each) for each in deployments.replicas(target.mesh, full)]
    target.present(document, to_key(full), documents.COLUMNS["deployment"])


@subject.command("list")
@options.listing()
@proj
@pass_target
def list_(
    target: Target, query: str | None, expand: bool, limit: int | None, order_by: str | None, proj: str | None
) -> None:
    """List deployments."""
    from noronha.cli.lists import run
    from noronha.v1 import metadata_pb2

    request = metadata_pb2.ListDeploymentsRequest(parent=target.project_parent(proj), order_by=order_by or "")
    run(target, "deployment", request, query=query, expand=expand, limit=limit)


@subject.command()
@name
@proj
@pass_target
def rm(target: Target, name: str, proj: str | None) -> None:
    """Remove a deployment."""
    from noronha.cli.removals import report
    from noronha.client import deployments
    from noronha.client.references import to_key

    full = _full(target, proj, name)
    target.repeatable = True
    deployments.remove(target.mesh, full)
    report(target, {"Removed Deployment": to_key(full)}, to_key(full))


@subject.command()
@name
@proj
@click.option("-f", "--follow", is_flag=True, help="Go on until the deployment is removed.")
@click.option("--replica", default="", help="Only what this replica wrote; 'nha depl info' names them.")
@click.option("--tail", "lines", type=options.Number(min=1), help="Start with about this many of the last lines.")
@pass_target
def logs(target: Target, name: str, proj: str | None, follow: bool, replica: str, lines: int | None) -> None:
    """Show what the replicas of a deployment wrote, each line with its replica unless --replica chooses one."""
    from noronha.cli import wording
    from noronha.cli.live import going_on, print_following, print_log
    from noronha.client import deployments
    from noronha.client.references import last_id, to_key
    from noronha.rpc.errors import NotFound

    full = _full(target, proj, name)
    if not follow or deployments.find(target.mesh, full) is None:
        print_log(target.mesh.runner.TailLogs, full, replica=replica, lines=lines or 0, label=not replica)
        return
    try:
        with going_on(f"deployment {to_key(full)}", f"nha depl logs -f --name {last_id(full)}"):
            print_following(deployments.follow(target.mesh, full, replica=replica, lines=lines or 0), label=not replica)
    except NotFound as error:
        target.voice.info(wording.in_words(error))


@subject.command()
@click.option("--name", type=options.NAME, help="Name of the deployment (defaults to a random name).")
@proj
@click.option(
    "--notebook", "--nb", "notebook", default="predict", show_default=True,
    help="Relative path, inside the project's directory structure, to the notebook that will be executed.",
)  # fmt: skip
@click.option("--params", type=options.JSON, help="JSON with parameters to be injected in the notebook.")
@options.tag("Tag of the project's build version that the deployment runs on.")
@click.option(
    "-n", "--n-tasks", "replicas", type=options.Number(0, 1000), default=1, show_default=True,
    help="Number of tasks for deployment replication.",
)  # fmt: skip
@click.option("--port", type=options.Number(1, 65535), help="Host port to be routed to the inference service.")
@options.environment
@options.mounts
@click.option(
    "--movers", "--mv", "movers", multiple=True,
    help="Reference to a model version for the deployment: <model_name>:<version_name>, such as "
    "iris-clf:experiment-v1. Can be given several times.",
)  # fmt: skip
@options.resource_profile
@pass_target
def new(
    target: Target,
    name: str | None,
    proj: str | None,
    notebook: str,
    params: str | None,
    tag: str,
    replicas: int,
    port: int | None,
    environment: tuple[tuple[str, str], ...],
    mounts: tuple[tuple[str, str, bool], ...],
    movers: tuple[str, ...],
    resource_profile: str | None,
) -> None:
    """Set up a deployment and wait until it serves.

    Ctrl-C stops the waiting, not the deployment. Exits with 9 when its replicas fail.
    """
    from noronha.cli import tasks
    from noronha.client import deployments
    from noronha.client.references import last_id, to_key, to_name, within
    from noronha.client.resources import health_check, resources, web_server

    given: dict[str, Any] = {
        "notebook": notebook,
        "params_json": params or "",
        "model_versions": [to_name("model_version", each) for each in movers],
        "environment": tasks.environment(environment),
        "mounts": tasks.mounts(mounts),
        "resources": resources(target.settings, "nha-depl", resource_profile),
        "health_check": health_check(target.settings),
        "web_server": web_server(target.settings),
    }
    mesh = target.mesh
    project = target.project(proj)
    owner = last_id(project.name)
    spec = deployments.specify(build=within("build", owner, tag), **given)
    existing = None
    if name is not None:
        existing = deployments.find(mesh, within("deployment", owner, name))
    if existing is not None:
        target.voice.warn("Deployment exists")
        target.must("Would you like to overwrite it?")
        made = deployments.replace(mesh, existing, spec, replicas=replicas, port=port or 0)
    else:
        made = deployments.create(mesh, project.name, spec, deployment_id=name or "", replicas=replicas, port=port or 0)
    key = to_key(made.name)
    if name is None:
        target.voice.warn(f"Deployment is anonymous. Using random name: {last_id(made.name)}")
    made = _await(target, made, key)
    _tell(target, made, owner)
    target.show(made)


def _wanted(found: Any) -> int:
    return int(found.replicas) if found.HasField("replicas") else 1


def _await(target: Target, made: Any, key: str) -> Any:
    from noronha.cli.live import going_on
    from noronha.client import deployments
    from noronha.client.work import state_of

    progress = output.Progress(target.voice, to_stderr=True)

    def show(found: Any) -> None:
        wanted = _wanted(found)
        word = f"Deployment {key}: {state_of(found)}"
        progress.state(word, found.status.ready_replicas / wanted if wanted else None)

    try:
        with going_on(f"deployment {key}", f"nha depl info --name {key.split(':')[1]}"):
            found = deployments.wait(target.mesh, made, show)
    except KeyboardInterrupt:
        progress.done(ended=False)
        target.voice.warn(f"no longer waiting; the deployment goes on, see 'nha depl info --name {key.split(':')[1]}'")
        raise
    except Exception:
        progress.done()
        raise
    progress.done()
    return found


def _tell(target: Target, made: Any, owner: str) -> None:
    """Says where predictions are answered; of a router that does not serve, why: somebody else may answer there."""
    from noronha.client.connection import does_not_serve

    if not _wanted(made):
        deploy = made.name.rpartition("/")[2]
        target.voice.info(
            f"Deployment {owner}:{deploy} has no replicas and answers no predictions; set it up again with --n-tasks 1 "
            "or more to have some"
        )
        return
    if made.status.address:
        target.voice.info(f"Predictions at http://{made.status.address}/predict")
    router = target.mesh.routing()
    if router.problem:
        target.voice.warn(does_not_serve("router", router.problem))
    elif router.address:
        deploy = made.name.rpartition("/")[2]
        target.voice.info(f"Predictions at http://{router.address}/predict?project={owner}&deploy={deploy}")
