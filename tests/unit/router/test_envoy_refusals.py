"""What the real Envoy refuses is found by what it says, reported, and holds up nobody else."""

from __future__ import annotations

import pytest

from noronha.router import resources, splice
from noronha.router.resource_names import CLUSTER, cluster_name

from .rig import Rig, ask

pytestmark = pytest.mark.timeout(90)


async def test_a_refused_route_holds_up_nobody_else(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = resources.entry

    def entry(deployment: str, *args: object, **more: object) -> bytes:
        if deployment.endswith("/bad"):
            return resources._on_match([b""])  # a route that matches nothing and does nothing
        return sound(deployment, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(resources, "entry", entry)
    names = ["a", "b", "bad", "c", "d"]
    for name in names:
        rig.replica(rig.deployment(f"p/{name}"), "r1", rig.upstream(name))
    await rig.apply()
    (stream,) = rig.discovery.streams
    assert stream.route_refusal("projects/p/deployments/bad")
    assert set(stream.refused) == {"projects/p/deployments/bad"}
    for name in names:
        answer = await ask(rig.port, f"/predict?project=p&deploy={name}")
        assert answer.status == (404 if name == "bad" else 200)
    monkeypatch.undo()
    rig.replica(rig.deployment("p/bad"), "r2", rig.upstream("mended"), revision=2)
    await rig.apply()
    assert stream.refused == {}
    assert (await ask(rig.port, "/predict?project=p&deploy=bad")).status == 200


async def test_a_refused_cluster_holds_up_nobody_else(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = resources.replica_cluster

    def replica_cluster(name: str, *args: object, **more: object) -> bytes:
        if "/bad/" in name:
            broken = resources.cluster.Cluster(name=name, connect_timeout=resources.seconds(-1))
            return splice.any_message(CLUSTER, bytes(broken))
        return sound(name, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(resources, "replica_cluster", replica_cluster)
    for name in ("a", "bad", "ba"):
        rig.replica(rig.deployment(f"p/{name}"), "r1", rig.upstream(name))
    await rig.apply()
    (stream,) = rig.discovery.streams
    assert set(stream.refused) == {cluster_name("projects/p/deployments/bad", 1)}
    for name in ("a", "bad", "ba"):
        answer = await ask(rig.port, f"/predict?project=p&deploy={name}")
        assert answer.status == (503 if name == "bad" else 200)
        if name == "bad":
            assert "router_error" in answer.json
