"""Deployments as a client starts, changes and awaits them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from noronha.client.follow import Change, Following
from noronha.client.listing import every
from noronha.client.references import to_key
from noronha.client.work import WorkFailed, state_of
from noronha.rpc.errors import NotFound

if TYPE_CHECKING:
    from noronha.client.connection import Mesh
    from noronha.v1 import deployment_pb2, health_check_pb2, mount_pb2, replica_pb2, resources_pb2, web_server_pb2


def specify(
    *,
    build: str,
    notebook: str = "",
    params_json: str = "",
    model_versions: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    mounts: Sequence[mount_pb2.Mount] = (),
    resources: resources_pb2.Resources | None = None,
    health_check: health_check_pb2.HealthCheck | None = None,
    web_server: web_server_pb2.WebServer | None = None,
) -> deployment_pb2.DeploymentSpec:
    """Returns what each replica is to be made of; references are full names."""
    from noronha.v1 import deployment_pb2

    return deployment_pb2.DeploymentSpec(
        build=build, notebook=notebook, params_json=params_json, model_versions=model_versions,
        environment=environment or {}, mounts=mounts, resources=resources, health_check=health_check,
        web_server=web_server,
    )  # fmt: skip


def create(
    mesh: Mesh,
    project: str,
    spec: deployment_pb2.DeploymentSpec,
    *,
    deployment_id: str = "",
    replicas: int = 1,
    port: int = 0,
    details_json: str = "",
    request_id: str = "",
) -> deployment_pb2.Deployment:
    """Starts a deployment and returns its record, PENDING. Raises as ``Runner.CreateDeployment``."""
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import deployment_pb2, runner_pb2

    return mesh.runner.CreateDeployment(
        runner_pb2.CreateDeploymentRequest(
            parent=project,
            deployment_id=deployment_id,
            deployment=deployment_pb2.Deployment(spec=spec, replicas=replicas, port=port, details_json=details_json),
            request_id=request_id or new_request_id(),
        )
    )


def replace(
    mesh: Mesh,
    current: deployment_pb2.Deployment,
    spec: deployment_pb2.DeploymentSpec,
    *,
    replicas: int = 1,
    port: int = 0,
    details_json: str = "",
    request_id: str = "",
) -> deployment_pb2.Deployment:
    """Makes a deployment what is wanted now, as a new revision, provided it is still as ``current``.

    The old replicas serve until the new ones are ready. Raises Aborted ``STALE_ETAG``; as ``Runner.UpdateDeployment``.
    """
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import deployment_pb2, runner_pb2

    wanted = deployment_pb2.Deployment(
        name=current.name, spec=spec, replicas=replicas, port=port, details_json=details_json, etag=current.etag
    )
    request = runner_pb2.UpdateDeploymentRequest(deployment=wanted, request_id=request_id or new_request_id())
    request.update_mask.paths.extend(["spec", "replicas", "port", "details_json"])
    return mesh.runner.UpdateDeployment(request)


def find(mesh: Mesh, name: str) -> deployment_pb2.Deployment | None:
    """Returns a deployment, None when there is none of that name."""
    from noronha.v1 import metadata_pb2

    try:
        return mesh.metadata.GetDeployment(metadata_pb2.GetDeploymentRequest(name=name))
    except NotFound:
        return None


def replicas(mesh: Mesh, name: str) -> Iterator[replica_pb2.Replica]:
    """Yields the replicas of a deployment, those of all its revisions."""
    from noronha.v1 import metadata_pb2

    return every(mesh.metadata.ListReplicas, metadata_pb2.ListReplicasRequest(parent=name), "replicas")


def settled(deployment: deployment_pb2.Deployment, generation: int) -> bool:
    """Says whether what was wanted as of ``generation`` has come to an end, good or bad."""
    status = deployment.status
    if status.observed_generation < generation:
        return False
    return state_of(deployment) in ("READY", "DEGRADED", "FAILED", "STOPPED")


def wait(
    mesh: Mesh,
    wanted: deployment_pb2.Deployment,
    on_change: Callable[[deployment_pb2.Deployment], None] | None = None,
) -> deployment_pb2.Deployment:
    """Waits until a deployment is as wanted and returns its record.

    ``wanted`` is the answer to the call that asked for it; ``on_change`` sees each state on the way. Raises WorkFailed
    with the reason when its replicas fail, also when an older revision goes on serving.
    """
    record = wanted
    with Following(mesh, wanted.name, lambda found: settled(found, wanted.generation)) as events:
        for event in events:
            if isinstance(event, Change):
                record = event.record
                if on_change is not None:
                    on_change(record)
    return check(record)


def follow(mesh: Mesh, name: str, *, replica: str = "", lines: int = 0) -> Following:
    """Follows a deployment's record and the logs of its replicas until it is deleted, which raises NotFound."""
    return Following(mesh, name, lambda _: False, mesh.runner.TailLogs, replica=replica, lines=lines)


def check(deployment: deployment_pb2.Deployment) -> deployment_pb2.Deployment:
    """Returns a deployment that is READY or STOPPED. Raises WorkFailed with its reason for one that is not."""
    status = deployment.status
    state = state_of(deployment)
    if state in ("FAILED", "DEGRADED"):
        why = status.error.message
        if not why:
            why = next((each.error.message for each in status.revisions if each.error.message), "no reason was told")
        still = ""
        if status.serving_revision and status.serving_revision != deployment.revision and status.ready_replicas:
            why = why.rstrip(".")
            still = f"; revision {status.serving_revision} goes on serving"
        raise WorkFailed(
            f"deployment {to_key(deployment.name)} {'failed' if state == 'FAILED' else 'is degraded'}: {why}{still}",
            record=deployment,
            reason=status.reason or None,
        )
    return deployment


def remove(mesh: Mesh, name: str) -> None:
    """Stops a deployment and deletes it. Raises NotFound."""
    from noronha.v1 import runner_pb2

    mesh.runner.DeleteDeployment(runner_pb2.DeleteDeploymentRequest(name=name), timeout=120)
