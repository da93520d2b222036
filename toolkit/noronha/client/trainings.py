"""Trainings as a client starts and follows them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from noronha.client import work
from noronha.client.connection import Notice, silent
from noronha.client.follow import Following
from noronha.client.references import to_key
from noronha.rpc.errors import NotFound

if TYPE_CHECKING:
    from noronha.client.connection import Mesh
    from noronha.v1 import mount_pb2, resources_pb2, training_pb2


def create(
    mesh: Mesh,
    project: str,
    *,
    build: str,
    notebook: str,
    training_id: str = "",
    params_json: str = "",
    datasets: Sequence[str] = (),
    pretrained: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    mounts: Sequence[mount_pb2.Mount] = (),
    resources: resources_pb2.Resources | None = None,
    target_deployment: str = "",
    details_json: str = "",
    replace: bool = False,
    request_id: str = "",
) -> training_pb2.Training:
    """Starts a training and returns its record, PENDING.

    ``project``, ``build``, ``datasets``, ``pretrained`` and ``target_deployment`` are full names, the build's tag with
    or without ``@n``. ``replace`` puts it in the place of one of its name that has ended. Raises as
    ``Runner.CreateTraining``.
    """
    from noronha.rpc.dial import new_request_id
    from noronha.v1 import runner_pb2, training_pb2

    training = training_pb2.Training(
        build=build, notebook=notebook, params_json=params_json, datasets=datasets, pretrained=pretrained,
        environment=environment or {}, mounts=mounts, resources=resources, target_deployment=target_deployment,
        details_json=details_json,
    )  # fmt: skip
    return mesh.runner.CreateTraining(
        runner_pb2.CreateTrainingRequest(
            parent=project, training_id=training_id, training=training, replace=replace,
            request_id=request_id or new_request_id(),
        )
    )


def follow(mesh: Mesh, name: str, *, lines: int = 0) -> Following:
    """Follows a training's record and log until it has ended; ``lines`` starts with about so many of the last ones."""
    return Following(mesh, name, work.has_ended, mesh.runner.TailLogs, lines=lines)


def check(training: training_pb2.Training) -> training_pb2.Training:
    """Returns a training that ended well. Raises WorkFailed or WorkCancelled with its reason for another."""
    return work.check(training, f"training {to_key(training.name)}")


def cancel(mesh: Mesh, name: str) -> training_pb2.Training:
    """Asks a training to end and returns its record. Raises NotFound."""
    from noronha.v1 import runner_pb2

    return mesh.runner.CancelTraining(runner_pb2.CancelTrainingRequest(name=name))


def get(mesh: Mesh, name: str) -> training_pb2.Training:
    """Returns a training. Raises NotFound."""
    from noronha.v1 import metadata_pb2

    return mesh.metadata.GetTraining(metadata_pb2.GetTrainingRequest(name=name))


def find(mesh: Mesh, name: str) -> training_pb2.Training | None:
    """Returns a training, None when there is none of that name."""
    try:
        return get(mesh, name)
    except NotFound:
        return None


def executed_notebook(mesh: Mesh, name: str, *, notice: Notice = silent) -> Iterator[bytes]:
    """Yields the notebook as a training executed it, outputs included, in chunks.

    ``notice`` is told of an absence of Store that lasts. Raises NotFound, also ``NOT_EXECUTED`` for a training that has
    not come that far.
    """
    from noronha.client import transfer

    training = get(mesh, name)
    if not training.executed_notebook.digest:
        raise NotFound(f"{to_key(name)} has no executed notebook yet; it is kept when it ends", reason="NOT_EXECUTED")
    yield from transfer.read(mesh.store, training.executed_notebook, notice=notice)


def remove(mesh: Mesh, name: str) -> None:
    """Deletes a training with its log. Raises NotFound; FailedPrecondition ``STILL_RUNNING``."""
    from noronha.v1 import runner_pb2

    mesh.runner.DeleteTraining(runner_pb2.DeleteTrainingRequest(name=name))
