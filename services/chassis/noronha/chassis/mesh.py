"""The Mesh service: what every server tells of itself."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from noronha.chassis import principals
from noronha.chassis.mount import Context
from noronha.chassis.principals import Kind
from noronha.v1 import mesh_pb2 as pb
from noronha.v1 import mesh_pb2_grpc as rpc

FEATURES = ("leases", "resumable-uploads", "resumable-watches", "deployment-ports")
"""Abilities that clients may ask for by name."""


class MeshServicer(rpc.MeshServicer):
    """Answers for one server, whichever services it carries."""

    def __init__(self, context: Context, stop: asyncio.Event) -> None:
        self._context = context
        self._stop = stop
        self._after: set[asyncio.Task[None]] = set()

    async def GetInfo(self, request: pb.GetInfoRequest, context: Any) -> pb.MeshInfo:
        """Returns the server's version, features and services; of those elsewhere no more than where they are."""
        mesh = self._context
        trusted = principals.current().kind in (Kind.OWNER, Kind.SERVICE)
        info = pb.MeshInfo(
            version=mesh.version, mesh_id=mesh.mesh_id, features=FEATURES, router_address=mesh.router_address,
            process_id=os.getpid(), state_dir=str(mesh.root) if trusted else "",
            settings=mesh.settings.fingerprint() if trusted else {},
        )  # fmt: skip
        for name, state in mesh.services.items():
            info.services.add(name=name, backend=state.backend, serving=state.serving, problem=state.problem)
        for name, address in mesh.peers.addresses.items():
            if name not in mesh.services:
                info.services.add(name=name, address=address)  # how it stands, its own server tells
        return info

    async def Shutdown(self, request: pb.ShutdownRequest, context: Any) -> pb.ShutdownResponse:
        """Stops the server once this call has been answered."""
        if request.stop_tasks:
            await self._context.stop_tasks()
        task = asyncio.get_running_loop().create_task(self._go())
        self._after.add(task)
        return pb.ShutdownResponse(process_id=os.getpid())

    async def _go(self) -> None:
        await asyncio.sleep(0)
        self._stop.set()


def add(server: Any, context: Context, stop: asyncio.Event) -> None:
    """Mounts the Mesh service on a server."""
    rpc.add_MeshServicer_to_server(MeshServicer(context, stop), server)
