"""How services reach one another: by the stubs of the contract, wherever the others run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from noronha.chassis import principals
from noronha.chassis.interceptors import REQUEST_HEADER, current_request
from noronha.chassis.principals import TENANT_HEADER, Kind, Principal, Tokens
from noronha.rpc.addresses import CARRIED_BY
from noronha.rpc.dial import dial_async
from noronha.rpc.errors import Unavailable

if TYPE_CHECKING:
    from noronha.v1 import (
        builder_pb2_grpc,
        metadata_pb2_grpc,
        records_pb2_grpc,
        router_pb2_grpc,
        runner_pb2_grpc,
        store_pb2_grpc,
    )

class Peers:
    """Stubs of the other services, dialled when first used, with this service's own token."""

    def __init__(self, addresses: Mapping[str, str], tokens: Tokens, subject: str) -> None:
        self.addresses = dict(addresses)
        self._token = tokens.mint(Principal(Kind.SERVICE, subject))
        self._channels: dict[str, Any] = {}
        self._stubs: dict[str, Any] = {}

    def _headers(self) -> list[tuple[str, str]]:
        headers = [("authorization", f"Bearer {self._token}")]
        tenant = principals.current().tenant
        if tenant != principals.DEFAULT_TENANT:
            headers.append((TENANT_HEADER, tenant))
        request = current_request()
        if request:
            headers.append((REQUEST_HEADER, request))
        return headers

    def _stub(self, service: str) -> Any:
        stub = self._stubs.get(service)
        if stub is None:
            address = self.addresses.get(CARRIED_BY.get(service, service))
            if address is None:
                raise Unavailable(
                    f"this server was not told where {service} is; start it with --peer {service}=ADDRESS",
                    reason="PEER_UNKNOWN", peer=service,
                )  # fmt: skip
            channel = self._channels.get(address)
            if channel is None:
                channel = self._channels[address] = dial_async(address, headers=self._headers)
            module = importlib.import_module(f"noronha.v1.{service}_pb2_grpc")
            stub = self._stubs[service] = getattr(module, f"{service.capitalize()}Stub")(channel)
        return stub

    @property
    def metadata(self) -> metadata_pb2_grpc.MetadataAsyncStub:
        """Metadata."""
        return cast("metadata_pb2_grpc.MetadataAsyncStub", self._stub("metadata"))

    @property
    def records(self) -> records_pb2_grpc.RecordsAsyncStub:
        """Records, a part of Metadata."""
        return cast("records_pb2_grpc.RecordsAsyncStub", self._stub("records"))

    @property
    def builder(self) -> builder_pb2_grpc.BuilderAsyncStub:
        """Builder."""
        return cast("builder_pb2_grpc.BuilderAsyncStub", self._stub("builder"))

    @property
    def runner(self) -> runner_pb2_grpc.RunnerAsyncStub:
        """Runner."""
        return cast("runner_pb2_grpc.RunnerAsyncStub", self._stub("runner"))

    @property
    def store(self) -> store_pb2_grpc.StoreAsyncStub:
        """Store."""
        return cast("store_pb2_grpc.StoreAsyncStub", self._stub("store"))

    @property
    def router(self) -> router_pb2_grpc.RouterAsyncStub:
        """Router."""
        return cast("router_pb2_grpc.RouterAsyncStub", self._stub("router"))

    async def close(self) -> None:
        """Closes what was dialled."""
        for channel in self._channels.values():
            await channel.close()
