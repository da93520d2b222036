"""Removing a project with everything that is its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from noronha.client import deployments, trainings, work
from noronha.client.listing import every
from noronha.rpc.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from noronha.client.connection import Mesh

CANCEL_TIMEOUT = 60.0
"""Seconds that a cancelled training has to end."""


def remove(mesh: Mesh, name: str) -> dict[str, list[str]]:
    """Stops and deletes a project's deployments, trainings and builds, then its record.

    Returns the full names of what was removed, by kind. Published versions belong to their models and stay. Each part
    is stopped before its record goes, so a failure leaves what is left visible; call it again. Raises NotFound; what
    the deletions raise.
    """
    from noronha.v1 import builder_pb2, metadata_pb2

    mesh.metadata.GetProject(metadata_pb2.GetProjectRequest(name=name))
    removed: dict[str, list[str]] = {"deployments": [], "trainings": [], "builds": []}
    listed = metadata_pb2.ListDeploymentsRequest(parent=name)
    for deployment in list(every(mesh.metadata.ListDeployments, listed, "deployments")):
        deployments.remove(mesh, deployment.name)
        removed["deployments"].append(deployment.name)
    of_project = metadata_pb2.ListTrainingsRequest(parent=name)
    found = list(every(mesh.metadata.ListTrainings, of_project, "trainings"))
    for training in found:
        if not work.has_ended(training):
            trainings.cancel(mesh, training.name)
    for training in found:
        _await_end(mesh, training.name)
        try:
            trainings.remove(mesh, training.name)
        except NotFound:
            continue
        removed["trainings"].append(training.name)
    built = metadata_pb2.ListBuildsRequest(parent=name)
    for build in list(every(mesh.metadata.ListBuilds, built, "builds")):
        mesh.builder.DeleteBuild(builder_pb2.DeleteBuildRequest(name=build.name), timeout=120)
        removed["builds"].append(build.name)
    mesh.metadata.DeleteProject(metadata_pb2.DeleteProjectRequest(name=name, force=True))
    return removed


def _await_end(mesh: Mesh, name: str) -> None:
    deadline = time.monotonic() + CANCEL_TIMEOUT
    while True:
        record = trainings.find(mesh, name)
        if record is None or work.has_ended(record):
            return
        if time.monotonic() > deadline:
            raise FailedPrecondition(
                f"{name} has not ended {CANCEL_TIMEOUT:.0f} s after it was cancelled; try again", reason="STILL_RUNNING"
            )
        time.sleep(0.1)
