"""What a service is given when it is mounted on a server.

A service exports ``mount(server, context)``, an asynchronous context manager that yields the full names of the gRPC
services it added. Nothing may call a peer inside it: the server does not answer yet. Work that goes on beside the
calls is handed to ``Context.background`` and begins once the server does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from noronha.chassis.peers import Peers
from noronha.chassis.principals import Tokens
from noronha.rpc.disk import state_error
from noronha.rpc.settings import Settings

log = logging.getLogger("noronha")


@dataclass
class ServiceState:
    """How one mounted service stands."""

    backend: str = ""
    serving: bool = True
    problem: str = ""


@dataclass
class Context:
    """What the services of one server share."""

    settings: Settings
    peers: Peers
    tokens: Tokens
    mesh_id: str
    version: str
    root: Path
    """Folder of the mesh's state."""
    address: str
    """Address that this server listens on, as peers and tasks on this machine dial it."""
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the server answers."""
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server begins to stop; open watches end."""
    services: dict[str, ServiceState] = field(default_factory=dict)
    router_address: str = ""
    """Address of the router for people, set by Router."""
    on_serving: Callable[[str, bool], None] = lambda service, serving: None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _busy: list[Callable[[], Awaitable[bool]]] = field(default_factory=list)
    _stoppers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)

    def state_dir(self, service: str) -> Path:
        """Returns the folder in which a service keeps its state, made when absent, open to its owner only.

        Raises FailedPrecondition ``STATE_DIR_READ_ONLY``, ResourceExhausted ``NO_SPACE``.
        """
        folder = self.root / service
        make_private(folder)
        return folder

    def background(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        """Runs ``work()`` beside the calls, from when the server answers until it stops; begun again after an error."""
        task = asyncio.get_running_loop().create_task(self._keep(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        await self.started.wait()
        pause = 0.2
        while not self.stopping.is_set():
            began = asyncio.get_running_loop().time()
            try:
                await work()
                return
            except Exception as error:
                if self.stopping.is_set():
                    return
                log.error("%s failed and begins again: %s", name, error, exc_info=error)
            if asyncio.get_running_loop().time() - began > 30:
                pause = 0.2
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)

    def set_serving(self, service: str, serving: bool, problem: str = "") -> None:
        """Says whether a service serves, in its health and in ``Mesh.GetInfo``; ``problem`` says what to do."""
        state = self.services.setdefault(service, ServiceState())
        state.serving, state.problem = serving, problem
        self.on_serving(service, serving)

    def busy_while(self, check: Callable[[], Awaitable[bool]]) -> None:
        """Keeps an embedded mesh from stopping when idle as long as ``check()`` is true."""
        self._busy.append(check)

    def stop_with_tasks(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Calls ``stop()`` when the mesh is shut down together with everything it runs."""
        self._stoppers.append(stop)

    async def is_busy(self) -> bool:
        """Says whether anything keeps the mesh from stopping when idle."""
        for check in self._busy:
            if await check():
                return True
        return False

    async def stop_tasks(self) -> None:
        """Stops everything that the mesh runs."""
        for stop in self._stoppers:
            await stop()

    async def end(self) -> None:
        """Ends the work beside the calls."""
        self.stopping.set()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_private(folder: Path) -> None:
    """Makes a folder that only its owner opens.

    Raises FailedPrecondition ``STATE_DIR_READ_ONLY``, ResourceExhausted ``NO_SPACE``.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise state_error(folder, error) from error
