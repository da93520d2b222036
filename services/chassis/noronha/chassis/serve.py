"""The serve loop: mounts one service or all five on one server, and sees it through to its end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import logging
import logging.handlers
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from noronha.chassis import mesh, principals
from noronha.chassis.call_log import CallLog
from noronha.chassis.interceptors import Activity, Guard
from noronha.chassis.mount import Context, ServiceState, make_private
from noronha.chassis.peers import Peers
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.chassis.registry import without_credentials
from noronha.rpc.addresses import check_socket_path
from noronha.rpc.dial import FLOW
from noronha.rpc.disk import state_error
from noronha.rpc.errors import FailedPrecondition, InvalidArgument
from noronha.rpc.release import own_version
from noronha.rpc.settings import Settings

SERVICES = ("metadata", "store", "builder", "runner", "router")
"""The five services, in the order they are mounted; they stop in reverse."""

STOPPED_FILE = "stopped"
"""File in the state folder that a mesh leaves when it was told to stop, so that nobody takes that for a crash."""

log = logging.getLogger("noronha")


@dataclass(frozen=True)
class Options:
    """What a server is started with."""

    settings: Settings
    services: Sequence[str] = SERVICES
    listen: str = ""
    """``unix:/path`` or ``host:port``; empty means the embedded socket in the state folder. Port 0 takes a free one."""
    peers: Mapping[str, str] = field(default_factory=dict)
    """Addresses of the services that run elsewhere."""
    address_file: str = ""
    """File that receives the address, once the server answers."""


def _identity(root: Path) -> str:
    path = root / "mesh_id"
    try:
        return path.read_text().strip() or _new_identity(path)
    except FileNotFoundError:
        return _new_identity(path)


def _new_identity(path: Path) -> str:
    identity = uuid.uuid4().hex
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(identity + "\n")
    try:
        os.link(partial, path)
    except FileExistsError:
        identity = path.read_text().strip()
    finally:
        partial.unlink()
    return identity


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Any:
    """Holds a lock for as long as the server runs, so that no two serve one state."""
    with open(path, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FailedPrecondition(
                f"{what} runs already for {path.parent}, process {file.read().strip() or 'unknown'}",
                reason="ALREADY_RUNNING", folder=path.parent,
            ) from None  # fmt: skip
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _owner_token(root: Path, tokens: Tokens, owner: Principal) -> None:
    """Writes the owner's token where only the owner reads it; what clients over TCP name as ``mesh.token_file``."""
    partial = root / f"owner.token.{os.getpid()}"
    partial.touch(mode=0o600)
    partial.write_text(tokens.mint(owner) + "\n")
    partial.replace(root / "owner.token")


def configure_logging(settings: Settings, root: Path, name: str) -> CallLog | None:
    """Sends the mesh's log to ``<state>/logs/<name>.log`` and returns the log of calls beside it.

    ``mesh.log_level`` above INFO keeps no log of calls.
    """
    folder = root / "logs"
    make_private(folder)
    handler = logging.handlers.RotatingFileHandler(
        folder / f"{name}.log", maxBytes=settings.mesh.log_max_bytes, backupCount=1, encoding="utf-8", delay=False
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logging.getLevelName(settings.mesh.log_level.upper().replace("WARNING", "WARN"))
    log.setLevel(level if isinstance(level, int) else logging.INFO)
    log.handlers[:] = [handler]
    log.propagate = False
    logging.getLogger().handlers[:] = [handler]
    # A full disk must not turn every log line into a traceback on standard error.
    logging.raiseExceptions = False
    if not log.isEnabledFor(logging.INFO):
        return None
    return CallLog(folder / f"{name}-calls.log", settings.mesh.log_max_bytes)


async def serve(options: Options) -> None:
    """Serves until a signal, ``Mesh.Shutdown`` or the idle stop ends it.

    Raises InvalidArgument ``UNKNOWN_SERVICE``, ``BAD_ADDRESS``; FailedPrecondition ``ALREADY_RUNNING``,
    ``STATE_DIR_READ_ONLY``, ``ADDRESS_IN_USE``, ``SOCKET_PATH_TOO_LONG``; ResourceExhausted ``NO_SPACE``; and whatever
    a service raises when it cannot be mounted.
    """
    settings = options.settings
    root = settings.state_dir
    unknown = [name for name in options.services if name not in SERVICES]
    if unknown:
        known = ", ".join(SERVICES)
        raise InvalidArgument(f"{unknown[0]!r} is no service; known are {known}", reason="UNKNOWN_SERVICE")
    embedded = not options.listen
    listen = options.listen or f"unix:{settings.socket_path}"
    _check_address(listen)
    if listen.startswith("unix:"):
        check_socket_path(listen.removeprefix("unix:"))
    os.umask(0o077)
    make_private(root)
    async with contextlib.AsyncExitStack() as stack:
        try:
            for name in options.services:
                make_private(root / name)
                stack.enter_context(_locked(root / name / "lock", name))
            calls = configure_logging(settings, root, "mesh" if len(options.services) > 1 else options.services[0])
            if calls is not None:
                stack.callback(calls.close)
            tokens = Tokens(principals.load_key(root))
            owner = Principal(Kind.OWNER, _user())
            _owner_token(root, tokens, owner)
            identity = _identity(root)
        except OSError as error:
            raise state_error(root, error) from error
        await _run(options, stack, listen, embedded, tokens, owner, identity, calls)


def _check_address(listen: str) -> None:
    """Raises InvalidArgument ``BAD_ADDRESS``: gRPC itself takes any number for a port, and listens on another."""
    host, _, port = listen.rpartition(":")
    if listen.startswith("unix:"):
        good = len(listen) > len("unix:")
    else:
        good = bool(host) and port.isascii() and port.isdecimal() and int(port) <= 65535
    if not good:
        raise InvalidArgument(
            f"{listen!r} is no address to listen on; write host:port with a port up to 65535, or unix:/path",
            reason="BAD_ADDRESS",
        )


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


async def _run(
    options: Options,
    stack: contextlib.AsyncExitStack,
    listen: str,
    embedded: bool,
    tokens: Tokens,
    owner: Principal,
    identity: str,
    calls: CallLog | None,
) -> None:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    settings = options.settings
    activity = Activity()
    on_socket = listen.startswith("unix:")
    server = grpc.aio.server(
        interceptors=[Guard(tokens, owner if on_socket else None, activity, calls)],
        options=[*FLOW, ("grpc.so_reuseport", 0), ("grpc.http2.max_ping_strikes", 0)],
    )
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"cannot listen on {listen}: it is in use or not an address of this machine; choose another",
            reason="ADDRESS_IN_USE", address=listen,
        ) from error  # fmt: skip
    if on_socket:
        os.chmod(listen.removeprefix("unix:"), 0o600)
        address = listen
    else:
        address = f"{listen.rpartition(':')[0]}:{port}"
    addresses = {**dict.fromkeys(options.services, address), **options.peers}
    peers = Peers(addresses, tokens, options.services[0] if len(options.services) == 1 else "mesh")
    stack.push_async_callback(peers.close)
    context = Context(
        settings=settings, peers=peers, tokens=tokens, mesh_id=identity, version=own_version(), root=settings.state_dir,
        address=address,
    )  # fmt: skip
    names = [health.SERVICE_NAME, reflection.SERVICE_NAME, "noronha.v1.Mesh"]
    owners: dict[str, list[str]] = {}
    for name in options.services:
        context.services[name] = ServiceState(backend=without_credentials(settings.backend(name)))
        module = importlib.import_module(f"noronha.{name}")
        owners[name] = await stack.enter_async_context(module.mount(server, context))
        names += owners[name]
    probe = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(probe, server)
    reflection.enable_server_reflection(names, server)
    stop = asyncio.Event()
    mesh.add(server, context, stop)

    async def tell(service: str, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for each in owners.get(service, ()):
            await probe.set(each, status)

    loop = asyncio.get_running_loop()
    telling: set[asyncio.Task[None]] = set()

    def on_serving(service: str, serving: bool) -> None:
        task = loop.create_task(tell(service, serving))
        telling.add(task)
        task.add_done_callback(telling.discard)

    _stop_on_signals(loop, stop)
    await server.start()
    context.on_serving = on_serving
    for each in ("", *names[:3]):
        await probe.set(each, health_pb2.HealthCheckResponse.SERVING)
    for name in options.services:
        await tell(name, context.services[name].serving)
    context.started.set()
    stopped = settings.state_dir / STOPPED_FILE
    if embedded:
        stopped.unlink(missing_ok=True)
    if options.address_file:
        partial = Path(f"{options.address_file}.{os.getpid()}")
        partial.write_text(address + "\n")
        partial.replace(options.address_file)
    log.info("serving %s on %s", ", ".join(options.services), address)
    idle = asyncio.create_task(_stop_when_idle(context, activity, stop)) if embedded else None
    try:
        await stop.wait()
    finally:
        log.info("stopping")
        if embedded:
            with contextlib.suppress(OSError):  # no room for it: clients take the stop for a crash
                stopped.touch()
        if idle is not None:
            idle.cancel()
        await probe.enter_graceful_shutdown()
        context.stopping.set()
        await server.stop(settings.mesh.grace)
        await context.end()
        if on_socket:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(listen.removeprefix("unix:"))


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    def heard() -> None:
        if stop.is_set():
            os._exit(130)  # asked a second time: somebody does not want to wait
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard)


async def _stop_when_idle(context: Context, activity: Activity, stop: asyncio.Event) -> None:
    """Ends an embedded mesh that nobody has called for a while and that runs nothing."""
    limit = context.settings.mesh.idle_stop
    if limit <= 0:
        return
    while True:
        quiet = time.monotonic() - activity.last if activity.open == 0 else 0.0
        if quiet >= limit:
            if not await context.is_busy():
                log.info("nothing runs and nobody called for %.0f s", quiet)
                stop.set()
                return
            activity.last = time.monotonic()
            quiet = 0.0
        await asyncio.sleep(max(0.05, min(limit - quiet, 30.0)))


@contextlib.asynccontextmanager
async def running(options: Options) -> AsyncIterator[asyncio.Task[None]]:
    """Serves in the background of a running loop until left; for tests and for programs that carry a mesh inside."""
    task = asyncio.create_task(serve(options))
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def fail(message: str) -> None:
    """Says in one line on standard error why a server did not start."""
    print(f"Error: {message}", file=sys.stderr, flush=True)
