"""The embedded mesh as its user's commands see it: found on its socket, started in background, replaced, stopped."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from noronha.client.connection import Mesh, Notice, does_not_serve, silent
from noronha.rpc.addresses import check_socket_path
from noronha.rpc.disk import state_error
from noronha.rpc.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NoronhaError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from noronha.rpc.release import own_version

if TYPE_CHECKING:
    from noronha.client.configuration import Configuration
    from noronha.client.connection import Server
    from noronha.v1 import mesh_pb2

START_TIMEOUT = 60.0
"""Seconds that a mesh has to answer after it was started."""

STOPPED_PATIENCE = 10.0
"""Seconds for which those who were in the midst of something wait for a mesh that was stopped on purpose."""

SETTLE_TIMEOUT = 20.0
"""Seconds that the services have to come up once the mesh answers."""

ANSWER_TIMEOUT = 10.0
"""Seconds that a server has to answer that it stops, which it does before it does anything about it."""

LEAST_ROOM = 1 << 20
"""Bytes that must be free for a mesh to start: 1 MiB."""

NEEDED = ("grpc_health", "grpc_reflection", "papermill", "nbclient", "ipykernel", "envoy_data_plane", "uv")
"""Modules of the ``embedded`` extra, without which no mesh starts."""

_started: list[subprocess.Popen[bytes]] = []
"""Meshes that this process started; kept so that their handles are not finalised while they run."""


def embedded(configuration: Configuration, *, start: bool = True, notice: Notice = silent) -> Mesh:
    """Returns a connection to the embedded mesh, started when it does not answer.

    A mesh of an older release is replaced; its tasks go on. ``notice`` is told of settings that came after the mesh.
    Raises InvalidArgument ``SETTING_DIFFERS`` when ``./nha.yaml`` holds a mesh key that the mesh has otherwise;
    Unavailable ``NO_MESH`` when none runs and none is to be started; what ``start_mesh`` raises.
    """
    path = configuration.mesh.socket_path
    if not answers(path):
        if not start:
            raise Unavailable("no mesh runs; 'nha mesh up' starts one", reason="NO_MESH")
        _refuse(configuration, configuration.mesh.fingerprint())
        start_mesh(configuration, notice=notice)
        _remember(path)
        return _connection(configuration, notice)
    mesh = _connection(configuration, notice)
    if _has_mesh_keys(configuration):
        from noronha.client.configuration import stale

        running = dict(mesh.info().settings)
        _refuse(configuration, running)
        for line in stale(configuration, running):
            notice(line)
    if not _known(path):
        info = mesh.info()
        if is_older(info.version, own_version()):
            if not start:
                return mesh
            notice(f"replacing the mesh {info.version} by {own_version()}; its tasks go on")
            stop_mesh(mesh)
            start_mesh(configuration, notice=notice)
            mesh = _connection(configuration, notice)
        _remember(path)
    return mesh


def _connection(configuration: Configuration, notice: Notice) -> Mesh:
    path = configuration.mesh.socket_path

    def revive() -> None:
        deadline = time.monotonic() + STOPPED_PATIENCE
        while not answers(path):
            if not _was_stopped(path):
                start_mesh(configuration, notice=notice)
                return
            if time.monotonic() > deadline and not _is_being_started(path.parent):
                raise Unavailable(
                    "the mesh was stopped; 'nha mesh up' starts it again, and what it was doing goes on then",
                    reason="MESH_STOPPED",
                )
            time.sleep(0.1)

    return Mesh(f"unix:{path}", whole=True, reviver=revive)


def _was_stopped(path: Path) -> bool:
    """Says whether the mesh that is gone was told to stop; one that crashed left no such word."""
    return (path.parent / "stopped").exists()


def _is_being_started(folder: Path) -> bool:
    """Says whether some client is starting the mesh right now."""
    with contextlib.suppress(FileNotFoundError), open(folder / "start.lock", "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def answers(path: Path) -> bool:
    """Says whether a server listens on the socket. Raises FailedPrecondition ``SOCKET_PATH_TOO_LONG``."""
    check_socket_path(path)
    return _refusal(f"unix:{path}") is None


def start_mesh(
    configuration: Configuration, *, notice: Notice = silent, config_file: Path | None = None
) -> mesh_pb2.MeshInfo | None:
    """Starts the mesh in the background in a session of its own, and waits until it answers; a running one is left as
    it is.

    Returns what it tells of itself, None when it ran already. Of several callers at once one starts it and the others
    wait. Raises Unimplemented ``PLATFORM_NOT_SUPPORTED`` off Linux; FailedPrecondition ``EXTRA_MISSING``,
    ``SOCKET_PATH_TOO_LONG``, ``STATE_DIR_READ_ONLY``, ``MESH_NOT_STARTED``; ResourceExhausted ``NO_SPACE``;
    DeadlineExceeded ``MESH_SLOW``.
    """
    path = configuration.mesh.socket_path
    answers(path)
    check_platform()
    check_extra()
    folder = configuration.mesh.state_dir
    with _locked(folder):
        if answers(path):
            return None
        _launch(folder, path, config_file)
    with Mesh(f"unix:{path}", whole=True) as mesh:
        info = mesh.info()
    for service in info.services:
        if not service.serving and service.problem:
            notice(does_not_serve(service.name, service.problem))
    return info


def settled(mesh: Mesh, seconds: float = SETTLE_TIMEOUT) -> mesh_pb2.MeshInfo:
    """Returns a mesh's overview once each service serves or says why not; after ``seconds`` as it is then.

    Router takes a moment longer than the others: its proxy has to listen first.
    """
    deadline = time.monotonic() + seconds
    while True:
        info = mesh.overview()
        if all(each.serving or each.problem for each in info.services) or time.monotonic() > deadline:
            return info
        time.sleep(0.05)


def check_platform() -> None:
    """Raises Unimplemented ``PLATFORM_NOT_SUPPORTED`` where no mesh can run."""
    if sys.platform != "linux":
        raise Unimplemented(
            f"a mesh runs on Linux only, not on {sys.platform}; set mesh.address to one that runs elsewhere",
            reason="PLATFORM_NOT_SUPPORTED",
        )


def check_extra() -> None:
    """Raises FailedPrecondition ``EXTRA_MISSING`` unless everything an embedded mesh needs is installed."""
    from importlib.util import find_spec

    missing = [name for name in ("noronha.chassis", *NEEDED) if not _installed(find_spec, name)]
    if missing:
        raise FailedPrecondition(
            f"starting a mesh needs {', '.join(missing)}; run pip install 'noronha-dataops[embedded]', "
            "or set mesh.address to a mesh that runs elsewhere",
            reason="EXTRA_MISSING", missing=" ".join(missing),
        )  # fmt: skip


def _installed(find_spec: object, name: str) -> bool:
    try:
        return find_spec(name) is not None  # type: ignore[operator]
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock under which one of several clients starts the mesh."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = open(folder / "start.lock", "ab")  # noqa: SIM115  closed below; its own errors are told here
    except OSError as error:
        raise state_error(folder, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _launch(folder: Path, path: Path, config_file: Path | None) -> None:
    ready = folder / f"ready.{os.getpid()}"
    command = [
        sys.executable, "-m", "noronha.chassis", "--state-dir", str(folder), "--address-file", str(ready),
    ]  # fmt: skip
    if config_file is not None:
        command += ["--config", str(config_file.absolute())]
    try:
        ready.unlink(missing_ok=True)
        (folder / "logs").mkdir(mode=0o700, exist_ok=True)
        errors = os.open(folder / "logs" / "start.log", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    except OSError as error:
        raise state_error(folder, error) from error
    try:
        # A mesh without room could not even say so: its words go to the same disk.
        os.posix_fallocate(errors, 0, LEAST_ROOM)
        os.ftruncate(errors, 0)
    except OSError as error:
        os.close(errors)
        raise state_error(folder, error) from error
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            start_new_session=True,
        )  # fmt: skip
        _started.append(process)
        deadline = time.monotonic() + START_TIMEOUT
        while not ready.exists():
            if process.poll() is not None:
                if answers(path):  # somebody else's start was faster
                    return
                raise _start_error(os.pread(errors, 1 << 16, 0).decode("utf-8", "replace"), folder)
            if time.monotonic() > deadline:
                process.terminate()
                raise DeadlineExceeded(
                    f"the mesh did not answer within {START_TIMEOUT:.0f} s; see {folder / 'logs' / 'mesh.log'}",
                    reason="MESH_SLOW",
                )
            time.sleep(0.005)
    finally:
        os.close(errors)
        with contextlib.suppress(OSError):
            ready.unlink(missing_ok=True)


def _start_error(text: str, folder: Path) -> NoronhaError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    if told:
        line = told[-1]
        if line.startswith("no space left"):
            return ResourceExhausted(line, reason="NO_SPACE")
        return FailedPrecondition(f"the mesh did not start: {line}", reason="MESH_NOT_STARTED")
    last = lines[-1] if lines else "it ended without a word"
    return FailedPrecondition(
        f"the mesh did not start: {last}; see {folder / 'logs' / 'start.log'}", reason="MESH_NOT_STARTED"
    )


def stop_mesh(mesh: Mesh, *, stop_tasks: bool = False, timeout: float = 60.0) -> list[int]:
    """Stops every server of a mesh and waits until an embedded one is gone; returns the process ids they had.

    Tasks go on unless ``stop_tasks``. All servers are asked, whatever becomes of the others; one where nobody listens
    is down already. Raises Unavailable ``SERVER_HANGS``, with all others stopped, when one does not answer within 10 s,
    with ``stop_tasks`` within ``timeout`` seconds; Unavailable when nobody listens anywhere, or when one is down that
    may have left tasks or the proxy running and ``stop_tasks`` asks for their end; DeadlineExceeded ``MESH_SLOW`` when
    an embedded mesh is still there after ``timeout`` seconds.
    """
    from noronha.v1 import mesh_pb2

    path = Path(mesh.address.removeprefix("unix:")) if mesh.address.startswith("unix:") else None
    socket_file = _identity(path)
    stopped = []
    hanging: list[Server] = []
    down: Unavailable | None = None
    # With the tasks a server answers only when they have ended.
    patience = timeout if stop_tasks else min(timeout, ANSWER_TIMEOUT)
    for server in mesh.servers():
        request = mesh_pb2.ShutdownRequest(stop_tasks=stop_tasks)
        try:
            stopped.append(server.mesh.Shutdown(request, timeout=patience).process_id)
        except (Unavailable, DeadlineExceeded) as error:
            if isinstance(error, Unavailable) and _is_down(server.address):
                down = down or error
            else:
                hanging.append(server)
    if hanging:
        raise _hanging(hanging, others=bool(stopped))
    if down is not None and (stop_tasks or not stopped):
        raise down
    if path is None:
        return stopped
    deadline = time.monotonic() + timeout
    # Whoever follows a training starts the next mesh at once: another socket in the same place is none of this one's.
    while any(_alive(process) for process in stopped) or (_identity(path) == socket_file and answers(path)):
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"the mesh, process {stopped[0]}, has not ended in {timeout:.0f} s", reason="MESH_SLOW"
            )
        time.sleep(0.01)
    return stopped


def _refusal(address: str) -> Exception | None:
    """Returns why no connection to an address can be made, None when one can."""
    try:
        if address.startswith("unix:"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(2)
                probe.connect(address.removeprefix("unix:"))
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except (OSError, ValueError) as error:  # or it is no address
        return error
    return None


def _is_down(address: str) -> bool:
    """Says whether nobody listens at an address; who listens and does not answer, or cannot be reached, may run."""
    return isinstance(_refusal(address), ConnectionRefusedError | FileNotFoundError)


def _hanging(servers: list[Server], *, others: bool) -> Unavailable:
    told = " and ".join(map(str, servers))
    several = len(servers) > 1
    what = "do not answer and may still run; end their processes" if several else (
        "does not answer and may still run; end its process"
    )
    return Unavailable(
        f"{'the other servers are stopped, but ' if others else ''}{told} {what}",
        reason="SERVER_HANGS", addresses=" ".join(each.address for each in servers),
    )  # fmt: skip


def _identity(path: Path | None) -> tuple[int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (found.st_ino, found.st_ctime_ns) if found is not None else None


def _alive(process: int) -> bool:
    for child in _started:
        if child.pid == process:
            return child.poll() is None
    try:
        # The state stands behind the name, which may hold anything. One that nobody has waited for yet is gone as well.
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b") ")[2][:1] not in (b"Z", b"X")
    except OSError:
        return False


def _has_mesh_keys(configuration: Configuration) -> bool:
    return bool((configuration.client.written | configuration.mesh.written) & configuration.mesh.fingerprint().keys())


def _refuse(configuration: Configuration, running: dict[str, str]) -> None:
    from noronha.client.configuration import contradiction

    line = contradiction(configuration, running)
    if line:
        raise InvalidArgument(line, reason="SETTING_DIFFERS")


def is_older(version: str, than: str) -> bool:
    """Says whether one release is older than another, by their numbers; a pre-release is older than its release."""
    return _order(version) < _order(than)


def _order(version: str) -> tuple[tuple[int, ...], int, int]:
    import re

    found = re.match(r"v?(\d+(?:\.\d+)*)(?:[.-]?(dev|a|b|rc)(\d*))?", version)
    if found is None:
        return (0,), 0, 0
    numbers = tuple(int(part) for part in found[1].split("."))
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers = numbers[:-1]
    rank = {"dev": 0, "a": 1, "b": 2, "rc": 3, None: 4}[found[2]]
    return numbers, rank, int(found[3] or 0)


def _stamp(path: Path) -> str:
    """Identifies one start of the mesh together with this installation: while both stay, its version is known."""
    there, here = os.stat(path), os.stat(__file__)
    return f"{there.st_ino}:{there.st_mtime_ns}:{here.st_mtime_ns}:{here.st_size}:{__file__}"


def _known(path: Path) -> bool:
    try:
        return (path.parent / "checked").read_text(encoding="utf-8") == _stamp(path)
    except (OSError, UnicodeDecodeError):
        return False


def _remember(path: Path) -> None:
    with contextlib.suppress(OSError):
        partial = path.parent / f"checked.{os.getpid()}"
        partial.write_text(_stamp(path), encoding="utf-8")
        partial.replace(path.parent / "checked")
