"""How Envoy's resources are named: their types, those that Router makes once, and those of each deployment."""

from __future__ import annotations

CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINTS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE_LIST = "type.googleapis.com/envoy.config.route.v3.RouteList"
ROUTES = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"

ROUTE_TABLE = "deployments"
MAIN_LISTENER = "noronha-router"
UPDATE_CLUSTER = "noronha-router/update"


def cluster_name(deployment: str, revision: int) -> str:
    """Names the cluster of a revision; requests with nothing to stick to are balanced over it."""
    return f"{deployment}/revisions/{revision}"


def sticky_name(deployment: str, revision: int) -> str:
    """Names the cluster of the same replicas that keeps equal keys on equal replicas."""
    return f"{deployment}/revisions/{revision}/sticky"


def route_key(deployment: str) -> str:
    """Returns how requests say that they are for this deployment; ids hold no slash, so keys never meet."""
    _, project, _, name = deployment.split("/")
    return f"{project}/{name}"
