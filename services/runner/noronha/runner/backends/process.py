"""Runs workloads as processes of this machine, each under a supervisor that outlives the mesh.

Everything known of a workload is in its folder ``<state>/runner/tasks/<id>/``; nothing is in memory alone, so another
mesh that opens the folder finds all of it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import noronha.runner.supervisor
from noronha.chassis import places
from noronha.rpc.disk import state_error
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NotFound
from noronha.runner.backend import ASSIGNMENT, PYTHON, Cause, Exit, Instance, Workload
from noronha.runner.supervisor import cgroups, files, processes, supervision
from noronha.runner.supervisor.processes import Identity

FOLDERS = ("app", "data", "model", "tmp", "logs")
"""Folders that every task gets for itself; where the host allows it they lie at the root of its own view as well."""

_INHERITED = (
    "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NVIDIA_VISIBLE_DEVICES",
)  # fmt: skip
"""Variables of the mesh that tasks get; no others, since some may hold secrets."""

_RESERVED = ("/proc", "/sys", "/dev")
_LOG_BYTES = 64 << 10
_SUPERVISOR = str(Path(noronha.runner.supervisor.__path__[0]) / "__main__.py")


class Processes:
    """The ``process:`` backend."""

    listens_anywhere = True

    def __init__(self, url: str, folder: Path, root: Path) -> None:
        self._tasks = folder / "tasks"
        self._root = root
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        files_needed = [str(root), sys.prefix, sys.base_prefix, *(each for each in sys.path if os.path.isdir(each))]
        self._needed = sorted({os.path.realpath(each) for each in files_needed} | set(files_needed))
        try:
            self._tasks.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise state_error(self._tasks, error) from error

    # ----------------------------------------------------------------------------------------------- the port

    async def check(self, workload: Workload) -> None:
        """Refuses volumes, mounts that would hide what the task needs, and builds that are no environment."""
        for mount in workload.mounts:
            self._check_mount(mount.source, mount.target)
        artifact = workload.artifact
        digest = artifact.environment_digest
        if digest and not places.environment_python(self._root, digest).exists():
            raise FailedPrecondition(
                "the build's environment is no longer on this machine; build the project again",
                reason="BUILD_NOT_HERE", environment=digest,
            )  # fmt: skip
        if artifact.image and not digest:
            raise FailedPrecondition(
                f"the build is an image, {artifact.image}, which needs swarm or kube; build the project on this mesh",
                reason="BUILD_IS_IMAGE", image=artifact.image,
            )  # fmt: skip

    def _check_mount(self, source: str, target: str) -> None:
        if not source.startswith("/"):
            raise InvalidArgument(
                f"mount {source!r} is a volume, which needs swarm or kube; name a folder by its absolute path",
                reason="BAD_MOUNT", source=source,
            )  # fmt: skip
        if not os.access(source, os.R_OK):
            raise FailedPrecondition(
                f"mount {source} does not exist or cannot be read by the mesh",
                reason="MOUNT_NOT_READABLE", source=source,
            )  # fmt: skip
        hidden = next((each for each in self._needed if each == target or each.startswith(target + "/")), None)
        if hidden is not None or any(target == each or target.startswith(each + "/") for each in _RESERVED):
            raise InvalidArgument(
                f"a mount at {target} would hide {hidden or 'the system'} from the task; choose another target",
                reason="BAD_MOUNT", target=target,
            )  # fmt: skip

    async def start(self, workload: Workload) -> None:
        """Writes the folder and starts its supervisor."""
        if workload.id in self._started:
            return
        folder = self._tasks / workload.id
        try:
            if not self._prepare(folder, workload):
                return
            with open(folder / supervision.PLATFORM_LOG, "ab") as log:
                # A child forked by Python would copy this process and its threads; this one is made by vfork.
                self._started[workload.id] = subprocess.Popen(  # noqa: ASYNC220
                    [sys.executable, "-I", "-S", _SUPERVISOR, str(folder)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                    env={"PATH": os.defpath, processes.MARK + "_SUPERVISOR": str(folder)},
                )  # fmt: skip
        except OSError as error:
            raise state_error(folder, error) from error

    async def list(self) -> list[Instance]:
        """Reads every folder."""
        found = []
        for name in sorted(os.listdir(self._tasks)):
            instance = self._read(name)
            if instance is not None:
                found.append(instance)
        return found

    async def inspect(self, id: str) -> Instance | None:
        """Reads the folder."""
        return self._read(id)

    async def wait(self, id: str) -> Instance:
        """Waits for the supervisor's end by its file descriptor, whoever started it."""
        folder = self._tasks / id
        while True:
            instance = self._read(id)
            if instance is None:
                raise NotFound(f"there is no workload {id}", name=id)
            if instance.exit is not None:
                await self._reap(id)
                return instance
            identity = self._supervisor(folder)
            started = self._started.get(id)
            if identity is not None and processes.is_alive(identity):
                await _gone(identity)
            elif started is not None and started.poll() is None:
                await _gone(processes.identify(started.pid))
            elif identity is None and started is None:
                await asyncio.sleep(0.2)  # written by a mesh that died before it could start a supervisor: see start
            elif not (folder / supervision.EXIT).exists():
                await self._give_up(folder)

    async def stop(self, id: str, grace: float | None = None) -> None:
        """Tells the supervisor, which tells the task."""
        folder = self._tasks / id
        if not folder.exists() or (folder / supervision.EXIT).exists():
            return
        if grace is not None:
            files.write_json(str(folder / supervision.STOP), {"grace": grace})
        for _ in range(500):
            identity = self._supervisor(folder)
            if identity is not None:
                _signal(identity, signal.SIGTERM)
                return
            started = self._started.get(id)
            if started is None or started.poll() is not None:
                return
            await asyncio.sleep(0.01)  # on its way: until it has its signals in hand, one would end it

    async def read_log(self, id: str) -> bytes:
        """Returns the end of what the task's first process wrote to its standard output and error."""
        try:
            with open(self._tasks / id / supervision.PLATFORM_LOG, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - _LOG_BYTES))
                return file.read(_LOG_BYTES)
        except OSError:
            return b""

    def folder(self, id: str) -> Path | None:
        """Returns the task's folder."""
        folder = self._tasks / id
        return folder if folder.is_dir() else None

    async def clean(self, id: str) -> None:
        """Removes the task's folders, its logs excepted, and its token."""
        folder = self._tasks / id
        for name in ("app", "data", "model", "tmp", "root"):
            await asyncio.to_thread(_remove_tree, folder / name)
        (folder / "token").unlink(missing_ok=True)

    async def remove(self, id: str) -> None:
        """Ends the task and removes its folder."""
        folder = self._tasks / id
        if not folder.is_dir():
            return
        if (instance := self._read(id)) is not None and instance.exit is None:
            await self.stop(id, 0.0)
            if self._supervisor(folder) is not None or id in self._started:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.wait(id), 30)
        await self._reap(id)
        # The description goes first: a folder without one is nobody's task, whenever the rest is interrupted.
        (folder / supervision.WORKLOAD).unlink(missing_ok=True)
        await asyncio.to_thread(_remove_tree, folder)

    async def close(self) -> None:
        """Leaves supervisors and tasks running."""
        self._started.clear()

    # --------------------------------------------------------------------------------------------- the folder

    def _prepare(self, folder: Path, workload: Workload) -> bool:
        """Writes everything that a supervisor needs; tells whether one is to be started."""
        description = folder / supervision.WORKLOAD
        if not description.exists():
            if folder.exists():
                _remove_tree(folder)
            folder.mkdir(mode=0o700)
            _private(folder / "token", workload.token)
            _private(folder / "assignment.json", json.dumps(self._assignment(folder, workload)))
            files.write_json(str(description), self._describe(folder, workload))
            return True
        if (folder / supervision.EXIT).exists():
            return False
        return self._supervisor(folder) is None

    def _assignment(self, folder: Path, workload: Workload) -> dict[str, Any]:
        return {
            "address": workload.address,
            "token_file": str(folder / "token"),
            "interpreter": self._interpreter(workload),
            "directories": {"task": str(folder), **{name: str(folder / name) for name in FOLDERS}},
        }

    def _interpreter(self, workload: Workload) -> str:
        digest = workload.artifact.environment_digest
        return str(places.environment_python(self._root, digest)) if digest else sys.executable

    def _describe(self, folder: Path, workload: Workload) -> dict[str, Any]:
        artifact = workload.artifact
        interpreter = self._interpreter(workload)
        fixed = {PYTHON: sys.executable, ASSIGNMENT: str(folder / "assignment.json")}
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        binds: list[list[object]] = [[str(folder / name), f"/{name}", False, True] for name in FOLDERS]
        binds += [[os.path.realpath(each.source), each.target, each.read_only, False] for each in workload.mounts]
        targets = tuple(f"{os.path.realpath(str(bind[1]))}/" for bind in binds)
        limits = workload.resources.limits
        return {
            "id": workload.id,
            "resource": workload.resource,
            "purpose": workload.purpose,
            "command": [fixed.get(each, each) for each in workload.command],
            "environment": {
                **inherited,
                "PATH": os.path.dirname(interpreter) + os.pathsep + os.environ.get("PATH", os.defpath),
                "TMPDIR": str(folder / "tmp"),
                "APP_HOME": str(folder / "app"),
                "LOCAL_DATA_DIR": str(folder / "data"),
                "LOCAL_MODEL_DIR": str(folder / "model"),
                "LOG_DIR": str(folder / "logs"),
                **workload.environment,
            },
            "working_folder": str(folder),
            "folders": [*FOLDERS, "root"],
            "source": (
                {"from": str(places.source_folder(self._root, artifact.source_digest)), "to": str(folder / "app")}
                if artifact.source_digest
                else None
            ),
            "binds": binds,
            "must_bind": bool(workload.mounts),
            "keep": [each for each in (*self._needed, _home(interpreter)) if each.startswith(targets)],
            "limits": {"memory_bytes": limits.memory_mb << 20, "cpu_milli": limits.cpu_milli},
            "timeout": workload.timeout,
            "grace": workload.grace,
        }

    def _supervisor(self, folder: Path) -> Identity | None:
        said = files.read_json(str(folder / supervision.SUPERVISOR))
        return None if said is None else Identity(**said)

    def _read(self, id: str) -> Instance | None:
        folder = self._tasks / id
        described = files.read_json(str(folder / supervision.WORKLOAD))
        if described is None:
            return None
        ended = files.read_json(str(folder / supervision.EXIT))
        started = files.read_json(str(folder / supervision.STARTED)) or {}
        task = started.get("task") or {}
        return Instance(
            id=id,
            resource=described["resource"],
            handle=f"process {task['pid']}" if task else "",
            start_time=started.get("time", 0.0),
            exit=_exit(ended) if ended is not None else None,
            limits_applied=started.get("limits_applied"),
            bound=bool(started.get("bound")),
            out_of_memory=bool(ended and ended.get("out_of_memory"))
            or (ended is None and cgroups.Group(started.get("groups", [])).out_of_memory()),
        )

    async def _give_up(self, folder: Path) -> None:
        """Ends what a supervisor left that was itself killed, and says so in its stead."""
        started = files.read_json(str(folder / supervision.STARTED))
        await asyncio.to_thread(supervision.clear, str(folder), started)
        supervision.write_exit(str(folder), {"lost": True})

    async def _reap(self, id: str) -> None:
        started = self._started.get(id)
        if started is None:
            return
        # It has said its last word and only has to leave.
        if started.poll() is None:
            await _gone(processes.identify(started.pid))
            started.poll()
        self._started.pop(id, None)


def _exit(ended: dict[str, Any]) -> Exit:
    """Returns what a supervisor wrote down as the port says it."""
    if ended.get("lost"):
        return Exit(Cause.LOST, "what watched over the task is gone, so nobody knows how it ended")
    error = ended.get("error")
    if error:
        return Exit(Cause.NOT_STARTED, error["message"], reason=error.get("reason", ""))
    number = ended.get("signal")
    code = ended.get("code")
    how = f"was killed by {_signal_name(number)}" if number else f"ended with code {code}"
    if ended.get("timed_out"):
        return Exit(Cause.TIMED_OUT, "the task ran longer than its timeout", code)
    if ended.get("stopped"):
        return Exit(Cause.STOPPED, "the task was stopped" + (" by force" if ended.get("forced") else ""), code)
    if ended.get("out_of_memory"):
        return Exit(Cause.OUT_OF_MEMORY, f"the task reached its limit of memory; its process {how}", code)
    if number:
        return Exit(Cause.KILLED, f"the task's process {how}")
    return Exit(Cause.ENDED, f"the task's process {how}", code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _signal(identity: Identity, number: int) -> None:
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:  # gone, or a kernel that has no such call
        if processes.is_alive(identity):
            with contextlib.suppress(ProcessLookupError):
                os.kill(identity.pid, number)
        return
    try:
        # Checked with the descriptor open: the id cannot pass to another process in between.
        if processes.is_alive(identity):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
    finally:
        os.close(descriptor)


async def _gone(identity: Identity | None) -> None:
    """Waits until a process has ended."""
    if identity is None:
        return
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel before 5.3
        while processes.is_alive(identity):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        if processes.is_alive(identity):
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


def _home(interpreter: str) -> str:
    """Returns the folder of the installation that an environment's interpreter comes from."""
    return os.path.dirname(os.path.dirname(os.path.realpath(interpreter)))


def _private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _remove_tree(folder: Path) -> None:
    """Removes a folder, also where a task took its own permissions away."""

    def again(function: Callable[..., Any], path: str, _: object) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), 0o700)
            os.chmod(path, 0o700)
            function(path)

    if sys.version_info >= (3, 12):
        shutil.rmtree(folder, onexc=again)
    else:
        shutil.rmtree(folder, onerror=again)
