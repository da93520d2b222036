"""Starting and stopping a server: what is refused in one line, and that it ends when told to."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from noronha.chassis.principals import Kind, Principal, Tokens, load_key
from noronha.rpc.dial import dial
from noronha.rpc.errors import NoronhaError
from noronha.v1 import mesh_pb2, mesh_pb2_grpc

COMMAND = [sys.executable, "-m", "noronha.chassis", "store"]


@pytest.fixture
def state() -> Iterator[Path]:
    """A short folder: a socket's path must fit into 107 bytes, which a test runner's folders may not leave room for."""
    folder = Path(tempfile.mkdtemp(prefix="nha-"))
    yield folder / "m"
    shutil.rmtree(folder, ignore_errors=True)


def _environment(state: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    return {**clean, "HOME": str(state.parent), "NHA_MESH__STATE_DIR": str(state)}


def _start(state: Path, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    address = state.parent / f"address-{time.monotonic_ns()}"
    server = subprocess.Popen(
        [*COMMAND, "--address-file", str(address), *arguments],
        env=_environment(state), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not address.exists():
        assert server.poll() is None, server.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return server, address.read_text().strip()


def _refused(state: Path, *arguments: str, wrap: tuple[str, ...] = ()) -> str:
    answer = subprocess.run(
        [*wrap, *COMMAND, *arguments], env=_environment(state), capture_output=True, text=True, timeout=60, check=False
    )
    assert answer.returncode == 2, (answer.returncode, answer.stderr)
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("Error: "), answer.stderr
    return lines[0]


def test_a_second_server_for_one_state_is_refused_and_the_first_goes_on(state: Path) -> None:
    server, address = _start(state)
    try:
        line = _refused(state)
        assert "runs already" in line and str(server.pid) in line
        with dial(address) as channel:
            info = mesh_pb2_grpc.MeshStub(channel).GetInfo(mesh_pb2.GetInfoRequest())
        assert info.process_id == server.pid
    finally:
        server.terminate()
        assert server.wait(30) == 0


def test_the_socket_a_killed_server_left_is_taken_over(state: Path) -> None:
    server, _ = _start(state)
    server.kill()
    server.wait()
    assert (state / "mesh.sock").exists()
    server, address = _start(state)
    with dial(address) as channel:
        assert mesh_pb2_grpc.MeshStub(channel).GetInfo(mesh_pb2.GetInfoRequest()).process_id == server.pid
    server.terminate()
    assert server.wait(30) == 0
    assert not (state / "mesh.sock").exists()


def test_the_socket_and_the_secrets_are_their_owners_alone(state: Path) -> None:
    server, _ = _start(state)
    try:
        assert (state.stat().st_mode & 0o777) == 0o700
        for name in ("mesh.sock", "key", "owner.token"):
            assert ((state / name).stat().st_mode & 0o777) == 0o600, name
    finally:
        server.terminate()
        server.wait(30)


def test_on_the_socket_only_who_brings_no_token_is_the_owner(state: Path) -> None:
    server, address = _start(state)
    tokens = Tokens(load_key(state))
    refused = {
        tokens.mint(Principal(Kind.USER, "ana")): "NOT_ALLOWED",
        tokens.mint(Principal(Kind.TASK, "projects/p/trainings/t", project="projects/p")): "NOT_ALLOWED",
        tokens.mint(Principal(Kind.OWNER, "me"), lifetime=-1): "TOKEN_EXPIRED",
        Tokens(b"k" * 32).mint(Principal(Kind.OWNER, "me")): "BAD_TOKEN",
        "nonsense": "BAD_TOKEN",
    }
    try:
        for token, reason in refused.items():
            with dial(address, token=token) as channel, pytest.raises(NoronhaError) as raised:
                mesh_pb2_grpc.MeshStub(channel).Shutdown(mesh_pb2.ShutdownRequest())
            assert raised.value.reason == reason
        with dial(address) as channel:
            mesh_pb2_grpc.MeshStub(channel).Shutdown(mesh_pb2.ShutdownRequest())
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


def test_a_port_in_use_is_one_line(state: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = _refused(state, "--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "in use" in line and str(taken) not in line


def test_a_socket_path_too_long_is_one_line(state: Path) -> None:
    assert "mesh.state_dir" in _refused(state.parent / ("x" * 100) / "m")


def test_a_state_folder_that_cannot_be_written_is_one_line(state: Path) -> None:
    assert "set mesh.state_dir" in _refused(Path("/proc/noronha"))
    state.parent.joinpath("file").write_text("")
    assert "set mesh.state_dir" in _refused(state.parent / "file" / "m")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a full disk needs root")
@pytest.mark.parametrize(("options", "says"), [("size=4k,nr_inodes=3", "no space left"), ("ro", "cannot write")])
def test_a_full_or_read_only_disk_is_one_line(state: Path, options: str, says: str) -> None:
    state.mkdir()
    script = f'mount -t tmpfs -o {options} none "{state}" && shift 0 && exec "$@"'
    assert says in _refused(state, wrap=("unshare", "--mount", "sh", "-c", script, "sh"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--peer", "nowhere"), ("--peer", "x=y"), ("storage",), ("--config", "/nonexistent"),
        ("--listen", "127.0.0.1:99999"), ("--listen", "7401"), ("--listen", "unix:"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_one_line(state: Path, arguments: tuple[str, ...]) -> None:
    _refused(state, *arguments)


def test_a_wrong_setting_is_one_line(state: Path) -> None:
    config = state.parent / "nha.yaml"
    config.write_text("store: {backend: 'redis:'}\n")
    assert "known are" in _refused(state, "--config", str(config))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_told_to_with_calls_open(state: Path, number: int) -> None:
    server, address = _start(state, "--listen", "127.0.0.1:0")
    token = (state / "owner.token").read_text().strip()
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with dial(address, token=token) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="noronha.v1.Store"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        server.send_signal(number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
    assert server.wait(30) == 0


def test_an_idle_embedded_server_stops_by_itself(state: Path) -> None:
    server = subprocess.Popen(
        COMMAND, env={**_environment(state), "NHA_MESH__IDLE_STOP": "0.3"}, stderr=subprocess.PIPE, text=True
    )
    assert server.wait(60) == 0
