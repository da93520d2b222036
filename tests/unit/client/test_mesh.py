"""Finding, starting and comparing meshes: what can be said without one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from noronha.client import configuration, connection, mesh
from noronha.client.patience import Patience
from noronha.rpc.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NoronhaError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from noronha.v1 import mesh_pb2


@pytest.mark.parametrize(
    "version,than",
    [
        ("1.6.8", "2.0.0"), ("2.0.0.dev0", "2.0.0"), ("2.0.0.dev0", "2.0.0a1"), ("2.0.0a1", "2.0.0b1"),
        ("2.0.0rc1", "2.0.0rc2"), ("2.0", "2.0.1"), ("2.9.0", "2.10.0"), ("unknown", "0.1"),
    ],
)  # fmt: skip
def test_an_older_release(version: str, than: str) -> None:
    assert mesh.is_older(version, than) and not mesh.is_older(than, version)


@pytest.mark.parametrize("version,same", [("2.0.0", "2.0"), ("v2.0.0", "2.0.0"), ("2.0.0.dev0", "2.0.0.dev0")])
def test_the_same_release(version: str, same: str) -> None:
    assert not mesh.is_older(version, same) and not mesh.is_older(same, version)


def test_no_mesh_starts_off_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Unimplemented, match=r"mesh\.address") as caught:
        mesh.check_platform()
    assert caught.value.reason == "PLATFORM_NOT_SUPPORTED"


def test_no_mesh_starts_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "NEEDED", ("grpc_health", "a_module_that_nobody_has"))
    with pytest.raises(FailedPrecondition, match=r"noronha-dataops\[embedded\]") as caught:
        mesh.check_extra()
    assert caught.value.reason == "EXTRA_MISSING" and "a_module_that_nobody_has" in caught.value.message


def test_everything_the_extra_holds_is_installed_here() -> None:
    mesh.check_extra()


@pytest.mark.parametrize(
    "text,kind,part",
    [
        ("Error: no space left for /x; free some\n", ResourceExhausted, "no space left for /x"),
        ("noise\nError: cannot listen on unix:/x\n", FailedPrecondition, "did not start: cannot listen on unix:/x"),
        ("Traceback\n  File\nOSError: odd\n", FailedPrecondition, "OSError: odd; see"),
        ("", FailedPrecondition, "without a word"),
    ],
)
def test_why_a_mesh_did_not_start_is_one_line(text: str, kind: type[Exception], part: str) -> None:
    error = mesh._start_error(text, Path("/state"))
    assert type(error) is kind and part in str(error) and "\n" not in str(error)


def test_a_socket_that_nobody_listens_on_does_not_answer(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "mesh.sock"
    assert not mesh.answers(path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
        assert not mesh.answers(path), "bound and not listening, as after a kill"
        bound.listen()
        assert mesh.answers(path)
    with pytest.raises(FailedPrecondition, match="shorter folder"):
        mesh.answers(Path("/") / ("x" * 200))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith("NHA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".nha").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def test_the_files_of_a_client_and_of_its_mesh(home: Path) -> None:
    assert configuration.load().local_file is None
    (home / ".nha" / "nha.yaml").write_text("router: {port: 30099}\nproject: {working_project: a}\n")
    found = configuration.load()
    assert found.client.router.port == found.mesh.router.port == 30099 and found.local_file is None
    (home / "work" / "nha.yaml").write_text("project: {working_project: b}\n")
    found = configuration.load()
    assert (found.client.project.working_project, found.mesh.project.working_project) == ("b", "a")
    assert found.client.router.port == 30080, "the local file stands alone"
    assert found.mesh.router.port == 30099, "and the mesh reads its own"


def test_a_mesh_key_that_differs_names_both_values(home: Path) -> None:
    (home / "work" / "nha.yaml").write_text("router: {port: 30081}\nlogger: {level: WARN}\n")
    found = configuration.load()
    line = configuration.contradiction(found, found.mesh.fingerprint())
    assert line is not None and "router.port" in line and "30081" in line and "30080" in line
    assert configuration.contradiction(found, found.client.fingerprint()) is None
    (home / "work" / "nha.yaml").write_text("logger: {level: WARN}\nmesh: {address: '127.0.0.1:1'}\n")
    found = configuration.load()
    assert configuration.contradiction(found, {"mesh.grace": "1.0"}) is None, "keys of the client concern nobody else"


def test_secrets_are_not_compared(home: Path) -> None:
    (home / "work" / "nha.yaml").write_text("mongo: {native: false, pswd: hidden-word}\n")
    found = configuration.load()
    line = configuration.contradiction(found, found.mesh.fingerprint())
    assert line is not None and "mongo.native" in line and "hidden-word" not in line
    assert "hidden-word" not in repr(found)


def test_an_interrupted_transfer_starts_a_crashed_mesh_and_leaves_a_stopped_one_alone() -> None:
    asked: list[str] = []

    def revive() -> None:
        asked.append("revive")
        if len(asked) > 1:
            raise Unavailable("the mesh was stopped", reason="MESH_STOPPED")

    waiting = Patience(60.0, revive)
    waiting.bear(Unavailable("gone"))
    with pytest.raises(Unavailable) as caught:
        waiting.bear(Unavailable("gone"))
    assert caught.value.reason == "MESH_STOPPED" and len(asked) == 2


def test_a_stopped_mesh_is_gone_although_the_next_answers_in_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mesh.sock"
    ended = subprocess.Popen(["true"])
    ended.wait()

    def listen() -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        return listener

    class Server:
        def Shutdown(self, request: object, timeout: float) -> mesh_pb2.ShutdownResponse:
            first.close()
            path.unlink()
            following.append(listen())
            return mesh_pb2.ShutdownResponse(process_id=ended.pid)

    class Old:
        address = f"unix:{path}"

        def servers(self) -> list[connection.Server]:
            return [connection.Server((), self.address, Server())]  # type: ignore[arg-type]

    following: list[socket.socket] = []
    first = listen()
    try:
        assert mesh.stop_mesh(Old(), timeout=0.5) == [ended.pid]  # type: ignore[arg-type]
    finally:
        following[0].close()


def test_a_server_that_hangs_once_it_is_connected_to_keeps_no_other_from_being_asked() -> None:
    class Server:
        def __init__(self, answer: NoronhaError | int) -> None:
            self.answer = answer

        def Shutdown(self, request: object, timeout: float) -> mesh_pb2.ShutdownResponse:
            asked.append(self)
            if isinstance(self.answer, NoronhaError):
                raise self.answer
            return mesh_pb2.ShutdownResponse(process_id=self.answer)

    asked: list[Server] = []
    with socket.socket() as hung, socket.socket() as gone:
        for each in (hung, gone):
            each.bind(("127.0.0.1", 0))
        hung.listen()
        there, nowhere = (f"127.0.0.1:{each.getsockname()[1]}" for each in (hung, gone))

        class Scattered:
            address = "127.0.0.1:1"

            def servers(self) -> list[connection.Server]:
                return [
                    connection.Server(("runner", "router"), there, Server(DeadlineExceeded("late"))),  # type: ignore[arg-type]
                    connection.Server(("builder",), nowhere, Server(Unavailable("refused"))),  # type: ignore[arg-type]
                    connection.Server(("store",), there, Server(Unavailable("no settings came"))),  # type: ignore[arg-type]
                    connection.Server(("metadata",), self.address, Server(7)),  # type: ignore[arg-type]
                ]

        with pytest.raises(Unavailable) as caught:
            mesh.stop_mesh(Scattered())  # type: ignore[arg-type]
    assert len(asked) == 4 and caught.value.reason == "SERVER_HANGS"
    assert caught.value.message == (
        f"the other servers are stopped, but runner, router at {there} and store at {there} do not answer and may "
        "still run; end their processes"
    )
