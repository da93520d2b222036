"""What has to run for a training or a replica: pure functions from records to workloads."""

from __future__ import annotations

from collections.abc import Mapping

from noronha.rpc import names
from noronha.runner.backend import Workload
from noronha.v1 import deployment_pb2, replica_pb2, training_pb2

SERVING_PORT = 8080
"""Port of a replica where each has an address of its own."""

ON_BOARD: Mapping[str, str] = {"AM_I_ON_BOARD": "Yes"}
"""Variables of every task."""

RESERVED = frozenset(
    {
        "AM_I_ON_BOARD", "CONTAINER_PURPOSE", "IS_IT_OPEN_SEA",
        "APP_HOME", "LOCAL_DATA_DIR", "LOCAL_MODEL_DIR", "LOG_DIR", "SHARED_DATA_DIR", "SHARED_MODEL_DIR",
        "CONDA_HOME", "CONDA_VENV", "PATH", "HOME", "TMPDIR", "JPY_PARENT_PID", "IN_NORONHA_TASK",
        "LD_PRELOAD", "LD_AUDIT", "PYTHONHOME", "PYTHONPATH",
    }
)  # fmt: skip
"""Names that a user's variables cannot have: Noronha sets them, or what it runs itself would load something else."""

RESERVED_PREFIXES = ("NHA_", "NORONHA_")


def training_id(training: training_pb2.Training, tenant: str) -> str:
    """Returns the workload's id of a training: of this record, not of a later one by the same name."""
    return _id("train", names.parse(training.name, "training"), training.create_time.ToNanoseconds(), tenant)


def replica_id(replica: replica_pb2.Replica, tenant: str) -> str:
    """Returns the workload's id of a replica."""
    return _id("depl", names.parse(replica.name, "replica"), replica.create_time.ToNanoseconds(), tenant)


def _id(kind: str, name: names.Name, made: int, tenant: str) -> str:
    # Short: sockets lie below folders of this name, and their paths are bounded.
    return names.for_platform(kind, name.ids[-1], str(name), str(made), tenant, limit=32)


def of_training(
    training: training_pb2.Training, *, id: str, address: str = "", token: str = "", grace: float = 10.0
) -> Workload:
    """Returns the workload of a training."""
    return Workload(
        id=id,
        resource=training.name,
        purpose="nha-train",
        environment={**training.environment, **ON_BOARD, "CONTAINER_PURPOSE": "nha-train"},
        artifact=training.build_snapshot.artifact,
        mounts=tuple(training.mounts),
        resources=training.resources,
        address=address,
        token=token,
        timeout=training.timeout.ToMilliseconds() / 1000,
        grace=grace,
    )


def of_replica(
    replica: replica_pb2.Replica,
    spec: deployment_pb2.DeploymentSpec,
    *,
    id: str,
    address: str = "",
    token: str = "",
    grace: float = 10.0,
) -> Workload:
    """Returns the workload of one replica of a revision with this spec."""
    return Workload(
        id=id,
        resource=replica.name,
        purpose="nha-depl",
        environment={**spec.environment, **ON_BOARD, "CONTAINER_PURPOSE": "nha-depl", "IS_IT_OPEN_SEA": "Yes"},
        artifact=spec.build_snapshot.artifact,
        mounts=tuple(spec.mounts),
        resources=spec.resources,
        port=SERVING_PORT,
        health_check=spec.health_check if spec.HasField("health_check") else None,
        address=address,
        token=token,
        grace=grace,
    )
