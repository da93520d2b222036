"""The life of the Envoy process: apart from the mesh, one for a folder, back when killed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from noronha.router import proxy as proxies
from noronha.router.envoy import MAX_LOG_BYTES, Envoy
from noronha.router.proxy import Proxy
from noronha.router.resource_names import LISTENER
from tests.waiting import free_port, listening

from .rig import Rig, ask, eventually

pytestmark = pytest.mark.timeout(90)


async def test_envoy_is_found_again_and_never_started_twice(rig: Rig) -> None:
    first = await eventually(rig.envoy.pid, "Envoy opens its admin socket")
    again = Envoy(rig.folder, rig.envoy._bootstrap, 1)
    assert again.running()
    assert again.current()
    assert await eventually(again.pid, "Envoy opens its admin socket") == first
    assert not again.start()
    assert not Envoy(rig.folder, "{}", 1).current()
    assert os.getsid(first) == first, "it is in a session of its own"
    await again.stop()
    assert not rig.envoy.running()
    assert rig.envoy.pid() is None


async def test_of_many_that_start_at_once_one_wins(rig: Rig) -> None:
    await rig.envoy.stop()
    code = (
        "import sys; from pathlib import Path; from noronha.router.envoy import MAX_LOG_BYTES, Envoy;"
        "print(Envoy(Path(sys.argv[1]), Path(sys.argv[2]).read_text(), 1).start())"
    )
    kept = rig.folder / "kept.json"
    kept.write_text(rig.envoy._bootstrap)
    many = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, str(rig.folder), str(kept), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(4)
    ]
    said = [(await asyncio.wait_for(each.communicate(), 60))[0].decode().strip() for each in many]
    assert sorted(said) == ["False", "False", "False", "True"]
    pid = await eventually(rig.envoy.pid, "the one Envoy opens its admin socket")
    assert pid not in {each.pid for each in many}
    assert processes_of(rig.folder) == [pid]


async def test_secrets_stay_in_a_file_of_the_owner(rig: Rig) -> None:
    await eventually(lambda: rig.envoy.ask("GET", "/ready"), "Envoy opens its admin socket")
    pid = rig.envoy.pid()
    path = rig.folder / "bootstrap.json"
    assert "a-token-of-the-test" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for place in ("cmdline", "environ"):
        assert b"a-token-of-the-test" not in Path(f"/proc/{pid}/{place}").read_bytes()
    assert stat.S_IMODE((rig.folder / "a").stat().st_mode) == 0o600
    assert "a-token-of-the-test" not in rig.envoy.log_path.read_text()


async def test_a_killed_envoy_is_back_with_all_routes(rig: Rig) -> None:
    rig.replica(rig.deployment("p/d"), "r1", rig.upstream("d"))
    await rig.apply()
    said: list[tuple[bool, str]] = []
    proxy = Proxy(rig.envoy, rig.discovery, rig.edge, lambda serving, problem: said.append((serving, problem)))
    keeping = asyncio.create_task(proxy.keep())
    try:
        for _ in range(2):
            before = rig.envoy.pid()
            assert before is not None
            os.kill(before, signal.SIGKILL)
            await eventually(lambda b=before: rig.envoy.pid() not in (None, b), "another Envoy runs")
            await eventually(lambda: served(rig), "it routes as before")
        assert said == []
        await proxy.stop()
        await asyncio.wait_for(keeping, 10)
        assert not rig.envoy.running()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_an_envoy_of_other_settings_is_replaced(rig: Rig) -> None:
    before = await eventually(rig.envoy.pid, "Envoy opens its admin socket")
    other = Envoy(rig.folder, rig.envoy._bootstrap.replace('"release": "test"', '"release": "next"'), 1)
    keeping = asyncio.create_task(Proxy(other, rig.discovery, rig.edge, lambda *said: None).keep())
    try:
        await eventually(lambda: other.current() and other.pid() not in (None, before), "the new one runs")
        assert processes_of(rig.folder) == [other.pid()]
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await other.stop()


async def test_predictions_go_on_while_the_mesh_is_down_and_after_it_is_back(rig: Rig) -> None:
    one = rig.deployment("p/d")
    rig.replica(one, "r1", rig.upstream("d"))
    await rig.apply()
    pid = rig.envoy.pid()
    await rig.stop_serving()
    for _ in range(20):
        assert (await ask(rig.port, "/predict?project=p&deploy=d")).status == 200
    answer = await ask(rig.port, "/update?project=p&deploy=d")
    assert answer.status == 200, "the endpoint for updates is not the mesh's in this test"
    await rig.serve()
    await rig.apply()
    assert rig.envoy.pid() == pid
    assert (await ask(rig.port, "/predict?project=p&deploy=d")).status == 200
    rig.replica(one, "r1", rig.upstream("moved"))
    await rig.apply()
    assert (await ask(rig.port, "/predict?project=p&deploy=d")).json["label"] == "moved"


async def test_time_for_which_the_mesh_stood_still_is_not_held_against_envoy(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "CONNECT_TIMEOUT", 4.0)
    rig.replica(rig.deployment("p/d"), "r1", rig.upstream("d"))
    await rig.apply()
    pid = rig.envoy.pid()
    await rig.stop_serving()
    await eventually(lambda: not rig.discovery.streams, "the stream to end")
    keeping = asyncio.create_task(Proxy(rig.envoy, rig.discovery, rig.edge, lambda *_: None).keep())
    try:
        for _ in range(3):
            await asyncio.sleep(0)  # until it waits for Envoy
        time.sleep(5)  # noqa: ASYNC251  nothing of this process is to run meanwhile, as after SIGSTOP
        await rig.serve()
        await rig.apply()
        assert rig.envoy.pid() == pid
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_router_port_that_is_taken_is_said_in_one_line_and_tried_again(rig: Rig) -> None:
    said: list[tuple[bool, str]] = []
    own = free_port()
    rig.replica(rig.deployment("p/d", port=own), "r1", rig.upstream("d"))
    judging = asyncio.create_task(
        Proxy(rig.envoy, rig.discovery, rig.edge, lambda serving, problem: said.append((serving, problem))).judge()
    )
    try:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", rig.port))
            holder.listen()
            rig.publish()
            await eventually(lambda: said, "the port is refused")
            assert said[0][0] is False
            assert f"port {rig.port}" in said[0][1]
            assert "router.port" in said[0][1]
            await eventually(lambda: listening(own), "the deployment's own port works none the less")
            assert (await ask(own, "/predict")).json["label"] == "d"
            assert rig.envoy.running()
        await eventually(lambda: said[-1] == (True, ""), "the port is free again and used")
        assert (await ask(rig.port, "/predict?project=p&deploy=d")).json["label"] == "d"
    finally:
        judging.cancel()
        await asyncio.gather(judging, return_exceptions=True)


async def test_an_own_port_that_is_taken_stops_nobody_else(rig: Rig, taken_port: int) -> None:
    bad, good = rig.deployment("p/bad", port=taken_port), rig.deployment("p/good", port=free_port())
    for one in (bad, good):
        rig.replica(one, "r1", rig.upstream(one))
    await rig.apply()
    (stream,) = rig.discovery.streams
    assert "in use" in stream.refusal(LISTENER, bad)
    assert stream.accepts(LISTENER, good)
    assert stream.replicas(bad) == {f"{bad}/replicas/r1"}
    port = rig.deployments[good].port
    await eventually(lambda: listening(port), "the other own port listens")
    assert (await ask(port, "/predict")).json["label"] == good
    assert (await ask(rig.port, "/predict?project=p&deploy=bad")).json["label"] == bad


async def test_the_log_is_put_away_when_it_has_grown(rig: Rig) -> None:
    await eventually(lambda: rig.envoy.ask("GET", "/ready"), "Envoy opens its admin socket")
    rig.envoy.rotate_log()
    older = rig.envoy.log_path.with_suffix(".log.1")
    assert not older.exists()
    with open(rig.envoy.log_path, "ab") as file:
        file.truncate(MAX_LOG_BYTES + 1)
    rig.envoy.rotate_log()
    assert older.stat().st_size > MAX_LOG_BYTES
    assert not rig.envoy.log_path.exists() or rig.envoy.log_path.stat().st_size < MAX_LOG_BYTES
    assert rig.envoy.running()


async def served(rig: Rig) -> bool:
    try:
        return (await ask(rig.port, "/predict?project=p&deploy=d")).status == 200
    except OSError:
        return False


def processes_of(folder: Path) -> list[int]:
    """Lists the processes whose command line names the bootstrap of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"{folder}/bootstrap.json".encode() in command:
                found.append(int(entry.name))
    return found
