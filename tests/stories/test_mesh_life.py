"""The embedded mesh starts by itself, is found, is replaced, stops, and says in one line why it cannot start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import until


def _one_line(answer: Any) -> str:
    lines = answer.stderr.strip().splitlines()
    assert answer.returncode != 0 and len(lines) == 1 and lines[0].startswith("Error: "), answer
    return str(lines[0])


def test_the_first_command_starts_it_and_the_next_finds_it(newcomer: Any) -> None:
    assert newcomer.run("mesh", "status").returncode == 7
    assert newcomer.nha("model", "list") == "No Model Record(s) found\n"
    first = newcomer.json("mesh", "status")
    assert [each["name"] for each in first["services"]] == ["metadata", "store", "builder", "runner", "router"]
    newcomer.nha("model", "new", "--name", "kept")
    assert newcomer.json("mesh", "up")["process"] == newcomer.json("get-me-started")["process"] == first["process"]
    assert newcomer.nha("mesh", "down") == f"Stopped the mesh, process {first['process']}\n"
    assert newcomer.nha("mesh", "down") == "No mesh runs\n"
    assert newcomer.run("mesh", "status").returncode == 7
    assert newcomer.nha("model", "list") == "Listing Model Record(s):\nkept\n"
    assert newcomer.json("mesh", "status")["mesh_id"] == first["mesh_id"]
    assert "serving" in newcomer.nha("mesh", "logs")


def test_of_many_commands_at_once_one_starts_the_mesh_and_the_others_find_it(newcomer: Any) -> None:
    gate = threading.Barrier(5)

    def begin(number: int) -> Any:
        gate.wait()
        if number % 2:
            return newcomer.run("-s", "mesh", "up", "-o", "json")
        return newcomer.run("-s", "model", "new", "--name", f"m{number}")

    for expected in ({0}, {0, 4}, {0, 4}):  # 4: the model is there from the time before
        with ThreadPoolExecutor(5) as pool:
            answers = list(pool.map(begin, range(5)))
        assert {each.returncode for each in answers} <= expected, answers
        (server,) = [process for process, line in newcomer.left_behind().items() if "-m noronha.chassis" in line]
        os.kill(server, signal.SIGKILL)
    assert newcomer.nha("model", "list", "-o", "name").split() == ["m0", "m2", "m4"]


def test_a_mesh_that_is_up_takes_predictions(newcomer: Any) -> None:
    """Its router serves once the proxy listens, not before."""
    for _ in range(3):
        states = {each["name"]: each["state"] for each in newcomer.json("mesh", "up")["services"]}
        assert states["router"] == "SERVING"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{newcomer.router_port}/predict?project=p&deploy=d", data=b"", timeout=30)
        assert refused.value.code == 404
        newcomer.nha("mesh", "down")


def test_a_socket_left_by_a_killed_mesh_does_not_stand_in_the_way(newcomer: Any) -> None:
    newcomer.nha("model", "new", "--name", "kept")
    os.kill(newcomer.json("mesh", "status")["process"], signal.SIGKILL)
    assert newcomer.nha("model", "list") == "Listing Model Record(s):\nkept\n"


def test_an_older_mesh_is_replaced(newcomer: Any) -> None:
    code = (
        "import sys\nfrom noronha.chassis import __main__, serve\nserve.own_version = lambda: '1.9.0'\n"
        "sys.exit(__main__.main(sys.argv[1:]))"
    )
    ready = newcomer.home / "ready"
    older = subprocess.Popen(
        [sys.executable, "-c", code, "--state-dir", str(newcomer.state_dir), "--address-file", str(ready)],
        env=newcomer.env, cwd=newcomer.home, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(lambda: ready.exists() or older.poll() is not None, "the older mesh answers")
    answer = newcomer.run("-s", "model", "new", "--name", "m", check=True)
    assert "replacing the mesh 1.9.0" in answer.stderr
    assert older.wait(60) == 0
    assert newcomer.json("mesh", "status")["version"] != "1.9.0"
    assert "replacing" not in newcomer.run("-s", "model", "list", check=True).stderr


def test_a_taken_router_port_leaves_the_mesh_up_and_names_the_key(newcomer: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", newcomer.router_port))
        taken.listen()
        answer = newcomer.run("-s", "mesh", "up", "-o", "json", check=True)
        told = [line for line in answer.stderr.splitlines() if "router" in line]
        assert len(told) == 1 and "router.port" in told[0], answer.stderr
        newcomer.nha("model", "new", "--name", "m")
        states = {each["name"]: each for each in newcomer.json("mesh", "status")["services"]}
        assert states["router"]["state"] == "NOT_SERVING" and "router.port" in states["router"]["problem"]
        assert states["metadata"]["state"] == "SERVING"


def test_a_socket_path_that_is_too_long(newcomer: Any) -> None:
    folder = newcomer.home / ("x" * 110)
    line = _one_line(newcomer.run("model", "list", NHA_MESH__STATE_DIR=str(folder)))
    assert "mesh.state_dir" in line and "[SOCKET_PATH_TOO_LONG]" in line
    assert not folder.exists()


def test_a_state_folder_that_cannot_be_written(newcomer: Any) -> None:
    line = _one_line(newcomer.run("model", "list", NHA_MESH__STATE_DIR="/sys/nha"))
    assert "/sys/nha" in line and "mesh.state_dir" in line and "[STATE_DIR_READ_ONLY]" in line


def test_a_full_disk(newcomer: Any) -> None:
    folder = newcomer.home / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no small disk can be mounted here")
    try:
        filler = os.open(folder / "filler", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError):
            while True:
                os.write(filler, b"x" * 4096)
        os.close(filler)
        line = _one_line(newcomer.run("model", "list", NHA_MESH__STATE_DIR=str(folder / "mesh")))
        assert "space" in line and "mesh.state_dir" in line and "[NO_SPACE]" in line
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_setting_that_came_after_the_mesh_is_told(newcomer: Any) -> None:
    newcomer.nha("mesh", "up")
    answer = newcomer.run("model", "list", NHA_MESH__GRACE="3")
    (line,) = answer.stderr.splitlines()
    assert answer.returncode == 0 and answer.stdout == "No Model Record(s) found\n"
    assert "mesh.grace is 3.0 in NHA_MESH__GRACE" in line and "10.0" in line and "nha mesh down" in line
    assert newcomer.run("model", "list").stderr == ""


def test_a_mesh_key_in_the_working_directory_that_the_mesh_has_otherwise(newcomer: Any) -> None:
    """Also when the mesh does not run yet: nothing is started for a command that is refused."""
    file = newcomer.cwd / "nha.yaml"
    file.write_text("mesh:\n  grace: 3\n")
    line = _one_line(newcomer.run("model", "list"))
    assert "mesh.grace" in line and "3.0" in line and "10.0" in line and "[SETTING_DIFFERS]" in line
    assert newcomer.run("mesh", "status", cwd=newcomer.home).returncode == 7
    newcomer.nha("model", "new", "--name", "m", cwd=newcomer.home)
    line = _one_line(newcomer.run("model", "list"))
    assert "mesh.grace" in line and "3.0" in line and "10.0" in line
    file.write_text("mesh:\n  grace: 10\nlogger:\n  level: WARN\n")
    assert newcomer.nha("model", "list") == "Listing Model Record(s):\nm\n"


def test_a_mesh_over_tcp_needs_its_token(newcomer: Any) -> None:
    ready = newcomer.home / "ready"
    server = subprocess.Popen(
        [sys.executable, "-m", "noronha.chassis", "--listen", "127.0.0.1:0", "--state-dir", str(newcomer.state_dir),
         "--address-file", str(ready)],
        env=newcomer.env, cwd=newcomer.home, stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until(lambda: ready.exists() or server.poll() is not None, "the mesh answers")
    where = {"NHA_MESH__ADDRESS": ready.read_text().strip()}
    assert "[NO_TOKEN]" in _one_line(newcomer.run("model", "list", **where))
    assert "token_file" in _one_line(newcomer.run("model", "list", NHA_MESH__TOKEN_FILE="/nowhere", **where))
    forged = newcomer.home / "forged"
    forged.write_text("nha1.e30.e30\n")
    assert "[BAD_TOKEN]" in _one_line(newcomer.run("model", "list", NHA_MESH__TOKEN_FILE=str(forged), **where))
    where["NHA_MESH__TOKEN_FILE"] = str(newcomer.state_dir / "owner.token")
    assert newcomer.run("model", "list", check=True, **where).stdout == "No Model Record(s) found\n"
    newcomer.run("mesh", "down", check=True, **where)
    assert server.wait(60) == 0
    assert "no mesh answers at" in _one_line(newcomer.run("model", "list", **where))


def test_nothing_is_started_for_help_or_a_typo(newcomer: Any) -> None:
    newcomer.run("--help", check=True)
    newcomer.run("modle", "list")
    assert not Path(newcomer.home / ".nha").exists()


BACKENDS = {"metadata": "sqlite:", "store": "file:", "builder": "venv:", "runner": "process:", "router": "envoy:"}


def _up(user: Any) -> Any:
    """Starts the mesh and returns its status once every service serves."""
    user.nha("mesh", "up")

    def serving() -> Any:
        status = user.json("mesh", "status")
        return status if all(each["state"] == "SERVING" for each in status["services"]) else None

    return user.eventually("every service serves", serving)


def _up_without_runner(scattered: Any) -> dict[str, subprocess.Popen[bytes]]:
    """Starts a mesh of five, kills Runner and returns the processes by their services."""
    _up(scattered)
    processes = dict(zip(BACKENDS, scattered.processes, strict=True))
    processes["runner"].kill()
    processes["runner"].wait()
    return processes


def test_every_service_tells_its_backend_and_health_in_either_layout(newcomer: Any, scattered: Any) -> None:
    for user in (newcomer, scattered):
        status = _up(user)
        services = {each["name"]: each for each in status["services"]}
        assert list(services) == list(BACKENDS)
        for name, scheme in BACKENDS.items():
            assert services[name]["problem"] == "", services
            assert services[name]["backend"].startswith(scheme), services
            assert bool(services[name]["address"]) == (user is scattered and name != "metadata")
        assert status["router"] == f"127.0.0.1:{user.router_port}"


def test_a_service_whose_server_is_gone_or_hangs_does_not_serve_and_hides_no_other(scattered: Any) -> None:
    processes = _up_without_runner(scattered)
    processes["router"].send_signal(signal.SIGSTOP)
    try:
        status = scattered.json("mesh", "status")
        services = {each["name"]: each for each in status["services"]}
        for name in ("runner", "router"):
            assert services[name]["state"] == "NOT_SERVING" and services[name]["backend"] == "", services
            assert services[name]["address"] in services[name]["problem"], services
        for name in ("metadata", "store", "builder"):
            assert services[name]["state"] == "SERVING" and services[name]["backend"], services
        assert status["router"] == "", "only Router tells where predictions go"
        lines = scattered.nha("mesh", "status", "-o", "table").splitlines()
        heading = next(number for number, line in enumerate(lines) if line.startswith("NAME "))
        assert lines[heading].split() == ["NAME", "STATE", "ADDRESS", "BACKEND", "PROBLEM"]
        table = {line.split()[0]: line for line in lines[heading + 1 :]}
        assert list(table) == list(BACKENDS)
        for name, each in services.items():
            assert all(each[key] in table[name] for key in ("state", "address", "backend", "problem")), table[name]
        assert status["address"] in table["metadata"], "what the server itself carries is where that is"
    finally:
        processes["router"].send_signal(signal.SIGCONT)
    status = scattered.json("mesh", "status")
    assert [each["name"] for each in status["services"] if each["state"] != "SERVING"] == ["runner"]
    assert status["router"]


def test_a_service_that_is_gone_keeps_no_other_from_stopping(scattered: Any) -> None:
    processes = _up_without_runner(scattered)
    line = scattered.refused("mesh", "down", "--stop-tasks")
    assert "does not answer" in line, "whether tasks run on, nobody can tell"
    for name, process in processes.items():
        assert name == "runner" or process.wait(60) == 0, name


def test_a_server_that_hangs_is_named_when_all_others_have_stopped(scattered: Any) -> None:
    """One that is gone is down already and not named; one that hung can be stopped later, at its own address."""
    processes = _up_without_runner(scattered)
    processes["builder"].send_signal(signal.SIGSTOP)
    try:
        answer = scattered.run("-s", "mesh", "down", "-o", "json")
        line = _one_line(answer)
        assert answer.returncode == 7 and answer.stdout == "", answer
        address = processes["builder"].args[processes["builder"].args.index("--listen") + 1]
        assert f"builder at {address} does not answer and may still run; end its process [SERVER_HANGS]" in line
        assert "runner" not in line
        for name in ("metadata", "store", "router"):
            assert processes[name].wait(60) == 0, name
        again = scattered.run("mesh", "down")
        assert again.returncode == 7 and "set it to another server of the mesh" in _one_line(again)
    finally:
        processes["builder"].send_signal(signal.SIGCONT)
    scattered.run("mesh", "down", NHA_MESH__ADDRESS=address, check=True)
    assert processes["builder"].wait(60) == 0


def test_a_store_that_is_gone_is_told_while_it_is_waited_for(scattered: Any, tmp_path: Path) -> None:
    scattered.nha("model", "new", "--name", "m")
    (tmp_path / "data.csv").write_text("1")
    store = scattered.processes[list(BACKENDS).index("store")]
    store.kill()
    store.wait()
    command = scattered.command("ds", "new", "--name", "d", "--model", "m", "--path", str(tmp_path))
    with subprocess.Popen(
        command, env=scattered.env, cwd=scattered.cwd, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            line = next((each for each in lines if "trying again" in each), "")
            assert process.poll() is None, "it is told before the command gives up"
            address = store.args[store.args.index("--listen") + 1]
            assert line == f"Store at {address} does not answer; trying again for 2 minutes\n"
        finally:
            process.kill()
