"""Serves Envoy's discovery: carries messages between proxies and their `AdsStream`, and tells what they accepted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from noronha.router.ads import AdsStream
    from noronha.router.snapshot import Snapshot

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"

RETRY_INTERVAL = 3.0
"""Seconds after which what a proxy refused is offered to it again."""


class Discovery:
    """The present snapshot and the proxies that follow it."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self._streams: dict[AdsStream, asyncio.Queue[Any]] = {}
        self._changed = asyncio.Condition()
        self._closed = False

    @property
    def streams(self) -> list[AdsStream]:
        """The conversations with the proxies that are connected."""
        return list(self._streams)

    def publish(self, snapshot: Snapshot) -> None:
        """Makes a snapshot the present one and tells it to every proxy."""
        self.snapshot = snapshot
        for inbox in self._streams.values():
            inbox.put_nowait(snapshot)

    def close(self) -> None:
        """Ends every conversation, so that the server can stop; proxies keep what they have and come back."""
        self._closed = True
        for inbox in self._streams.values():
            inbox.put_nowait(None)

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits until the condition holds, looked at whenever a proxy has said something; False if it never did."""

        async def wait() -> None:
            async with self._changed:
                await self._changed.wait_for(condition)

        try:
            await asyncio.wait_for(wait(), timeout)
        except asyncio.TimeoutError:
            return condition()
        return True

    async def news(self) -> None:
        """Waits until a proxy has said something, come or gone."""
        async with self._changed:
            await self._changed.wait()

    async def serve(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Talks with one proxy until it goes, or until `close`."""
        ads, parse = await asyncio.to_thread(_protocol)
        stream = ads(self.snapshot)
        inbox: asyncio.Queue[Any] = asyncio.Queue()

        async def listen() -> None:
            try:
                async for request in requests:
                    inbox.put_nowait(parse(request))
            finally:
                inbox.put_nowait(None)

        async def retry() -> None:
            while True:
                await asyncio.sleep(RETRY_INTERVAL)
                if stream.refused:
                    inbox.put_nowait(stream.retry)

        tasks = [asyncio.create_task(listen()), asyncio.create_task(retry())]
        self._streams[stream] = inbox
        try:
            while not self._closed and (event := await inbox.get()) is not None:
                if callable(event):
                    answers = event()
                elif self.snapshot is not None and event is self.snapshot:
                    answers = stream.saw(self.snapshot)
                elif hasattr(event, "type_url"):
                    answers = stream.heard(event)
                else:
                    continue  # a snapshot that a newer one has overtaken, which is in the inbox as well
                for answer in answers:
                    yield answer
                await self._notify()
        finally:
            for task in tasks:
                task.cancel()
            del self._streams[stream]
            await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def add(discovery: Discovery, server: Any) -> None:
    """Mounts Envoy's aggregated discovery on a server."""
    handler = grpc.stream_stream_rpc_method_handler(discovery.serve)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"StreamAggregatedResources": handler}),)
    )


def _protocol() -> tuple[type[AdsStream], Callable[[bytes], Any]]:
    """Imports what takes long to import."""
    from noronha.router.ads import AdsStream
    from noronha.router.messages import DiscoveryRequest

    return AdsStream, DiscoveryRequest.FromString
