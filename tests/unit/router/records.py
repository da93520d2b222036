"""Records that snapshots are made of, in few words."""

from __future__ import annotations

from noronha.router.edge import Edge
from noronha.v1 import deployment_pb2, replica_pb2, traffic_pb2

EDGE = Edge("127.0.0.1", 30080, "/nowhere/u")


def deployment(name: str, *, port: int = 0, serving: int = 0, made: int = 0) -> deployment_pb2.Deployment:
    project, _, last = name.partition("/")
    record = deployment_pb2.Deployment(name=f"projects/{project}/deployments/{last}", port=port)
    record.status.serving_revision = serving
    record.create_time.seconds = made
    return record


def replica(
    owner: deployment_pb2.Deployment, name: str, port: int, *, revision: int = 1, state: str = "READY", host: str = ""
) -> replica_pb2.Replica:
    return replica_pb2.Replica(
        name=f"{owner.name}/replicas/{name}",
        revision=revision,
        state=replica_pb2.Replica.State.Value(state),
        host=host or "127.0.0.1",
        port=port,
    )


def traffic(
    owner: deployment_pb2.Deployment, *targets: traffic_pb2.TrafficTarget, key: str = ""
) -> traffic_pb2.Traffic:
    return traffic_pb2.Traffic(name=f"{owner.name}/traffic", targets=targets, sticky_key=key)
