"""What clients get from the real Envoy."""

from __future__ import annotations

import asyncio
import collections
import hashlib
import http.client
import os
import threading

import pytest

from noronha.v1 import traffic_pb2
from tests.waiting import free_port, listening

from .rig import Answer, Rig, ask, eventually

pytestmark = pytest.mark.timeout(90)


async def test_a_request_reaches_its_deployment_unchanged(rig: Rig) -> None:
    for name in ("homolog", "homolog2"):
        rig.replica(rig.deployment(f"botanics/{name}"), "r1", rig.upstream(name))
    await rig.apply()
    for name in ("homolog", "homolog2"):
        answer = await ask(rig.port, f"/predict?project=botanics&deploy={name}&model_version=v1&x=%20y")
        assert answer.status == 200
        assert answer.json["label"] == name
        assert answer.json["path"] == f"/predict?project=botanics&deploy={name}&model_version=v1&x=%20y"


async def test_names_that_join_alike_do_not_meet(rig: Rig) -> None:
    for name in ("a/b-c", "a-b/c"):
        rig.replica(rig.deployment(name), "r1", rig.upstream(name))
    await rig.apply()
    for name in ("a/b-c", "a-b/c"):
        project, _, deployment = name.partition("/")
        answer = await ask(rig.port, f"/predict?project={project}&deploy={deployment}")
        assert answer.json["label"] == name


async def test_any_body_and_content_type_pass_through(rig: Rig) -> None:
    rig.replica(rig.deployment("p/d"), "r1", upstream := rig.upstream("d"))
    await rig.apply()
    large = os.urandom(10 << 20)
    for body, kind in ((b"5", "application/json"), (b"", "text/csv"), (b"\x00\xff", ""), (large, "image/png")):
        headers = {"x-echo": "1", **({"content-type": kind} if kind else {})}
        answer = await ask(rig.port, "/predict?project=p&deploy=d", body=body, headers=headers)
        assert answer.status == 200
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(body).digest()
        assert answer.headers["content-type"] == kind
    upstream.status = 418
    assert (await ask(rig.port, "/predict?project=p&deploy=d")).status == 418


async def test_what_is_served_nowhere_is_said_in_json(rig: Rig) -> None:
    rig.replica(rig.deployment("p/d"), "r1", upstream := rig.upstream("d"))
    rig.deployment("p/empty")
    await rig.apply()
    root = await ask(rig.port, "/", method="GET", body=None)
    assert (root.status, root.body) == (200, b"OK")

    unknown = await ask(rig.port, "/predict?project=p&deploy=other")
    assert unknown.status == 404
    assert unknown.json == {"router_error": "deployment other of project p does not exist"}
    assert unknown.headers["content-type"] == "application/json"

    for query in ("", "?project=p", "?deploy=d", "?project=&deploy=", "?project=p&deploy="):
        for path in ("/predict", "/update"):
            missing = await ask(rig.port, path + query)
            assert missing.status == 400
            assert missing.json["expected"] == f"{path}?project=<project_name>&deploy=<deploy_name>"
            assert missing.json["router_error"]

    elsewhere = await ask(rig.port, "/health?project=p&deploy=d", method="GET", body=None)
    assert elsewhere.status == 404
    assert "router_error" in elsewhere.json

    empty = await ask(rig.port, "/predict?project=p&deploy=empty")
    assert empty.status == 503
    assert empty.json == {"router_error": "deployment p/empty has no ready replica"}
    assert upstream.seen == []


QUERIES = [
    "project=a@evil&deploy=x",
    "project=p@127.0.0.1:1/x%23&deploy=d",
    "project=p%2Fd&deploy=",
    "project=&deploy=p%2Fd",
    "project=p%00&deploy=d",
    "project=p%0d%0ax-nha-deployment:%20p/d&deploy=z",
    "project=p/../p&deploy=d",
    "project=%70%252fd&deploy=d",
    "project=%F0%9F%98%80&deploy=%ff%fe",
    "project=p%22%7d&deploy=d",
    "project=nobody&deploy=",
    "project=P&deploy=D",
    "project=p%0a&deploy=d",
    "project=p&deploy=d%0A",
    "project=%EF%BD%90&deploy=d",
    "project=%D1%80&deploy=d",
    "project=..%2F..%2Fp&deploy=d",
    "project=p:d&deploy=",
    "project=p%20&deploy=d",
    "project=-p&deploy=--d",
    f"project={'p' * 65}&deploy=d",
    "project=p#&deploy=d",
]


async def test_no_query_reaches_what_it_does_not_name(rig: Rig) -> None:
    rig.replica(rig.deployment("p/d"), "r1", upstream := rig.upstream("d"))
    await rig.apply()
    for query in QUERIES:
        answer = await ask(rig.port, f"/predict?{query}")
        assert answer.status in (400, 404), query
        if answer.body:
            assert "router_error" in answer.json, query
    assert upstream.seen == []
    assert rig.envoy.running()


async def test_headers_of_clients_do_not_route(rig: Rig) -> None:
    rig.replica(rig.deployment("p/d"), "r1", upstream := rig.upstream("d"))
    await rig.apply()
    spoofed = {
        "x-nha-deployment": "p/d", "x-nha-own-port": "1", "X-Envoy-Original-Path": "/predict?project=p&deploy=d",
        "x-envoy-decorator-operation": "x", "x-forwarded-host": "p", "x-envoy-internal": "true",
    }  # fmt: skip
    answer = await ask(rig.port, "/predict?project=p&deploy=none", headers=spoofed)
    assert answer.status == 404
    assert upstream.seen == []


async def test_headers_of_clients_do_not_change_how_requests_are_treated(rig: Rig) -> None:
    rig.replica(rig.deployment("p/d"), "r1", rig.upstream("d"))
    await rig.apply()
    headers = {
        "x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-max-retries": "9", "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-alt-stat-name": "x", "x-nha-anything": "1", "x-mine": "kept", "x-request-id": "mine-too",
    }  # fmt: skip
    answer = await ask(rig.port, "/predict?project=p&deploy=d", headers=headers)
    got = answer.json["headers"]
    assert [name for name in got if name.startswith("x-nha-")] == []
    assert [name for name in got if name in headers and name.startswith("x-envoy")] == []
    assert got["x-mine"] == "kept"
    assert got["x-request-id"] == "mine-too"


async def test_replicas_are_balanced_evenly(rig: Rig) -> None:
    one = rig.deployment("p/d")
    for index in range(3):
        rig.replica(one, f"r{index}", rig.upstream(f"u{index}"))
    await rig.apply()
    await all_healthy(rig, 3)
    counts = collections.Counter(
        [(await ask(rig.port, "/predict?project=p&deploy=d")).json["label"] for _ in range(90)]
    )
    assert len(counts) == 3
    assert min(counts.values()) >= 15


async def test_a_busy_replica_gets_nothing_while_others_are_free(rig: Rig) -> None:
    one = rig.deployment("p/d")
    busy, free = rig.upstream("busy"), rig.upstream("free")
    rig.replica(one, "r1", busy)
    rig.replica(one, "r2", free)
    await rig.apply()
    await all_healthy(rig, 2)
    busy.gate = threading.Event()
    busy.seen.clear()
    tasks: list[asyncio.Task[Answer]] = []
    while not busy.seen:
        tasks.append(asyncio.create_task(ask(rig.port, "/predict?project=p&deploy=d")))
        await eventually(lambda: busy.seen or tasks[-1].done(), "the request arrives")
    for _ in range(20):
        assert (await ask(rig.port, "/predict?project=p&deploy=d")).json["label"] == "free"
    busy.gate.set()
    await asyncio.gather(*tasks)


async def test_equal_model_versions_go_to_equal_replicas(rig: Rig) -> None:
    one = rig.deployment("p/d")
    for index in range(3):
        rig.replica(one, f"r{index}", rig.upstream(f"u{index}"))
    await rig.apply()
    await all_healthy(rig, 3)
    places = {}
    for version in range(30):
        path = f"/predict?project=p&deploy=d&model_version=v{version}"
        labels = {(await ask(rig.port, path)).json["label"] for _ in range(4)}
        assert len(labels) == 1
        places[version] = labels.pop()
    assert len(set(places.values())) == 3


async def test_traffic_is_split_by_weight_header_and_mirror(rig: Rig) -> None:
    one = rig.deployment("p/d", serving=1)
    old, new, shadow = rig.upstream("old"), rig.upstream("new"), rig.upstream("shadow")
    rig.replica(one, "r1", old, revision=1)
    rig.replica(one, "r2", new, revision=2)
    rig.replica(one, "r3", shadow, revision=3)
    rig.traffic[f"{one}/traffic"] = traffic_pb2.Traffic(
        name=f"{one}/traffic",
        targets=[
            traffic_pb2.TrafficTarget(revision=1, weight=3),
            traffic_pb2.TrafficTarget(revision=2, weight=1),
            traffic_pb2.TrafficTarget(revision=2, header_matches={"x-who": "tester"}),
            traffic_pb2.TrafficTarget(revision=3, mirror_percent=100),
        ],
        sticky_key="x-user",
    )
    await rig.apply()
    path = "/predict?project=p&deploy=d"
    labels = collections.Counter([(await ask(rig.port, path)).json["label"] for _ in range(120)])
    assert labels.keys() == {"old", "new"}
    assert labels["old"] > labels["new"] > 5
    await eventually(lambda: len(shadow.seen) == 120, "every request is mirrored")
    for _ in range(5):
        assert (await ask(rig.port, path, headers={"x-who": "tester"})).json["label"] == "new"
        assert (await ask(rig.port, path, headers={"x-who": "testers"})).json["label"] in ("old", "new")
    by_user = {}
    for user in range(20):
        found = {(await ask(rig.port, path, headers={"x-user": f"u{user}"})).json["label"] for _ in range(3)}
        assert len(found) == 1
        by_user[user] = found.pop()
    assert set(by_user.values()) == {"old", "new"}


async def test_own_port_serves_its_deployment_alone(rig: Rig) -> None:
    port = free_port()
    one = rig.deployment("p/d", port=port)
    rig.replica(one, "r1", rig.upstream("d"))
    rig.replica(rig.deployment("p/other"), "r1", other := rig.upstream("other"))
    await rig.apply()
    await eventually(lambda: listening(port), "the own port listens")
    for path in ("/predict", "/predict?project=p&deploy=other", "/health2", "/", "/a/b?c=d"):
        answer = await ask(port, path, headers={"x-nha-deployment": "p/other"})
        assert answer.status == 200
        assert answer.json["label"] == "d"
        assert answer.json["path"] == path
    assert other.seen == []
    assert (await ask(port, "/update?model_version=v1")).body == b"OK"
    assert "/update?model_version=v1" in rig.upstreams[0].seen


async def test_update_reaches_every_replica_and_names_those_that_failed(rig: Rig) -> None:
    one = rig.deployment("p/d")
    ups = [rig.upstream(f"u{index}") for index in range(3)]
    for index, upstream in enumerate(ups):
        rig.replica(one, f"r{index}", upstream)
    await rig.apply()
    path = "/update?project=p&deploy=d&model_version=v2"
    answer = await ask(rig.port, path)
    assert (answer.status, answer.body) == (200, b"OK")
    assert all(path in upstream.seen for upstream in ups)

    ups[1].status = 500
    answer = await ask(rig.port, path)
    assert answer.status == 502
    assert list(answer.json["failed"]) == ["r1"] and answer.json["failed"]["r1"]["status"] == 500
    assert "1 of 3" in answer.json["router_error"]

    for upstream in ups:
        upstream.status = 404
    answer = await ask(rig.port, path)
    assert answer.status == 404
    assert list(answer.json["failed"]) == ["r0", "r1", "r2"]

    rig.replica(one, "r1", free_port())
    await rig.apply()
    answer = await ask(rig.port, path)
    assert answer.status == 502
    assert answer.json["failed"]["r1"]["status"] is None and "refused" in answer.json["failed"]["r1"]["answer"]
    assert (await ask(rig.port, path, method="GET", body=None)).status == 405
    assert (await ask(rig.port, "/update?project=p&deploy=none")).status == 404


async def test_a_dead_or_ill_replica_costs_no_request(rig: Rig) -> None:
    one = rig.deployment("p/d")
    rig.replica(one, "r1", rig.upstream("good"))
    rig.replica(one, "r2", free_port())  # nobody listens there
    ill = rig.upstream("ill")
    ill.healthy = False
    rig.replica(one, "r3", ill)
    await rig.apply()
    labels: list[str] = []

    async def settled() -> bool:
        answer = await ask(rig.port, "/predict?project=p&deploy=d")
        assert answer.status == 200
        labels.append(answer.json["label"])
        return labels[-30:] == ["good"] * 30

    await eventually(settled, "only the good one is asked")


async def test_answers_of_500_do_not_take_a_replica_away(rig: Rig) -> None:
    one = rig.deployment("p/d")
    upstream = rig.upstream("d")
    rig.replica(one, "r1", upstream)
    await rig.apply()
    upstream.status = 500
    for _ in range(20):
        answer = await ask(rig.port, "/predict?project=p&deploy=d")
        assert (answer.status, answer.json["label"]) == (500, "d")
    assert len(upstream.seen) == 20, "a prediction that was answered is not repeated"


async def test_a_busy_single_replica_is_waited_for(rig: Rig) -> None:
    """A server with one worker cannot answer its probe while it predicts; it must not be given up for that."""
    one = rig.deployment("p/d")
    upstream = rig.upstream("d")
    rig.replica(one, "r1", upstream)
    await rig.apply()
    upstream.healthy = False
    await eventually(lambda: unhealthy(rig) == 1, "the replica fails its probe")
    assert (await ask(rig.port, "/predict?project=p&deploy=d")).status == 200


async def test_a_replica_that_hangs_holds_up_nobody_else(rig: Rig) -> None:
    one = rig.deployment("p/hung")
    rig.deployments[one].spec.health_check.timeout.FromSeconds(600)
    hung = rig.upstream("hung")
    hung.probe_gate = threading.Event()
    rig.replica(one, "r1", hung)
    rig.replica(rig.deployment("p/other"), "r1", rig.upstream("other"))
    try:
        await rig.apply()
        assert (await ask(rig.port, "/predict?project=p&deploy=other")).status == 200
        assert (await ask(rig.port, "/predict?project=p&deploy=hung")).status == 200
        await rig.envoy.stop()
        rig.envoy.start()
        await rig.apply()
        assert (await ask(rig.port, "/predict?project=p&deploy=other")).status == 200
    finally:
        hung.probe_gate.set()


async def test_replacing_a_deployment_fails_no_request(rig: Rig) -> None:
    """New replicas first, routes next, the old ones last; with clients that never pause, on kept connections."""
    one = rig.deployment("p/d", serving=1)
    current = rig.upstream("rev1")
    rig.replica(one, "r1", current, revision=1)
    await rig.apply()
    stop, failures, labels = asyncio.Event(), [], collections.Counter[str]()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=20)
        while not stop.is_set():
            connection.request("POST", "/predict?project=p&deploy=d", body=b"[1]")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                failures.append((answer.status, body))
            else:
                labels[body.split(b'"label": "')[1].split(b'"')[0].decode()] += 1
        connection.close()

    clients = [asyncio.create_task(asyncio.to_thread(client)) for _ in range(3)]
    try:
        for revision in range(2, 7):
            fresh = rig.upstream(f"rev{revision}")
            new = rig.replica(one, f"r{revision}", fresh, revision=revision)
            await rig.apply()
            old = f"{one}/replicas/r{revision - 1}"
            rig.replica(one, f"r{revision - 1}", current, revision=revision - 1, state="DRAINING")
            rig.deployments[one].status.serving_revision = revision
            await rig.apply()
            for stream in rig.discovery.streams:
                assert stream.replicas(one) == {new}
            await asyncio.sleep(0.1)
            await asyncio.to_thread(current.close)
            rig.upstreams.remove(current)
            del rig.replicas[old]
            await rig.apply()
            before = labels[f"rev{revision}"]
            await eventually(lambda r=revision, b=before: labels[f"rev{r}"] > b + 20, "the new revision serves")
            current = fresh
    finally:
        stop.set()
        await asyncio.gather(*clients)
    assert failures == []
    assert set(labels) == {f"rev{revision}" for revision in range(1, 7)}


@pytest.mark.parametrize("same_revision", [True, False])
async def test_a_request_under_way_is_finished_by_the_replica_that_has_it(rig: Rig, same_revision: bool) -> None:
    """Also when its replica, and with another revision its whole cluster, has gone from the routes meanwhile."""
    one = rig.deployment("p/d", serving=1)
    slow = rig.upstream("slow")
    rig.replica(one, "r1", slow)
    await rig.apply()
    slow.gate = threading.Event()
    request = asyncio.create_task(ask(rig.port, "/predict?project=p&deploy=d"))
    try:
        await eventually(lambda: slow.seen, "the request arrives")
        rig.replica(one, "r1", slow, state="DRAINING")
        rig.replica(one, "r2", rig.upstream("next"), revision=1 if same_revision else 2)
        await rig.apply()
        assert (await ask(rig.port, "/predict?project=p&deploy=d")).json["label"] == "next"
        del rig.replicas[f"{one}/replicas/r1"]
        await rig.apply()
        await asyncio.sleep(1.5)  # longer than an idle connection to a replica is kept
        assert not request.done()
    finally:
        slow.gate.set()
    answer = await request
    assert (answer.status, answer.json["label"]) == (200, "slow")


# ------------------------------------------------------------------------------------------------------------ set-up


def hosts(rig: Rig) -> list[str]:
    text = rig.envoy.ask("GET", "/clusters") or ""
    return [line for line in text.splitlines() if "::health_flags::" in line and "/deployments/" in line]


def unhealthy(rig: Rig) -> int:
    return sum("failed_active_hc" in line for line in hosts(rig))


async def all_healthy(rig: Rig, count: int) -> None:
    """Waits until every cluster has at least so many healthy replicas, and requests reach as many."""

    def condition() -> bool:
        found = collections.Counter[str]()
        for line in hosts(rig):
            found[line.split("::")[0]] += line.endswith("healthy")
        return bool(found) and min(found.values()) >= count

    await eventually(condition, f"{count} replicas are healthy")
    # What the main thread shows, the worker threads know a moment later.
    for key in ("any", "model_version"):
        labels: list[str] = []

        async def reached(key: str = key, labels: list[str] = labels) -> bool:
            answer = await ask(rig.port, f"/predict?project=p&deploy=d&{key}={len(labels)}")
            labels.append(answer.json["label"])
            return len(set(labels)) >= count

        await eventually(reached, f"{count} replicas are reached")
