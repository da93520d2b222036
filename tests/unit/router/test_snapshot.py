"""What follows from records, without a proxy."""

from __future__ import annotations

import pytest

from noronha.router import resources
from noronha.router.resource_names import cluster_name
from noronha.router.snapshot import Cache, snapshot
from noronha.router.traffic import Split, split, violations
from noronha.v1 import health_check_pb2, traffic_pb2

from .records import EDGE, deployment, replica, traffic

Target = traffic_pb2.TrafficTarget


def test_one_change_touches_only_its_own() -> None:
    deployments = [deployment(f"p/d{index}") for index in range(50)]
    replicas = [replica(each, "r", 4000 + index) for index, each in enumerate(deployments)]
    cache = Cache()
    before = snapshot(deployments, replicas, [], EDGE, cache)
    replicas[7] = replica(deployments[7], "r", 5000)
    after = snapshot(deployments, replicas, [], EDGE, cache)
    changed = [name for name in after.parts if after.parts[name] is not before.parts[name]]
    assert changed == [deployments[7].name]
    assert after.routes == before.routes
    assert after.clusters == before.clusters
    service = cluster_name(deployments[7].name, 1)
    assert [name for name in after.endpoints if after.endpoints[name] != before.endpoints[name]] == [service]


def test_the_cache_changes_nothing_but_the_cost() -> None:
    one, two = deployment("p/a", port=7000), deployment("p/b")
    replicas = [replica(one, "r1", 1), replica(one, "r2", 2), replica(two, "r1", 3)]
    shares = [traffic(one, Target(revision=1, weight=1), key="?user")]
    cache = Cache()
    snapshot([one], replicas[:1], [], EDGE, cache)
    assert snapshot([two, one], replicas, shares, EDGE, cache) == snapshot([one, two], replicas, shares, EDGE)


def test_only_ready_replicas_are_routed_and_draining_ones_kept_for_the_routes_that_were() -> None:
    one = deployment("p/d", serving=1)
    made = snapshot(
        [one],
        [
            replica(one, "old", 1, revision=1, state="DRAINING"),
            replica(one, "new", 2, revision=2),
            replica(one, "leaving", 3, revision=2, state="DRAINING"),
            replica(one, "starting", 4, revision=3, state="STARTING"),
            replica(one, "failed", 5, revision=2, state="FAILED"),
            replica(one, "stopped", 6, revision=2, state="STOPPED"),
        ],
        [],
        EDGE,
    )
    part = made.parts[one.name]
    old, new = cluster_name(one.name, 1), cluster_name(one.name, 2)
    assert set(part.clusters) == {new}
    assert set(part.retiring) == {old}
    assert made.endpoints[new].members == {f"{one.name}/replicas/new"}
    assert made.endpoints[old].members == {f"{one.name}/replicas/old"}
    assert [name for name, _ in made.ready[one.name]] == [f"{one.name}/replicas/new"]


def test_a_port_belongs_to_the_oldest_that_asks_for_it() -> None:
    old, young = deployment("p/z", port=7000, made=1), deployment("p/a", port=7000, made=2)
    router = deployment("p/r", port=EDGE.port)
    made = snapshot([young, old, router], [], [], EDGE)
    assert old.name in made.listeners
    assert young.name not in made.listeners
    assert old.name in made.parts[young.name].port_problem
    assert "router.port" in made.parts[router.name].port_problem
    assert made.parts[old.name].port_problem == ""


@pytest.mark.parametrize(
    ("host", "port"),
    [("", 1), ("127.0.0.1", 0), ("127.0.0.1", 65536), ("a b", 1), ("-x", 1), ("1.2.3", 1), ("::1", -1)],
)
def test_a_replica_without_a_place_is_told_and_left_out(host: str, port: int) -> None:
    one = deployment("p/d")
    bad = replica(one, "bad", 1)
    bad.host, bad.port = host, port
    part = snapshot([one], [bad, replica(one, "good", 2)], [], EDGE).parts[one.name]
    assert "bad" in part.problems[0]
    (service,) = part.clusters
    assert part.endpoints[service].members == {f"{one.name}/replicas/good"}


def test_replicas_with_dns_names_are_resolved_by_the_proxy() -> None:
    one = deployment("p/d")
    part = snapshot([one], [replica(one, "r", 80, host="tasks.nha-depl")], [], EDGE).parts[one.name]
    (cluster,) = part.clusters.values()
    assert b"tasks.nha-depl" in cluster.data


def test_bad_traffic_on_record_does_not_take_a_deployment_down() -> None:
    one = deployment("p/d")
    shares = traffic(one, Target(revision=1, header_matches={"Bad Header": "x"}))
    made = snapshot([one], [replica(one, "r", 1)], [shares], EDGE)
    plain = snapshot([one], [replica(one, "r", 1)], [], EDGE)
    assert made.routes == plain.routes
    assert any("header_matches" in each for each in made.parts[one.name].problems)


SPLITS = [
    # ready revisions, serving, targets -> weights
    ({1}, 1, [], ((1, 1),)),
    ({1, 2}, 1, [], ((1, 1),)),
    ({1, 2}, 0, [], ((2, 1),)),
    ({2}, 1, [], ((2, 1),)),
    ({1, 2}, 2, [Target(revision=1, weight=9), Target(revision=2, weight=1)], ((1, 9), (2, 1))),
    ({1, 2}, 2, [Target(revision=0, weight=9), Target(revision=1, weight=1)], ((1, 1), (2, 9))),
    ({2}, 2, [Target(revision=1, weight=9), Target(revision=2, weight=1)], ((2, 1),)),
    ({3}, 3, [Target(revision=1, weight=9), Target(revision=2, weight=1)], ((3, 1),)),
    ({1, 2}, 2, [Target(revision=1, weight=1), Target(revision=1, weight=2)], ((1, 3),)),
]


@pytest.mark.parametrize(("ready", "serving", "targets", "weights"), SPLITS)
def test_who_gets_the_requests(
    ready: set[int], serving: int, targets: list[Target], weights: tuple[tuple[int, int], ...]
) -> None:
    assert split(traffic_pb2.Traffic(targets=targets), ready, serving) == Split(weights)


def test_nobody_gets_them_when_nothing_is_ready() -> None:
    assert split(traffic_pb2.Traffic(targets=[Target(revision=1, weight=1)]), set(), 1) is None


ALL = Target(weight=1)
BAD = [
    (traffic_pb2.Traffic(targets=[Target(weight=-1), ALL]), "targets[0].weight"),
    (traffic_pb2.Traffic(targets=[Target(weight=1_000_001), ALL]), "targets[0].weight"),
    (traffic_pb2.Traffic(targets=[Target(revision=-1, weight=1), ALL]), "targets[0].revision"),
    (traffic_pb2.Traffic(targets=[Target(mirror_percent=100.5), ALL]), "targets[0].mirror_percent"),
    (traffic_pb2.Traffic(targets=[Target(mirror_percent=float("nan")), ALL]), "targets[0].mirror_percent"),
    (traffic_pb2.Traffic(targets=[Target(mirror_percent=float("inf")), ALL]), "targets[0].mirror_percent"),
    (traffic_pb2.Traffic(targets=[Target(header_matches={"X-Upper": "1"}), ALL]), "targets[0].header_matches"),
    (traffic_pb2.Traffic(targets=[Target(header_matches={"": "1"}), ALL]), "targets[0].header_matches"),
    (traffic_pb2.Traffic(targets=[Target(header_matches={":path": "/"}), ALL]), "targets[0].header_matches"),
    (traffic_pb2.Traffic(targets=[Target(header_matches={"x-nha-own-port": "1"}), ALL]), "targets[0].header_matches"),
    (traffic_pb2.Traffic(targets=[Target(header_matches={"a": "\n"}), ALL]), "targets[0].header_matches"),
    (traffic_pb2.Traffic(targets=[Target(header_matches={"a": "x" * 1025}), ALL]), "targets[0].header_matches"),
    (traffic_pb2.Traffic(targets=[Target(weight=1, header_matches={"a": "x"}), ALL]), "targets[0].weight"),
    (traffic_pb2.Traffic(targets=[Target(revision=1)]), "targets"),
    (traffic_pb2.Traffic(targets=[ALL] * 101), "targets"),
    (traffic_pb2.Traffic(sticky_key="?"), "sticky_key"),
    (traffic_pb2.Traffic(sticky_key="?a&b"), "sticky_key"),
    (traffic_pb2.Traffic(sticky_key="X-User"), "sticky_key"),
    (traffic_pb2.Traffic(sticky_key="x-envoy-user"), "sticky_key"),
]


@pytest.mark.parametrize(("bad", "path"), BAD)
def test_what_traffic_cannot_be(bad: traffic_pb2.Traffic, path: str) -> None:
    assert path in [found for found, _ in violations(bad)]


def test_traffic_that_is_right_has_no_violations() -> None:
    good = traffic_pb2.Traffic(
        targets=[Target(revision=1, weight=90), Target(weight=10), Target(revision=3, mirror_percent=2.5),
                 Target(revision=2, header_matches={"x-who": "me", "x-b": ""})],
        sticky_key="?user",
    )  # fmt: skip
    assert violations(good) == []
    assert violations(traffic_pb2.Traffic()) == []


def test_what_a_health_check_leaves_open_is_what_the_contract_says() -> None:
    (check,) = resources.health_checks(health_check_pb2.HealthCheck())
    assert (check.interval, check.timeout, check.unhealthy_threshold) == (resources.seconds(30), resources.seconds(3), 3)
