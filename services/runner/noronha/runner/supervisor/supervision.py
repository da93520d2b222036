"""One task from its start to its end.

A folder is the whole conversation with the mesh. ``workload.json`` says what to run; whoever holds the lock on ``lock``
runs it, once; ``supervisor.json`` and ``started.json`` say who runs; ``stop.json`` and SIGTERM ask for the end;
``exit.json`` says how it ended, once nothing of the task is left. Every file is there whole or not at all.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time

from noronha.runner.supervisor import cgroups, files, namespace, processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

WORKLOAD = "workload.json"
SUPERVISOR = "supervisor.json"
STARTED = "started.json"
STOP = "stop.json"
EXIT = "exit.json"
PLATFORM_LOG = "platform.log"

_WAITED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_CANNOT_BIND = 97
"""Exit code of a first process that could not get a view of its own."""


def main(arguments: list[str]) -> int:
    """Supervises the task of a folder; returns once nothing of it is left."""
    (folder,) = arguments
    os.umask(0o077)
    os.chdir(folder)
    lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # A second supervisor of one folder waits for the first to end and then finds nothing left to do.
    fcntl.flock(lock, fcntl.LOCK_EX)
    workload = files.read_json(WORKLOAD)
    if workload is None or os.path.exists(EXIT):
        return 0
    earlier = files.read_json(STARTED)
    if earlier is not None or os.path.exists(SUPERVISOR):
        clear(folder, earlier)
        write_exit(folder, {"lost": True})
        return 0
    # Before anybody can know of us: a signal that asks for the end must not end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED)
    identity = processes.identify(os.getpid())
    if identity is not None:
        files.write_json(SUPERVISOR, vars(identity))
    try:
        ended = _Task(folder, workload).live()
    except OSError as error:
        ended = {"error": _explain(error)}
    write_exit(folder, ended)
    return 0


def write_exit(folder: str, ended: dict[str, Any]) -> None:
    """Writes down how a task ended; the first to say so is right."""
    path = os.path.join(folder, EXIT)
    if not os.path.exists(path):
        files.write_json(path, {"time": time.time(), **ended})


def clear(folder: str, started: dict[str, Any] | None) -> None:
    """Ends what a task left behind whose supervisor is gone."""
    group = cgroups.Group(list((started or {}).get("groups", [])))
    end = time.monotonic() + 10
    while True:
        group.kill()
        left = set(group.pids()) | set(processes.marked(folder))
        left.discard(os.getpid())
        if not left or time.monotonic() > end:
            break
        processes.kill(sorted(left))
        time.sleep(0.01)
    group.remove()


def _explain(error: OSError) -> dict[str, str]:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return {"reason": "NO_SPACE", "message": "no space left for the task's folders; free some on the mesh's disk"}
    text = error.strerror or str(error)
    return {"reason": "NOT_STARTED", "message": f"the task could not be started: {text}" + _at(error)}


def _at(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


class _Task:
    def __init__(self, folder: str, workload: dict[str, Any]) -> None:
        self._folder = folder
        self._workload = workload
        self._group = cgroups.Group([])
        self._main = 0
        self._stopped = False
        self._forced = False
        self._timed_out = False
        self._deadline: float | None = None
        self._force_at: float | None = None

    def live(self) -> dict[str, Any]:
        """Starts the task, waits for its end, ends whatever it left, and returns how it ended."""
        namespace.become_subreaper()
        for name in self._workload["folders"]:
            os.makedirs(name, mode=0o700, exist_ok=True)
        source = self._workload.get("source")
        if source:
            files.copy_tree(source["from"], source["to"])
        limits = cgroups.Limits(**self._workload.get("limits", {}))
        self._group = cgroups.make(self._workload["id"], limits)
        bound = self._start()
        if isinstance(bound, dict):
            self._end_all()
            return bound
        identity = processes.identify(self._main)
        files.write_json(
            STARTED,
            {
                "task": vars(identity) if identity else None,
                "groups": self._group.folders,
                "limits_applied": self._group.limits_applied if limits.controllers else None,
                "bound": bound,
                "time": time.time(),
            },
        )
        timeout = self._workload.get("timeout")
        if timeout:
            self._deadline = time.monotonic() + timeout
        status = self._wait()
        out_of_memory = self._group.out_of_memory()
        self._end_all()
        return {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "stopped": self._stopped,
            "forced": self._forced,
            "timed_out": self._timed_out,
            "out_of_memory": out_of_memory,
        }

    # ------------------------------------------------------------------------------------------------- start

    def _start(self) -> bool | dict[str, Any]:
        """Starts the first process; returns whether it has a view of its own, or how it ended at once."""
        binds = [namespace.Bind(*each) for each in self._workload.get("binds", [])]
        error = self._spawn(binds) if binds else None
        if binds and error is None:
            return True
        if error is not None and error.get("code") != _CANNOT_BIND:
            return {"error": error}
        if error is not None and self._workload.get("must_bind"):
            message = f"the mounts cannot be made on this host: {error['message']}"
            return {"error": {"reason": "MOUNT_NOT_POSSIBLE", "message": message}}
        error = self._spawn([])
        return {"error": error} if error is not None else False

    def _spawn(self, binds: list[namespace.Bind]) -> dict[str, Any] | None:
        """Starts the first process; returns None once it runs the task's command, else what went wrong."""
        read, write = os.pipe()
        go_read, go_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            self._become_task(binds, write, go_read)
        os.close(write)
        os.close(go_read)
        self._main = pid
        if not self._group.limits_applied:
            # Moving a process takes the kernel some ten milliseconds. Only limits must hold from the first instruction
            # on: what might be forked meanwhile is found as a descendant.
            os.write(go_write, b"1")
        if self._group.folders and not self._group.add(pid):
            self._group.remove()
            self._group = cgroups.Group([])
        if self._group.limits_applied:
            os.write(go_write, b"1")
        os.close(go_write)
        with open(read, "rb") as said:
            text = said.read()
        if not text:
            return None
        os.waitpid(pid, 0)
        error: dict[str, Any] = json.loads(text)
        return error

    def _become_task(self, binds: list[namespace.Bind], write: int, go: int) -> NoReturn:
        code = 1
        try:
            os.read(go, 1)
            namespace.end_with_parent(signal.SIGKILL)
            if os.getppid() == 1:
                os._exit(1)
            log = os.open(PLATFORM_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            try:
                with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
                    file.write("500")  # when memory runs out, tasks go before the mesh
            except OSError:
                pass
            if binds:
                try:
                    namespace.enter(os.path.join(self._folder, "root"), binds, self._workload.get("keep", []))
                except OSError:
                    code = _CANNOT_BIND
                    raise
            os.chdir(self._workload["working_folder"])
            os.umask(0o022)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WAITED)
            command = self._workload["command"]
            os.execve(command[0], command, {**self._workload["environment"], processes.MARK: self._folder})
        except OSError as error:
            said = {**_explain(error), "code": code} if code != _CANNOT_BIND else {"message": str(error), "code": code}
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(code)

    # --------------------------------------------------------------------------------------------------- end

    def _wait(self) -> int:
        """Waits until the first process has ended; returns its status."""
        while True:
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    return 0
                if pid == self._main:
                    return status
                if pid == 0:
                    break
            self._heed()
            heard = signal.sigtimedwait(_WAITED, self._patience())
            if heard is not None and heard.si_signo in (signal.SIGTERM, signal.SIGINT):
                self._asked()

    def _patience(self) -> float:
        times = [each for each in (self._deadline, self._force_at) if each is not None]
        return max(0.0, min(times) - time.monotonic()) if times else 3600.0

    def _asked(self) -> None:
        """Somebody wants the task to end: it is told so, and has some time."""
        asked = files.read_json(STOP) or {}
        self._stopped = True
        self._begin_to_end(float(asked.get("grace", self._workload.get("grace", 10.0))))

    def _begin_to_end(self, grace: float) -> None:
        force_at = time.monotonic() + grace
        self._force_at = force_at if self._force_at is None else min(self._force_at, force_at)
        try:
            os.kill(self._main, signal.SIGTERM)
        except ProcessLookupError:
            pass

    def _heed(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            self._deadline = None
            self._timed_out = True
            self._begin_to_end(float(self._workload.get("grace", 10.0)))
        if self._force_at is not None and now >= self._force_at:
            self._force_at = time.monotonic() + 1
            self._forced = True
            processes.kill([self._main])

    def _end_all(self) -> None:
        """Ends every descendant, however it tried to get away, and reaps them."""
        end = time.monotonic() + 30
        me = os.getpid()
        while True:
            self._group.kill()
            processes.kill(processes.descendants(me))
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                break  # whatever descends from us has us as its parent sooner or later: nothing is left
            if time.monotonic() > end:
                break
            signal.sigtimedwait([signal.SIGCHLD], 0.005)
        self._group.remove()
