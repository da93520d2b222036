"""gunicorn inside a notebook's kernel: settings in one place, workers that never return into the notebook.

The kernel's main thread is the arbiter; SIGTERM to the kernel finishes what is in flight and returns from the cell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any

from noronha.tools import surroundings
from noronha.tools.errors import ServingError

SIMPLE = "simple"
GUNICORN = "gunicorn"

DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 8080
"""Where a server listens when no task says otherwise."""

KEEPALIVE = 75
"""Seconds that an idle connection is kept: longer than proxies keep theirs, so none closes just as a request comes."""

WEB_SERVER_KEYS = {"type", "enable_debug", "threads", "extra_conf", "host", "port"}
_OF_WERKZEUG = {"use_debugger", "use_evalex", "use_reloader", "reloader_interval", "reloader_type", "extra_files",
                "exclude_patterns", "request_handler", "static_files", "passthrough_errors", "ssl_context"}  # fmt: skip


def settings(
    web_server: Mapping[str, Any], *, server_type: str | None = None, server_conf: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns gunicorn's settings for a ``web_server`` section and what a notebook says on top of it.

    ``simple`` is one worker with one thread that keeps connections. ``gunicorn`` has ``extra_conf.workers`` workers;
    with ``threads.enabled`` each has ``threads.number`` threads, else two per processor, four with ``high_cpu``.
    ``extra_conf`` and ``server_conf`` may hold any setting of gunicorn. Raises ServingError for one it does not have.
    """
    told = dict(server_conf or {})
    section: dict[str, Any] = dict(web_server)
    for key in WEB_SERVER_KEYS & told.keys():
        if key == "threads" and not isinstance(told[key], Mapping):
            continue  # gunicorn's own setting of that name
        section[key] = told.pop(key)
    kind = server_type or section.get("type") or SIMPLE
    if kind not in (SIMPLE, GUNICORN):
        raise ServingError(f"server type {kind!r} is not known; use 'simple' or 'gunicorn'", reason="BAD_SERVER_TYPE")
    chosen: dict[str, Any] = {
        "bind": f"{_bracketed(str(section.get('host') or DEFAULT_HOST))}:{section.get('port', DEFAULT_PORT)}",
        "keepalive": KEEPALIVE,
        "loglevel": "debug" if section.get("enable_debug") else "info",
        "proc_name": "noronha",
        "workers": 1,
        "threads": 1,
        "worker_class": "gthread",
    }
    extra = dict(section.get("extra_conf") or {})
    if kind == GUNICORN:
        threads = dict(section.get("threads") or {})
        if threads.get("enabled"):
            per_processor = 4 if threads.get("high_cpu") else 2
            chosen["threads"] = int(threads.get("number") or per_processor * (os.cpu_count() or 1))
        else:
            chosen["worker_class"] = "sync"
    else:
        extra = {key: value for key, value in extra.items() if key not in ("workers", "threads", "worker_class")}
        if told.pop("threaded", False):
            chosen["threads"] = 2 * (os.cpu_count() or 1)
        chosen["workers"] = int(told.pop("processes", 1))
        for key in sorted(_OF_WERKZEUG & told.keys()):
            told.pop(key)
            warnings.warn(f"server_conf[{key!r}] has no effect any more", stacklevel=3)
        chosen["timeout"] = 0 if chosen["workers"] == 1 else 30
    chosen.update(extra)
    chosen.update(told)
    _check(chosen)
    return chosen


def _check(chosen: Mapping[str, Any]) -> None:
    config = _loaded()()
    for key, value in chosen.items():
        if key not in config.settings:
            raise ServingError(f"{key!r} is no setting of gunicorn; see docs.gunicorn.org for those there are",
                               reason="UNKNOWN_SETTING", setting=key)  # fmt: skip
        try:
            config.set(key, value)
        except (TypeError, ValueError) as error:
            raise ServingError(f"gunicorn's setting {key!r} cannot be {value!r}: {error}",
                               reason="BAD_SETTING", setting=key) from None  # fmt: skip


def _loaded() -> Any:
    """Returns gunicorn's class of settings once all of gunicorn that serves is imported.

    A project may pin any gunicorn. Raises ServingError ``GUNICORN_UNUSABLE`` for one that this Python cannot import.
    """
    try:
        import gunicorn.app.base
        import gunicorn.arbiter
        import gunicorn.config
    except Exception as error:
        try:
            found = f"gunicorn {metadata.version('gunicorn')}"
        except metadata.PackageNotFoundError:
            found = "gunicorn, which is not installed,"
        raise ServingError(
            f"{found} cannot serve on Python {platform.python_version()}: {error}; name another version of gunicorn, "
            "or what it misses, in the project's requirements, and build it again",
            reason="GUNICORN_UNUSABLE",
        ) from error
    return gunicorn.config.Config


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def serve(application: Callable[..., Any], *, server_type: str | None, server_conf: Mapping[str, Any] | None) -> None:
    """Serves a WSGI application until SIGTERM; returns after what is in flight is finished.

    Raises ServingError when the address is taken or the workers cannot start.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ServingError("a model server must be called in the notebook's own thread", reason="NOT_MAIN_THREAD")
    web_server = surroundings.facts().get("web_server", {})
    server = _Server(application, settings(web_server, server_type=server_type, server_conf=server_conf))
    with _restored_signals():
        code = server.run()
    if code:
        raise ServingError(f"the web server ended with code {code}; the lines above say why", reason="SERVER_ENDED")


@contextlib.contextmanager
def _restored_signals() -> Iterator[None]:
    """Gives the kernel back its own handling of signals, and its wake-up pipe."""
    numbers = [
        getattr(signal, f"SIG{name}")
        for name in ["HUP", "QUIT", "INT", "TERM", "TTIN", "TTOU", "USR1", "USR2", "WINCH", "CHLD"]
    ]
    before = {number: signal.getsignal(number) for number in numbers}
    wakeup = signal.set_wakeup_fd(-1)
    if wakeup != -1:
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


def _announce(host: str, port: int) -> None:
    """Tells the task where we listen; without a task, or one that is gone, nobody wants to know."""
    from noronha.tools import channel

    if surroundings.task_folder() is None:
        return
    try:
        channel.ask("serving", what="serving", timeout=30, host=host, port=port)
    except Exception as error:
        logging.getLogger("noronha.serving").warning("the task was not told where we listen: %s", error)


class _Server:
    """One run of gunicorn; a class of its own so that nothing of gunicorn is imported before it is needed."""

    def __init__(self, application: Callable[..., Any], chosen: dict[str, Any]):
        self._application = application
        self._chosen = chosen

    def run(self) -> int:
        """Runs the arbiter and returns its exit code."""
        from gunicorn.app.base import BaseApplication
        from gunicorn.arbiter import Arbiter

        chosen, application = self._chosen, self._application

        class Application(BaseApplication):  # type: ignore[misc]
            def load_config(self) -> None:
                for key, value in chosen.items():
                    self.cfg.set(key, value)
                if "control_socket_disable" in self.cfg.settings and "control_socket" not in chosen:
                    self.cfg.set("control_socket_disable", True)
                when_ready, post_fork = self.cfg.when_ready, self.cfg.post_fork

                def ready(server: Any) -> None:
                    for listener in server.LISTENERS:
                        address = listener.sock.getsockname()
                        if isinstance(address, tuple):
                            _announce(address[0], address[1])
                            break
                    when_ready(server)

                def forked(server: Any, worker: Any) -> None:
                    _speak_plainly(server.log)
                    post_fork(server, worker)

                self.cfg.set("when_ready", ready)
                self.cfg.set("post_fork", forked)

            def load(self) -> Callable[..., Any]:
                return application

        class WorkersNeverReturn(Arbiter):  # type: ignore[misc]
            def spawn_worker(self) -> Any:
                parent = os.getpid()
                code = 1
                try:
                    return super().spawn_worker()
                except SystemExit as ending:
                    code = ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
                    if os.getpid() == parent:
                        raise
                finally:
                    # The worker is a fork of a notebook's kernel: its end must end the process, not only a cell.
                    if os.getpid() != parent:
                        for stream in (sys.stdout, sys.stderr):
                            with contextlib.suppress(Exception):
                                stream.flush()
                        os._exit(code & 0xFF)
                return None

        try:
            WorkersNeverReturn(Application()).run()
        except SystemExit as ending:
            return ending.code if isinstance(ending.code, int) else 0 if ending.code is None else 1
        return 0


def _speak_plainly(log: Any) -> None:
    """Has a worker write to its file descriptors: the kernel's own streams need threads that a fork does not have."""
    old = {id(sys.stdout): "stdout", id(sys.stderr): "stderr"}
    streams = {
        name: os.fdopen(number, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)
        for number, name in ((1, "stdout"), (2, "stderr"))
    }
    loggers: list[Any] = [logging.getLogger(), getattr(log, "error_log", None), getattr(log, "access_log", None)]
    loggers += [one for one in logging.Logger.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    for logger in loggers:
        for handler in getattr(logger, "handlers", []):
            name = old.get(id(getattr(handler, "stream", None)))
            if name:
                handler.stream = streams[name]
    sys.stdout, sys.stderr = streams["stdout"], streams["stderr"]
