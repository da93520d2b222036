"""Every rpc that a mesh serves, called over the wire by every kind of caller: who may call is led in, all others are not."""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import noronha.v1
from noronha.chassis import principals
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc.dial import dial, dial_async
from noronha.rpc.errors import NoronhaError
from noronha.v1 import mesh_pb2, mesh_pb2_grpc

AT_ONCE = 16
REFUSALS = {"NO_TOKEN", "BAD_TOKEN", "TOKEN_EXPIRED", "NOT_ALLOWED"}
"""Reasons of being refused for who one is, whatever is asked for."""

SHUTDOWN = "/noronha.v1.Mesh/Shutdown"
"""Called by who may when all is over."""


class Mesh(NamedTuple):
    """A mesh of five services on one TCP port."""

    address: str
    tokens: Tokens

    def bearer(self, principal: Principal, lifetime: float | None = None) -> str:
        return f"Bearer {self.tokens.mint(principal, lifetime=lifetime)}"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    folder = Path(tempfile.mkdtemp(prefix="nha-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        router_port = probe.getsockname()[1]
    address = folder / "address"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("NHA_")}
    server = subprocess.Popen(
        [sys.executable, "-m", "noronha.chassis", "--listen", "127.0.0.1:0", "--state-dir", str(folder / "mesh"),
         "--address-file", str(address)],
        env={**clean, "HOME": str(folder), "NHA_ROUTER__PORT": str(router_port)},
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not address.exists():
        assert server.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    made = Mesh(address.read_text().strip(), Tokens(principals.load_key(folder / "mesh")))
    yield made
    # Who may stop a mesh was not asked to before, so it is asked here, as the last thing.
    with dial(made.address, token=made.tokens.mint(Principal(Kind.OWNER, "owner"))) as channel:
        mesh_pb2_grpc.MeshStub(channel).Shutdown(mesh_pb2.ShutdownRequest(stop_tasks=True))
    assert server.wait(60) == 0
    shutil.rmtree(folder, ignore_errors=True)


def _declared() -> set[str]:
    """Every rpc in the contract."""
    found = set()
    for module in pkgutil.iter_modules(noronha.v1.__path__):
        imported = importlib.import_module(f"noronha.v1.{module.name}")
        for service in getattr(getattr(imported, "DESCRIPTOR", None), "services_by_name", {}).values():
            found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    return found


def _served(mesh: Mesh) -> set[str]:
    """Every service that the server says it has."""
    with dial(mesh.address, token=mesh.tokens.mint(Principal(Kind.OWNER, "owner"))) as channel:
        return set(ProtoReflectionDescriptorDatabase(channel).get_services())


async def _call(channel: Any, rpc: str) -> NoronhaError | None:
    """Returns the error of a call with an empty message, None when it is answered or listens; all shapes are alike."""
    call = channel.stream_stream(rpc, request_serializer=None, response_deserializer=None)
    try:
        async for _ in call(iter([b""]), timeout=60):
            return None
    except NoronhaError as error:
        return error
    return None


async def _call_all(mesh: Mesh, rpcs: list[str], authorization: str) -> dict[str, NoronhaError | None]:
    headers = [("authorization", authorization)] if authorization else []
    limit = asyncio.Semaphore(AT_ONCE)
    async with dial_async(mesh.address, headers=lambda: headers) as channel:

        async def one(rpc: str) -> NoronhaError | None:
            async with limit:
                return await _call(channel, rpc)

        return dict(zip(rpcs, await asyncio.gather(*map(one, rpcs)), strict=True))
