"""A kernel of our own: started at once, reached over Unix sockets in a private folder, ended for certain.

The interpreter is given, so the kernel runs in the project's environment while whoever drives it runs in another
one; kernelspecs play no part. Starting needs nothing but the standard library: the kernel boots while its driver
still imports what it needs to talk to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from noronha.tools.failures import NotebookFailure

if TYPE_CHECKING:
    from jupyter_client.connect import KernelConnectionInfo

START_TIMEOUT = 120.0
"""Seconds a kernel may take until it answers; a cold environment on a slow disk needs some of them."""

CHANNELS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}

_LEAVE = "__import__('IPython').get_ipython().exit_now = True"
"""Ends a kernel from inside. A shutdown request would be handled by another thread of the kernel than the one that
ends, and now and then the two wait for each other for ever."""

_PROLOGUE = """
import faulthandler, sys
from IPython import get_ipython
# The trace of a crash goes past the kernel's own capturing of output, which dies with it.
faulthandler.enable(file=getattr(sys.stderr, '_original_stdstream_copy', 2))
# Messages past the first thousand that wait to be sent would be thrown away.
try:
    output = get_ipython().kernel.iopub_thread
    output.schedule(lambda socket=output.socket: setattr(socket, 'sndhwm', 0))
except Exception:
    pass
"""
"""What each kernel does first; leaves no name behind."""

_LONGEST_FOLDER = 90
"""Bytes that the path of a folder with sockets may have; a socket's own may have 107."""


class RuntimeFolder:
    """A folder only its user can enter, for sockets and the files that go with them: a new one below ``parent``.

    A Unix socket's path is short. Where the folder's is not, `for_sockets` leads to it through an open descriptor.
    """

    def __init__(self, parent: str | os.PathLike[str] | None = None):
        if parent is not None:
            Path(parent).mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"nha-run-{os.getpid()}-", dir=parent or "/tmp"))
        self._descriptor: int | None = None

    @property
    def for_sockets(self) -> Path:
        """The folder by a path that is short enough for sockets; holds while this object does."""
        if len(os.fsencode(self.path)) < _LONGEST_FOLDER:
            return self.path
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        return Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")

    def remove(self) -> None:
        """Removes the folder; harmless to repeat."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        shutil.rmtree(self.path, ignore_errors=True)


class Kernel:
    """One kernel process and the way to it.

    ``interpreter`` is the Python to run, ``cwd`` its working folder, ``environment`` all of its variables.
    The process is a session of its own, so that a signal reaches what it started as well.
    """

    def __init__(
        self,
        interpreter: str,
        *,
        runtime: RuntimeFolder,
        cwd: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
    ):
        self.interpreter = interpreter
        self._runtime = runtime.path
        self._cwd = str(cwd)
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._last_words = _LastWords()
        self.connection: dict[str, Any] = {
            **CHANNELS,
            "transport": "ipc",
            "ip": str(runtime.for_sockets / "kernel"),
            "key": secrets.token_hex(32),
            "signature_scheme": "hmac-sha256",
            "kernel_name": "",
        }
        self._client: Any = None
        self._shutdown_asked = False

    # -- life ---------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """Starts the process, unless it was started, and returns at once.

        Raises NotebookFailure ``KERNEL_NOT_STARTED``.
        """
        if self._process is not None:
            return
        file = self._runtime / "kernel.json"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as stream:
            json.dump(self.connection, stream)
        environment = {
            "IPYTHONDIR": str(self._runtime / "ipython"),  # the user's own IPython start-up files are not the project's
            "PYTHONUNBUFFERED": "1",
            **self._environment,
            "JPY_PARENT_PID": str(os.getpid()),  # the kernel ends itself when its driver is gone
        }
        environment.pop("PYTEST_CURRENT_TEST", None)  # or it would lose what its child processes print
        command = [self.interpreter, "-m", "ipykernel_launcher", "-f", str(file), "--HistoryManager.hist_file=:memory:"]
        try:
            self._process = subprocess.Popen(
                command,
                cwd=self._cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise NotebookFailure(
                "KERNEL_NOT_STARTED", f"The kernel did not start: {self.interpreter}: {error.strerror}."
            ) from None
        assert self._process.stdout is not None
        self._last_words.follow(self._process.stdout)

    @property
    def pid(self) -> int:
        """Process id; 0 before the start."""
        return self._process.pid if self._process else 0

    def ended(self) -> int | None:
        """Returns the exit code of a process that has ended (negative: the signal), None while it runs."""
        return self._process.poll() if self._process else None

    def describe_end(self) -> str:
        """Returns how the process ended, in words."""
        code = self.ended()
        if code is None:
            return "runs"
        if code >= 0:
            return f"exited with code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (" (perhaps out of memory)" if name == "SIGKILL" else "")

    def last_words(self) -> str:
        """Returns the end of what the process wrote past its notebook, such as the trace of a crash."""
        if self.ended() is not None:
            self._last_words.wait(0.3)
        return self._last_words.text()

    def signal(self, number: int) -> None:
        """Sends a signal to the kernel alone; harmless when it has ended."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def interrupt(self) -> None:
        """Interrupts the running cell, as Ctrl-C would; what the cell started is interrupted as well."""
        self._signal_group(signal.SIGINT)

    def kill(self) -> None:
        """Kills the kernel and its process group, and reaps it; harmless to repeat."""
        if self._process is None:
            return
        self._signal_group(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)

    def _signal_group(self, number: int) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    # -- talking ------------------------------------------------------------------------------------------------
    async def connect(self, cancelled: asyncio.Event, timeout: float = START_TIMEOUT) -> Any:
        """Waits until the kernel answers and returns a client of jupyter_client whose channels are open.

        Returns None when ``cancelled`` is set first. Raises NotebookFailure ``KERNEL_NOT_STARTED``.
        """
        import zmq
        import zmq.asyncio
        from jupyter_client.asynchronous.client import AsyncKernelClient

        deadline = time.monotonic() + timeout
        last = Path(f"{self.connection['ip']}-{CHANNELS['hb_port']}")  # bound after all the others
        while not last.exists():
            if cancelled.is_set():
                return None
            self._check_start(deadline, timeout)
            await asyncio.sleep(0.005)
        context = zmq.asyncio.Context()
        # Output is drained at once and capped afterwards; a limit here would lose messages, "idle" among them.
        context.setsockopt(zmq.RCVHWM, 0)
        client = AsyncKernelClient(context=context)
        self._client = client
        client.load_connection_info(cast("KernelConnectionInfo", self.connection))
        client.start_channels(hb=False, stdin=False)
        await self._answered(client, cancelled, deadline, timeout)
        if cancelled.is_set():
            return None
        client.execute(f"exec({_PROLOGUE!r}, {{}})", silent=True, store_history=False)
        return client

    async def _answered(self, client: Any, cancelled: asyncio.Event, deadline: float, timeout: float) -> None:
        """Asks for the kernel's info until both the answer and its echo on the output channel have come.

        The output channel joins late by nature: only a message seen on it proves that later ones will be.
        """
        asked: set[str] = set()
        answered = heard = False
        ask_again = 0.0
        while not (answered and heard) and not cancelled.is_set():
            self._check_start(deadline, timeout)
            if time.monotonic() >= ask_again:
                asked.add(client.kernel_info())
                ask_again = time.monotonic() + 1.0
            shell, output = client.shell_channel, client.iopub_channel
            await asyncio.wait(
                [
                    asyncio.ensure_future(_readable(shell.socket, 0.1)),
                    asyncio.ensure_future(_readable(output.socket, 0.1)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
            while await shell.msg_ready():
                message = await shell.get_msg(timeout=0)
                answered = answered or message["parent_header"].get("msg_id") in asked
            while await output.msg_ready():
                message = await output.get_msg(timeout=0)
                heard = heard or message["parent_header"].get("msg_id") in asked

    def _check_start(self, deadline: float, timeout: float) -> None:
        if self.ended() is not None:
            words = self.last_words()
            raise NotebookFailure(
                "KERNEL_NOT_STARTED",
                f"The kernel {self.describe_end()} before it answered."
                + (f" It said: {words.splitlines()[-1][:300]}" if words.strip() else ""),
            )
        if time.monotonic() > deadline:
            raise NotebookFailure("KERNEL_NOT_STARTED", f"The kernel did not answer within {timeout:g} s.")

    # -- end ----------------------------------------------------------------------------------------------------
    def ask_shutdown(self) -> None:
        """Asks the kernel to end, and returns at once; `close` waits for it."""
        if self._client is None or self._shutdown_asked or self.ended() is not None:
            return
        self._shutdown_asked = True
        with contextlib.suppress(Exception):  # a socket that is gone already: close() kills
            self._client.execute(_LEAVE, silent=True, store_history=False)

    def disconnect(self) -> None:
        """Closes the channels, after what was sent has left."""
        if self._client is not None:
            # Closing one channel at a time would throw a request to shut down away before it is on its way.
            with contextlib.suppress(Exception):
                self._client.context.destroy(linger=200)
            self._client = None

    def close(self, timeout: float = 5.0) -> None:
        """Waits up to ``timeout`` seconds for a kernel that was asked to end, then kills it and its process group."""
        if self._process is None:
            return
        if self._shutdown_asked:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        self.kill()


async def _readable(socket: Any, timeout: float) -> None:
    await socket.poll(int(timeout * 1000))


class _LastWords:
    """Keeps the end of what a process writes to its own standard output and error."""

    KEPT = 16384

    def __init__(self) -> None:
        self._kept = b""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def follow(self, stream: Any) -> None:
        self._thread = threading.Thread(target=self._read, args=(stream,), name="kernel-last-words", daemon=True)
        self._thread.start()

    def _read(self, stream: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            while data := os.read(stream.fileno(), 65536):
                with self._lock:
                    self._kept = (self._kept + data)[-self.KEPT :]

    def wait(self, timeout: float) -> None:
        """Waits for the end of the output; children of the process may hold it open."""
        if self._thread is not None:
            self._thread.join(timeout)

    def text(self) -> str:
        with self._lock:
            return self._kept.decode("utf-8", "replace")
