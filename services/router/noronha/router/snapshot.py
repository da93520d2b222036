"""Turns deployments, replicas and traffic into everything Envoy is to know: a pure function and its cache.

    snapshot(deployments, replicas, traffic) -> Snapshot

A snapshot is immutable and consistent: what its routes name is among its clusters, what its clusters name is
among its endpoints. Each deployment contributes one `Part`, kept as long as nothing it follows from changes, so
one change among thousands of deployments costs the work for one of them and the copying of bytes for the rest.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from noronha.router import resources, splice, traffic
from noronha.router.edge import Edge, Endpoint
from noronha.router.resource_names import (
    MAIN_LISTENER,
    ROUTE_TABLE,
    UPDATE_CLUSTER,
    cluster_name,
    route_key,
    sticky_name,
)
from noronha.v1 import deployment_pb2, replica_pb2, traffic_pb2

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,250}[A-Za-z0-9_])?\.?")


class Item(NamedTuple):
    """One serialised resource."""

    digest: bytes
    """Hash of the content: equal digests mean that nothing needs to be sent."""
    data: bytes
    """The resource as a serialised `google.protobuf.Any`."""
    members: frozenset[str] = frozenset()
    """Names of the replicas that the resource holds."""


@dataclass(frozen=True)
class Part:
    """What one deployment contributes."""

    clusters: Mapping[str, Item]
    """Clusters that requests may reach, by name."""
    retiring: Mapping[str, Item]
    """Clusters of revisions that only have draining replicas: kept until no route of a proxy names them."""
    endpoints: Mapping[str, Item]
    """Replicas of each cluster, by its name, those of retiring clusters included."""
    entry: Item
    """Entry of the route table."""
    port: int
    """The deployment's own port, 0 when it has none or cannot have it."""
    listener: Item | None
    """Listener of that port."""
    traffic: bytes
    """The traffic that it follows, serialised without what only the record has; empty for none."""
    problems: tuple[str, ...]
    """What could not be done as asked, one line each."""
    port_problem: str
    """Why the own port can not be listened to, as far as the records tell; empty when it can."""


@dataclass(frozen=True)
class Snapshot:
    """Everything a proxy is to know at one time."""

    clusters: Mapping[str, Item]
    retiring: Mapping[str, Item]
    endpoints: Mapping[str, Item]
    listeners: Mapping[str, Item]
    routes: Mapping[str, Item]
    parts: Mapping[str, Part]
    edge: Edge
    ready: Mapping[str, tuple[tuple[str, Endpoint], ...]]
    """Ready replicas of each deployment: name and place, ordered by name."""


@dataclass
class Cache:
    """What stays between two calls of `snapshot`: the parts of deployments that did not change since."""

    parts: dict[str, tuple[object, Part]] = field(default_factory=dict)
    frame: tuple[Edge, Item, Item] | None = None


def digest(*pieces: bytes) -> bytes:
    """Returns what tells this content, the pieces in their order, from any other."""
    found = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        found.update(piece)
    return found.digest()


def item(data: bytes, members: Iterable[str] = ()) -> Item:
    """Returns a serialised resource with its digest; ``members`` are the replicas that it leads to."""
    return Item(digest(data), data, frozenset(members))


def snapshot(
    deployments: Iterable[deployment_pb2.Deployment],
    replicas: Iterable[replica_pb2.Replica],
    shares: Iterable[traffic_pb2.Traffic],
    edge: Edge,
    cache: Cache | None = None,
) -> Snapshot:
    """Builds the snapshot of these records. Records of deployments that do not exist are left out.

    With a `cache`, deployments whose records are as at the last call with it cost next to nothing.
    """
    cache = Cache() if cache is None else cache
    by_deployment: dict[str, list[replica_pb2.Replica]] = defaultdict(list)
    for replica in replicas:
        by_deployment[replica.name.rsplit("/replicas/", 1)[0]].append(replica)
    by_name = {each.name.removesuffix("/traffic"): each for each in shares}
    ordered = sorted(deployments, key=lambda each: each.name)
    owners = _port_owners(ordered, edge)

    parts: dict[str, Part] = {}
    ready: dict[str, tuple[tuple[str, Endpoint], ...]] = {}
    kept: dict[str, tuple[object, Part]] = {}
    for deployment in ordered:
        name = deployment.name
        seen = _Seen.of(deployment, by_deployment.get(name, ()), by_name.get(name), owners)
        before = cache.parts.get(name)
        part = before[1] if before is not None and before[0] == (seen, edge) else _part(seen, edge)
        kept[name] = ((seen, edge), part)
        parts[name] = part
        ready[name] = tuple((each.name, each.endpoint) for each in seen.replicas if each.ready)
    cache.parts = kept
    if cache.frame is None or cache.frame[0] != edge:
        cache.frame = edge, item(resources.update_cluster(edge)), item(resources.main_listener(edge))
    _, update, main = cache.frame

    clusters: dict[str, Item] = {UPDATE_CLUSTER: update}
    retiring: dict[str, Item] = {}
    endpoints: dict[str, Item] = {}
    listeners: dict[str, Item] = {MAIN_LISTENER: main}
    for name, part in parts.items():
        clusters.update(part.clusters)
        retiring.update(part.retiring)
        endpoints.update(part.endpoints)
        if part.listener is not None:
            listeners[name] = part.listener
    return Snapshot(
        clusters=MappingProxyType(clusters),
        retiring=MappingProxyType(retiring),
        endpoints=MappingProxyType(endpoints),
        listeners=MappingProxyType(listeners),
        routes=MappingProxyType({ROUTE_TABLE: route_table(parts)}),
        parts=MappingProxyType(parts),
        edge=edge,
        ready=MappingProxyType(ready),
    )


def route_table(parts: Mapping[str, Part]) -> Item:
    """Puts the route table of some deployments together."""
    entries = [part.entry for part in parts.values()]
    return Item(digest(*(each.digest for each in entries)), resources.table(each.data for each in entries))


class _Place(NamedTuple):
    """What matters of a replica."""

    name: str
    revision: int
    ready: bool
    endpoint: Endpoint


class _Seen(NamedTuple):
    """All that a deployment's part follows from; equal values make equal parts."""

    name: str
    serving: int
    health_check: bytes
    replicas: tuple[_Place, ...]
    traffic: bytes
    port: int
    port_problem: str
    problems: tuple[str, ...]

    @classmethod
    def of(
        cls,
        deployment: deployment_pb2.Deployment,
        replicas: Iterable[replica_pb2.Replica],
        shares: traffic_pb2.Traffic | None,
        owners: Mapping[int, str],
    ) -> _Seen:
        places, problems = [], []
        for replica in replicas:
            if replica.state not in (replica_pb2.Replica.READY, replica_pb2.Replica.DRAINING):
                continue
            if not _reachable(replica):
                problems.append(f"{replica.name} cannot be reached at {replica.host!r}, port {replica.port}")
                continue
            ready = replica.state == replica_pb2.Replica.READY
            endpoint = Endpoint(replica.host, replica.port)
            places.append(_Place(replica.name, replica.revision, ready, endpoint))
        port, port_problem = deployment.port, ""
        if port and (owner := owners[port]) != deployment.name:
            port_problem = f"port {port} belongs to {owner}; choose another with `--port`"
            problems.append(port_problem)
        said = b""
        if shares is not None:
            problems += [f"traffic: {path} {why}" for path, why in traffic.violations(shares)]
            said = traffic.asked(shares)
        return cls(
            name=deployment.name,
            serving=deployment.status.serving_revision,
            health_check=deployment.spec.health_check.SerializeToString(deterministic=True),
            replicas=tuple(sorted(places)),
            traffic=said,
            port=0 if port_problem else port,
            port_problem=port_problem,
            problems=tuple(problems),
        )


def _part(seen: _Seen, edge: Edge) -> Part:
    ready: dict[int, list[_Place]] = defaultdict(list)
    draining: dict[int, list[_Place]] = defaultdict(list)
    for place in seen.replicas:
        (ready if place.ready else draining)[place.revision].append(place)
    split = traffic.split(traffic_pb2.Traffic.FromString(seen.traffic), ready.keys(), seen.serving)
    # Where a revision has one replica, there is nothing to choose, and one cluster does for all requests.
    sticky = frozenset(revision for revision, places in ready.items() if len(places) > 1)
    clusters: dict[str, Item] = {}
    retiring: dict[str, Item] = {}
    endpoints: dict[str, Item] = {}
    for revision in ready.keys() | draining.keys():
        places, found = (ready[revision], clusters) if revision in ready else (draining[revision], retiring)
        names = [cluster_name(seen.name, revision)]
        if len(places) > 1:
            names.append(sticky_name(seen.name, revision))
        for number, name in enumerate(names):
            endpoints[name] = _assignment(name, places)
            found[name] = _cluster(name, places, seen.health_check, sticky=number == 1)
    key = route_key(seen.name)
    routes = resources.entry(seen.name, split, sticky, own_port=bool(seen.port), timeout=edge.request_timeout)
    entry = splice.map_entry(key, routes)
    return Part(
        clusters=MappingProxyType(clusters),
        retiring=MappingProxyType(retiring),
        endpoints=MappingProxyType(endpoints),
        entry=item(entry),
        port=seen.port,
        listener=item(resources.own_listener(seen.name, edge, seen.port)) if seen.port else None,
        traffic=seen.traffic,
        problems=seen.problems,
        port_problem=seen.port_problem,
    )


def _assignment(name: str, places: list[_Place]) -> Item:
    members = [place.name for place in places]
    if not resources.by_address(place.endpoint for place in places):
        places = []  # Envoy resolves them by the cluster's own list
    return item(resources.assignment(name, [place.endpoint for place in places]), members)


def _cluster(name: str, places: list[_Place], check: bytes, *, sticky: bool) -> Item:
    return item(resources.replica_cluster(name, [place.endpoint for place in places], check, sticky=sticky))


def _reachable(replica: replica_pb2.Replica) -> bool:
    if not 1 <= replica.port <= 65535:
        return False
    try:
        ipaddress.ip_address(replica.host)
    except ValueError:
        return bool(_HOST_NAME.fullmatch(replica.host)) and not replica.host.replace(".", "").isdigit()
    return True


def _port_owners(ordered: Iterable[deployment_pb2.Deployment], edge: Edge) -> dict[int, str]:
    """Gives each port that several deployments ask for to the oldest of them, and the router's own to nobody."""
    owners: dict[int, tuple[tuple[int, int], str]] = {}
    for deployment in ordered:
        if deployment.port:
            made = deployment.create_time.seconds, deployment.create_time.nanos
            held = owners.get(deployment.port)
            if held is None or made < held[0]:
                owners[deployment.port] = made, deployment.name
    found = {port: name for port, (_, name) in owners.items()}
    found[edge.port] = "the router itself (`router.port`)"
    return found
