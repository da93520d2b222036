"""The protocol, against a proxy that is only a model: what it is told, in which order, and that it never stands wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable

import pytest

from noronha.router.ads import AdsStream
from noronha.router.messages import DiscoveryRequest, DiscoveryResponse, Status
from noronha.router.resource_names import (
    CLUSTER,
    ENDPOINTS,
    LISTENER,
    MAIN_LISTENER,
    ROUTE_TABLE,
    ROUTES,
    UPDATE_CLUSTER,
    cluster_name,
)
from noronha.router.snapshot import Snapshot, snapshot
from noronha.v1 import deployment_pb2, replica_pb2

from .records import EDGE, deployment, replica

_CLUSTERS = re.compile(rb"projects/[A-Za-z0-9./-]+?/revisions/[0-9]+(?:/sticky)?")

Judge = Callable[[str, str, bytes], str]


class Model:
    """A proxy by the protocol's rules: takes what it is sent in order, acknowledges or refuses, subscribes.

    `judge(url, name, data)` returns why a resource is refused, or nothing. As Envoy does, it takes the good ones of an
    answer about clusters and listeners, and all or nothing of the others; clusters are acknowledged once they have
    been told their endpoints, and before those endpoints are.
    """

    def __init__(self, stream: AdsStream, judge: Judge = lambda url, name, data: "") -> None:
        self.stream = stream
        self.judge = judge
        self.have: dict[str, dict[str, bytes]] = {CLUSTER: {}, ENDPOINTS: {}, LISTENER: {}, ROUTES: {}}
        self.versions: dict[str, str] = {}
        self.told: list[tuple[str, tuple[str, ...]]] = []
        self._nonces: dict[str, str] = {}
        self._cold: set[str] = set()
        self._unacknowledged: DiscoveryRequest | None = None
        self._asked: dict[str, tuple[str, ...]] = {}

    def connect(self, stream: AdsStream | None = None) -> None:
        if stream is not None:
            self.stream, self._nonces, self._asked, self.told = stream, {}, {}, []
        for url in (CLUSTER, LISTENER):
            self.take(self._say(url))
        self.subscribe()

    def take(self, answers: Iterable[bytes]) -> None:
        queue = list(answers)
        while queue:
            answer = DiscoveryResponse.FromString(queue.pop(0))
            queue += self._take(answer)
            self.check()
            queue += self.subscribe_now()

    def subscribe(self) -> None:
        self.take(self.subscribe_now())

    def subscribe_now(self) -> list[bytes]:
        found = []
        services = tuple(sorted(name for name in self.have[CLUSTER] if "/revisions/" in name))
        if services != self._asked.get(ENDPOINTS, ()):
            found += self._say(ENDPOINTS, services)
        if self.have[LISTENER] and ROUTES not in self._asked:
            found += self._say(ROUTES, (ROUTE_TABLE,))
        return found

    def check(self) -> None:
        """Asserts what must hold after every single message: no route names a cluster that is not ready."""
        for table in self.have[ROUTES].values():
            for name in {each.decode() for each in _CLUSTERS.findall(table)}:
                assert name in self.have[CLUSTER], f"a route names {name}, which is gone or never came"
                assert name not in self._cold, f"a route names {name}, which is not ready"
                assert b"127.0.0.1" in self.have[ENDPOINTS][name], f"a route names {name}, which has no endpoints"

    def _take(self, answer: DiscoveryResponse) -> list[bytes]:
        url = answer.type_url
        named = {self._name(url, each.value): each.value for each in answer.resources}
        self.told.append((url, tuple(named)))
        self._nonces[url] = answer.nonce
        bad = {name: why for name, data in named.items() if (why := self.judge(url, name, data))}
        error = "\n".join(f"Error adding/updating {name}: {why}" for name, why in bad.items())
        have = self.have[url]
        if "whole" in bad.values():
            error = "out of memory"
        elif url in (CLUSTER, LISTENER):
            for name in set(have) - set(named):
                del have[name]
                self._cold.discard(name)
            for name, data in named.items():
                if name not in bad and have.get(name) != data:
                    have[name] = data
                    if url == CLUSTER and "/revisions/" in name:
                        self._cold.add(name)
        elif not bad:
            have.update(named)
            if url == ENDPOINTS:
                self._cold -= named.keys()
        if not bad:
            self.versions[url] = answer.version_info
        names = self._asked.get(url, ())
        request = DiscoveryRequest(
            type_url=url, response_nonce=answer.nonce, resource_names=list(names),
            version_info=self.versions.get(url, ""),
            error_detail=Status(code=13, message=error) if bad else None,
        )  # fmt: skip
        found = []
        if self._unacknowledged is not None and not self._cold:
            held, self._unacknowledged = self._unacknowledged, None
            found += self.stream.heard(held)
        if url == CLUSTER and self._cold:
            self._unacknowledged = request
        else:
            found += self.stream.heard(request)
        return found

    def _say(self, url: str, names: tuple[str, ...] = ()) -> list[bytes]:
        self._asked[url] = names
        return self.stream.heard(
            DiscoveryRequest(
                type_url=url,
                response_nonce=self._nonces.get(url, ""),
                resource_names=list(names),
                version_info=self.versions.get(url, ""),
            )
        )

    @staticmethod
    def _name(url: str, data: bytes) -> str:
        if url == ROUTES:
            return ROUTE_TABLE
        if url == LISTENER:
            return MAIN_LISTENER if MAIN_LISTENER.encode() in data else _first(rb"projects/[^\x00-\x1f]+", data)
        if UPDATE_CLUSTER.encode() in data and url == CLUSTER:
            return UPDATE_CLUSTER
        found = [each.decode() for each in _CLUSTERS.findall(data)]
        return max(found, key=len)


def _first(pattern: bytes, data: bytes) -> str:
    found = re.search(pattern, data)
    assert found is not None
    return found[0].decode()


def made(*parts: tuple[deployment_pb2.Deployment, list[replica_pb2.Replica]]) -> Snapshot:
    return snapshot([one for one, _ in parts], [each for _, replicas in parts for each in replicas], [], EDGE)


def one_deployment(revision: int, state: str = "READY") -> tuple[deployment_pb2.Deployment, list[replica_pb2.Replica]]:
    one = deployment("p/d")
    return one, [replica(one, f"r{revision}", 4000 + revision, revision=revision, state=state)]


def test_clusters_and_endpoints_come_before_listeners_and_routes() -> None:
    model = Model(AdsStream(made(one_deployment(1))))
    model.connect()
    assert [url for url, _ in model.told] == [CLUSTER, ENDPOINTS, ENDPOINTS, LISTENER, ROUTES]
    assert model.stream.settled
    assert model.stream.replicas("projects/p/deployments/d") == {"projects/p/deployments/d/replicas/r1"}


def test_nothing_is_said_before_the_first_snapshot() -> None:
    model = Model(AdsStream())
    model.connect()
    assert model.told == []
    assert not model.stream.settled
    assert model.stream.replicas("projects/p/deployments/d") is None
    model.take(model.stream.saw(made(one_deployment(1))))
    assert model.stream.settled


def test_what_did_not_change_is_not_sent_again() -> None:
    model = Model(AdsStream(made(one_deployment(1))))
    model.connect()
    model.told.clear()
    model.take(model.stream.saw(made(one_deployment(1))))
    assert model.told == []
    one, replicas = one_deployment(1)
    replicas[0].port = 9999
    model.take(model.stream.saw(made((one, replicas))))
    assert [url for url, _ in model.told] == [ENDPOINTS]


def test_a_proxy_that_comes_back_to_another_router_is_left_alone() -> None:
    model = Model(AdsStream(made(one_deployment(1))))
    model.connect()
    model.connect(AdsStream(made(one_deployment(1))))
    assert not [url for url, _ in model.told if url in (CLUSTER, LISTENER)]
    assert model.stream.settled


def test_an_old_cluster_goes_only_after_the_routes_have_left_it() -> None:
    one = deployment("p/d")
    model = Model(AdsStream(made(one_deployment(1))))
    model.connect()
    model.told.clear()
    model.take(model.stream.saw(made(one_deployment(2))))
    old, new = cluster_name(one.name, 1), cluster_name(one.name, 2)
    assert [(url, set(names) - {UPDATE_CLUSTER}) for url, names in model.told] == [
        (CLUSTER, {old, new}), (ENDPOINTS, {new}), (ENDPOINTS, {new}), (ROUTES, {ROUTE_TABLE}), (CLUSTER, {new}),
    ]  # fmt: skip
    assert set(model.have[CLUSTER]) == {UPDATE_CLUSTER, new}


def test_a_router_that_restarts_in_the_middle_of_a_replacement_keeps_the_old_cluster_for_the_old_routes() -> None:
    model = Model(AdsStream(made(one_deployment(1))))
    model.connect()
    one, draining = one_deployment(1, state="DRAINING")
    now = made((one, draining + one_deployment(2)[1]))
    model.connect(AdsStream(now))
    assert model.stream.settled
    assert set(model.have[CLUSTER]) == {UPDATE_CLUSTER, cluster_name(one.name, 2)}


def test_a_refused_listener_is_left_out_and_offered_again() -> None:
    busy, free = deployment("p/busy", port=7000), deployment("p/free", port=7001)
    taken = {busy.name}

    def judge(url: str, name: str, data: bytes) -> str:
        return "cannot bind '127.0.0.1:7000': Address already in use" if name in taken else ""

    now = made((busy, [replica(busy, "r", 1)]), (free, [replica(free, "r", 2)]))
    model = Model(AdsStream(now), judge)
    model.connect()
    assert set(model.have[LISTENER]) == {MAIN_LISTENER, free.name}
    assert model.stream.settled
    assert model.stream.refusal(LISTENER, busy.name) == "cannot bind '127.0.0.1:7000': Address already in use"
    assert model.stream.refusal(LISTENER, free.name) == ""
    assert model.stream.accepts(LISTENER, free.name)
    assert not model.stream.accepts(LISTENER, busy.name)
    model.take(model.stream.retry())
    assert model.stream.refused
    taken.clear()
    model.take(model.stream.retry())
    assert set(model.have[LISTENER]) == {MAIN_LISTENER, free.name, busy.name}
    assert model.stream.refused == {}


def test_every_listener_refused_means_no_requests_and_no_waiting_for_routes() -> None:
    one, replicas = one_deployment(1)
    model = Model(AdsStream(made((one, replicas))), lambda url, name, data: "in use" if url == LISTENER else "")
    model.connect()
    assert model.stream.settled
    assert model.stream.replicas(one.name) == {replicas[0].name}


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_a_refused_route_holds_up_nobody_else(count: int) -> None:
    names = [f"d{index:02}" for index in range(count + 2)]
    parts = [(each, [replica(each, "r", 4000)]) for each in map(deployment, (f"p/{name}" for name in names))]
    bad = parts[count // 2][0].name

    def judge(url: str, name: str, data: bytes) -> str:
        return "no such thing" if url == ROUTES and f"{bad}/revisions/1".encode() in data else ""

    model = Model(AdsStream(made(*parts[:1]) if count > 2 else made()), judge)
    model.connect()
    model.take(model.stream.saw(made(*parts)))
    table = model.have[ROUTES][ROUTE_TABLE]
    for one, _ in parts:
        assert (f"{one.name}/revisions/1".encode() in table) == (one.name != bad)
    assert model.stream.route_refusal(bad)
    assert {name for name in model.stream.refused} == {bad}
    mended = [(one, [replica(one, "r", 4000, revision=2)] if one.name == bad else kept) for one, kept in parts]
    model.take(model.stream.saw(made(*mended)))
    assert f"{bad}/revisions/2".encode() in model.have[ROUTES][ROUTE_TABLE]
    assert model.stream.refused == {}
    assert model.stream.settled


def test_a_refused_cluster_holds_up_nobody_else() -> None:
    parts = [(each, [replica(each, "r", 4000)]) for each in map(deployment, ("p/a", "p/ab"))]
    bad = cluster_name(parts[0][0].name, 1)
    model = Model(AdsStream(made(*parts)), lambda url, name, data: "bad" if (url, name) == (CLUSTER, bad) else "")
    model.check = lambda: None  # type: ignore[method-assign]
    model.connect()
    assert set(model.have[CLUSTER]) == {UPDATE_CLUSTER, cluster_name(parts[1][0].name, 1)}
    assert list(model.stream.refused) == [bad]


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_a_refused_cluster_that_the_proxy_does_not_name_is_found(count: int) -> None:
    parts = [(each, [replica(each, "r", 4000)]) for each in (deployment(f"p/d{index}") for index in range(count))]
    bad = cluster_name(parts[count // 2][0].name, 1)

    def judge(url: str, name: str, data: bytes) -> str:
        return "whole" if (url, name) == (CLUSTER, bad) else ""

    model = Model(AdsStream(made()), judge)
    model.check = lambda: None  # type: ignore[method-assign]
    model.connect()
    model.take(model.stream.saw(made(*parts)))
    names = {cluster_name(one.name, 1) for one, _ in parts}
    assert set(model.have[CLUSTER]) == {UPDATE_CLUSTER, *names} - {bad}
    assert model.stream.refused == {bad: "out of memory"}
    assert model.stream.settled


def test_a_listener_that_cannot_move_stays_where_it_is() -> None:
    one, other = deployment("p/d", port=7000), deployment("p/d", port=7001)

    def judge(url: str, name: str, data: bytes) -> str:
        return "in use" if url == LISTENER and b"\x18\xd9\x36" in data else ""  # port 7001 as a field

    model = Model(AdsStream(made((one, []))), judge)
    model.connect()
    before = model.have[LISTENER][one.name]
    model.take(model.stream.saw(made((other, []))))
    assert model.have[LISTENER][one.name] == before
    assert model.stream.refusal(LISTENER, one.name) == "in use"
    assert model.stream.settled


def test_requests_that_an_answer_has_overtaken_are_ignored() -> None:
    stream = AdsStream(made(one_deployment(1)))
    stream.heard(DiscoveryRequest(type_url=CLUSTER))
    assert stream.heard(DiscoveryRequest(type_url=CLUSTER, response_nonce="0")) == []
    assert stream.heard(DiscoveryRequest(type_url=CLUSTER, response_nonce="999")) == []
    assert stream.heard(DiscoveryRequest(type_url="type.googleapis.com/other")) == []
    assert not stream.settled


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_no_route_ever_names_a_missing_cluster(seed: int) -> None:
    """Random histories of records, refusals and reconnections; the model asserts after each message."""
    chance = random.Random(seed)
    print("seed", seed)
    refused: set[str] = set()

    def judge(url: str, name: str, data: bytes) -> str:
        return "in use" if url == LISTENER and name in refused else ""

    model = Model(AdsStream(), judge)
    model.connect()
    now = made()
    for _ in range(25):
        parts = []
        for index in range(chance.randrange(5)):
            one = deployment(f"p/d{index}", port=chance.choice([0, 7000 + index]), serving=chance.randrange(4))
            states = ["READY", "READY", "DRAINING", "STARTING", "FAILED"]
            replicas = [
                replica(one, f"r{number}", 4000 + chance.randrange(9), revision=chance.randrange(1, 4),
                        state=chance.choice(states))
                for number in range(chance.randrange(4))
            ]  # fmt: skip
            parts.append((one, replicas))
        before, now = now, made(*parts)
        match chance.randrange(6):
            case 0:  # a Router that restarts knows the records as they are, not what was routed before
                model.connect(AdsStream(before))
                model.take(model.stream.saw(now))
            case 1:
                refused = {f"projects/p/deployments/d{chance.randrange(5)}"}
                model.take(model.stream.saw(now))
                model.take(model.stream.retry())
            case _:
                model.take(model.stream.saw(now))
    refused.clear()
    model.take(model.stream.retry())
    assert model.stream.settled
    assert {name: each.data for name, each in now.clusters.items()}.keys() == model.have[CLUSTER].keys()
    assert set(model.have[LISTENER]) == set(now.listeners)
    for name, part in now.parts.items():
        assert model.stream.replicas(name) == {
            member for service in part.clusters for member in now.endpoints[service].members
        }
