"""A user with a home of their own and a mesh of their own, on whichever target was asked for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import free_port, listening, until

BIN = Path(sys.executable).parent
SERVICES = ("metadata", "store", "builder", "runner", "router")


@dataclass
class User:
    """Somebody at a terminal, with a home and a mesh of their own."""

    home: Path
    target: str
    env: dict[str, str]
    router_port: int
    cwd: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def state_dir(self) -> Path:
        return self.home / ".nha" / "mesh"

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "nha"), *arguments]

    def run(
        self, *arguments: str, cwd: Path | None = None, check: bool = False, timeout: float = 180, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs ``nha`` without a terminal and returns what it said; with ``check`` it must exit with 0."""
        answer = subprocess.run(
            self.command(*arguments), cwd=cwd or self.cwd, env={**self.env, **environment}, capture_output=True,
            text=True, stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )  # fmt: skip
        if check:
            assert answer.returncode == 0, f"nha {' '.join(arguments)}: {answer.stdout}{answer.stderr}"
        return answer

    def nha(self, *arguments: str, cwd: Path | None = None) -> str:
        """Runs ``nha -s``, which must succeed, and returns its standard output."""
        return self.run("-s", *arguments, cwd=cwd, check=True).stdout

    def json(self, *arguments: str, cwd: Path | None = None) -> Any:
        """Runs ``nha -s … -o json``, which must succeed, and returns what it printed."""
        return json.loads(self.nha(*arguments, "-o", "json", cwd=cwd))

    def refused(self, *arguments: str, cwd: Path | None = None) -> str:
        """Runs ``nha -s``, which must fail with one line on standard error, and returns that line."""
        answer = self.run("-s", *arguments, cwd=cwd)
        errors = [line for line in answer.stderr.splitlines() if line.startswith("Error: ")]
        assert answer.returncode != 0 and len(errors) == 1, f"{answer.stdout}{answer.stderr}"
        assert "Traceback" not in answer.stderr
        return errors[0]

    def start(self) -> None:
        """Starts the mesh of the target."""
        if self.target == "embedded":
            self.nha("mesh", "up")
            return
        ports = {name: free_port() for name in SERVICES}
        log = self.home / "servers.log"
        for name in SERVICES:
            peers = [
                word for each in SERVICES if each != name for word in ("--peer", f"{each}=127.0.0.1:{ports[each]}")
            ]
            with open(log, "ab") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "noronha.chassis", name, "--listen", f"127.0.0.1:{ports[name]}",
                         "--state-dir", str(self.state_dir), *peers],
                        env={key: value for key, value in self.env.items() if key != "NHA_MESH__ADDRESS"},
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                    )
                )  # fmt: skip
        self.env["NHA_MESH__ADDRESS"] = f"127.0.0.1:{ports['metadata']}"
        self.env["NHA_MESH__TOKEN_FILE"] = str(self.state_dir / "owner.token")
        for name, port in ports.items():
            until(lambda port=port: listening(port), f"{name}: {log.read_text()}")

    def stop(self) -> None:
        """Stops the mesh and everything it runs, however it stands."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("-s", "mesh", "down", "--stop-tasks", timeout=90)
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        self.processes.clear()

    def eventually(self, what: str, condition: Callable[[], Any], seconds: float = 60.0) -> Any:
        """Returns the first true answer of ``condition``; fails after ``seconds``."""
        return until(condition, what, seconds)

    def left_behind(self) -> dict[int, str]:
        """Returns the processes that belong to this home, by id."""
        found = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                environment = (folder / "environ").read_bytes()
                if str(self.home) in command or f"HOME={self.home}".encode() in environment.split(b"\0"):
                    found[int(folder.name)] = command
        return found


@contextlib.contextmanager
def private_user(target: str = "embedded", **environment: str) -> Iterator[User]:
    """Makes a home of its own with a free router port, and leaves no file and no process behind."""
    home = Path(tempfile.mkdtemp(prefix="nha-"))
    cwd = home / "work"
    cwd.mkdir()
    port = free_port()
    env = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    env |= {
        "HOME": str(home), "NHA_ROUTER__PORT": str(port), "PATH": f"{BIN}{os.pathsep}{env.get('PATH', '')}",
        # What was fetched once need not be fetched again for every home.
        "UV_CACHE_DIR": os.environ.get("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv")),
        **environment,
    }  # fmt: skip
    # Users let Python keep what it compiled; without that every start compiles everything anew.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    user = User(home, target, env, port, cwd)
    try:
        yield user
    finally:
        user.stop()
        left = user.left_behind()
        deadline = time.monotonic() + 10
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = user.left_behind()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
    assert not left, f"processes were left behind: {left}"


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> str:
    """Where the stories run."""
    return str(request.config.getoption("--target"))


@pytest.fixture(scope="module")
def user(target: str) -> Iterator[User]:
    """A user whose mesh runs, for one file of stories."""
    with private_user(target) as found:
        found.start()
        yield found


@pytest.fixture
def newcomer() -> Iterator[User]:
    """A user of an embedded mesh that nobody has started yet."""
    with private_user() as found:
        yield found


@pytest.fixture(params=["embedded", "five"])
def late(request: pytest.FixtureRequest) -> Iterator[tuple[User, socket.socket]]:
    """A user whose mesh runs, and the socket of somebody else who was at the router's port before it."""
    with private_user(request.param) as found, socket.socket() as taken:
        taken.bind(("127.0.0.1", found.router_port))
        taken.listen()
        found.start()
        yield found, taken


@pytest.fixture
def scattered() -> Iterator[User]:
    """A user whose mesh runs in five processes, to be killed one by one."""
    with private_user("five") as found:
        found.start()
        yield found


@pytest.fixture(scope="session")
def free() -> Callable[[], int]:
    """Returns free ports."""
    return free_port


def _notebook(path: Path, *cells: str) -> None:
    """Writes a notebook; the first cell is tagged ``parameters``."""
    content = [
        {
            "cell_type": "code", "id": f"c{number}", "metadata": {"tags": ["parameters"]} if number == 0 else {},
            "source": source, "outputs": [], "execution_count": None,
        }
        for number, source in enumerate(cells)
    ]  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"cells": content, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5})
    )


@pytest.fixture(scope="session")
def make_project() -> Callable[..., Path]:
    """Writes the folder of a small project, with notebooks from their cells, and returns it."""

    def make(folder: Path, notebooks: dict[str, tuple[str, ...]], dockerfile: str = "ADD . ${APP_HOME}") -> Path:
        for name, cells in notebooks.items():
            _notebook(folder / "notebooks" / f"{name}.ipynb", *cells)
        (folder / "Dockerfile").write_text(f"FROM noronhadataops/noronha:latest\n{dockerfile}\n")
        return folder

    return make
