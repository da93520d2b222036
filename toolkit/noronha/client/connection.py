"""A connection to a mesh, with a stub for each service, dialled when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from noronha.rpc.addresses import CARRIED_BY
from noronha.rpc.errors import DeadlineExceeded, InvalidArgument, NoronhaError, Unavailable

if TYPE_CHECKING:
    from noronha.v1 import (
        builder_pb2_grpc,
        mesh_pb2,
        mesh_pb2_grpc,
        metadata_pb2_grpc,
        router_pb2_grpc,
        runner_pb2_grpc,
        store_pb2_grpc,
        tasks_pb2_grpc,
    )

Notice = Callable[[str], None]
"""Receives one line that the user should see."""


def silent(line: str) -> None:
    """Takes a notice that nobody is to see."""


OVERVIEW_TIMEOUT = 5.0
"""Seconds that each server has to tell how its services stand."""


class Server(NamedTuple):
    """One server of a mesh."""

    services: tuple[str, ...]
    """The services that are known to be there; none when it is the only server."""
    address: str
    """``unix:/path`` or ``host:port``."""
    mesh: mesh_pb2_grpc.MeshStub
    """What every server answers."""

    def __str__(self) -> str:
        return f"{', '.join(self.services) or 'the mesh'} at {self.address}"


class Routing(NamedTuple):
    """Where predictions go."""

    address: str
    """``host:port`` of the router; '' when nobody tells it. Somebody else may answer there while there is a problem."""
    problem: str
    """Why the router does not serve, in one line; '' when it does."""


def does_not_serve(service: str, problem: str) -> str:
    """Returns the line for a service that does not serve."""
    return f"{service} does not serve: {problem}"


def routing_of(overview: mesh_pb2.MeshInfo) -> Routing:
    """Returns where predictions go and whether they are answered there, by what ``Mesh.overview`` returned."""
    for each in overview.services:
        if each.name == "router":
            starts = "it still starts; 'nha mesh status' says how it stands"
            return Routing(overview.router_address, "" if each.serving else each.problem or starts)
    return Routing("", "the mesh has none")


def _told(channel: Any, timeout: float) -> mesh_pb2.MeshInfo | str:
    """Returns what a server tells of itself, or in words why it told nothing."""
    from noronha.v1 import mesh_pb2, mesh_pb2_grpc

    try:
        return mesh_pb2_grpc.MeshStub(channel).GetInfo(mesh_pb2.GetInfoRequest(), timeout=timeout)
    except (Unavailable, DeadlineExceeded):
        return "does not answer"
    except NoronhaError as error:
        return f"refuses to tell: {error.message}"


class Mesh:
    """A mesh as a client sees it. Calls raise the classes of ``noronha.rpc.errors``.

    ``address`` is ``unix:/path`` or ``host:port``; services that this server does not carry are found through
    ``Mesh.GetInfo`` when first used, unless ``whole`` says that it carries all. Use it as a context manager, or
    ``close()`` it.
    """

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        whole: bool = False,
        reviver: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self._token = token
        self._elsewhere: dict[str, str] | None = {} if whole else None
        self._reviver = reviver
        self._channels: dict[str, Any] = {}
        self._stubs: dict[str, Any] = {}

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Mesh({self.address!r})"

    def close(self) -> None:
        """Closes what was dialled."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()
        self._stubs.clear()

    def revive(self) -> None:
        """Starts an embedded mesh again if it crashed; does nothing for others.

        One that was told to stop stays down: it is waited for a few seconds, should somebody else start it. Raises
        Unavailable ``MESH_STOPPED`` when nobody does; as ``noronha.client.mesh.start_mesh``.
        """
        if self._reviver is not None:
            self._reviver()

    def info(self) -> mesh_pb2.MeshInfo:
        """Returns what the server tells of itself; of services elsewhere that is no more than where they are."""
        from noronha.v1 import mesh_pb2

        return self.mesh.GetInfo(mesh_pb2.GetInfoRequest())

    def overview(self, *services: str, timeout: float = OVERVIEW_TIMEOUT) -> mesh_pb2.MeshInfo:
        """Returns what the server tells of itself, each service as its own server tells how it stands.

        With names only these ``services`` are asked for elsewhere. All servers are asked at once. One that does not
        answer within ``timeout`` seconds makes its service one that does not serve, with the problem, and no error.
        """
        info = self.info()
        there = [each for each in info.services if each.address and (not services or each.name in services)]
        channels = {each.address: self._channel(each.address) for each in there}
        if channels:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(len(channels)) as pool:
                told = dict(zip(channels, pool.map(lambda each: _told(each, timeout), channels.values()), strict=True))
            for each in there:
                own = told[each.address]
                if isinstance(own, str):
                    each.problem = f"its server, at {each.address}, {own}"
                    continue
                carried = [other for other in own.services if other.name == each.name and not other.address]
                if not carried:
                    each.problem = f"the server at {each.address} does not carry it; correct --peer {each.name}=ADDRESS"
                    continue
                address = each.address
                each.CopyFrom(carried[0])
                each.address = address
                if each.name == "router":
                    info.router_address = own.router_address
        return info

    def routing(self) -> Routing:
        """Returns where predictions go and whether they are answered there, as the router's own server tells it."""
        return routing_of(self.overview("router"))

    def servers(self) -> list[Server]:
        """Returns every server of the mesh, those that others stand on last."""
        from noronha.v1 import mesh_pb2_grpc

        self._address_of("metadata")
        known = self._elsewhere or {}
        order = ("runner", "router", "builder", "store", "metadata")
        carried: dict[str, list[str]] = {}
        for name in order:
            if name in known:
                carried.setdefault(known[name], []).append(name)
        return [
            Server(tuple(names), address, mesh_pb2_grpc.MeshStub(self._channel(address)))
            for address, names in (carried or {self.address: []}).items()
        ]

    def _address_of(self, service: str) -> str:
        """Returns where a service is; a server that may not carry all is asked once."""
        if service == "mesh":
            return self.address
        if self._elsewhere is None:
            self._elsewhere = {each.name: each.address or self.address for each in self.info().services}
        service = CARRIED_BY.get(service, service)
        if self._elsewhere and service not in self._elsewhere:
            raise Unavailable(
                f"the server at {self.address} neither carries {service} nor knows where it is; "
                "start it with --peer, or set mesh.address to another server",
                reason="SERVICE_UNKNOWN", service=service,
            )  # fmt: skip
        return self._elsewhere.get(service, self.address)

    def _channel(self, address: str) -> Any:
        from noronha.rpc.dial import dial

        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = dial(address, token=self._token)
        return channel

    def _stub(self, service: str) -> Any:
        stub = self._stubs.get(service)
        if stub is None:
            channel = self._channel(self._address_of(service))
            module = import_module(f"noronha.v1.{service}_pb2_grpc")
            stub = self._stubs[service] = getattr(module, f"{service.capitalize()}Stub")(channel)
        return stub

    @property
    def mesh(self) -> mesh_pb2_grpc.MeshStub:
        """What every server answers."""
        return cast("mesh_pb2_grpc.MeshStub", self._stub("mesh"))

    @property
    def metadata(self) -> metadata_pb2_grpc.MetadataStub:
        """Metadata: the records of everything."""
        return cast("metadata_pb2_grpc.MetadataStub", self._stub("metadata"))

    @property
    def builder(self) -> builder_pb2_grpc.BuilderStub:
        """Builder: makes a project's source runnable."""
        return cast("builder_pb2_grpc.BuilderStub", self._stub("builder"))

    @property
    def runner(self) -> runner_pb2_grpc.RunnerStub:
        """Runner: trainings, deployments, notebooks."""
        return cast("runner_pb2_grpc.RunnerStub", self._stub("runner"))

    @property
    def store(self) -> store_pb2_grpc.StoreStub:
        """Store: bytes by digest."""
        return cast("store_pb2_grpc.StoreStub", self._stub("store"))

    @property
    def router(self) -> router_pb2_grpc.RouterStub:
        """Router: which request reaches which replica."""
        return cast("router_pb2_grpc.RouterStub", self._stub("router"))

    @property
    def tasks(self) -> tasks_pb2_grpc.TasksStub:
        """Tasks: what a running task tells the mesh."""
        return cast("tasks_pb2_grpc.TasksStub", self._stub("tasks"))


def read_token(file: str) -> str | None:
    """Returns the token in a file; None for no file. Raises InvalidArgument ``BAD_SETTING`` when it cannot be read."""
    if not file:
        return None
    try:
        return Path(file).expanduser().read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "is not text"
        raise InvalidArgument(f"mesh.token_file {file} cannot be read: {why}", reason="BAD_SETTING") from error
