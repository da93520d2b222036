"""Store on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from google.protobuf import empty_pb2

from noronha.chassis import principals, registry
from noronha.chassis.durations import seconds_of
from noronha.chassis.mount import Context
from noronha.chassis.principals import Kind
from noronha.rpc.chunks import MAX_FILES, check_digest
from noronha.rpc.errors import InvalidArgument
from noronha.store import adoption, garbage, streams
from noronha.store.backends import SCHEMES
from noronha.store.backends.sqlite import SqliteIndex
from noronha.store.garbage import Collection
from noronha.store.reader import Reader
from noronha.store.stores import Stores
from noronha.store.streams import Result
from noronha.store.uploads import DEFAULT_HOLD, Uploads
from noronha.store.writer import Writer
from noronha.v1 import records_pb2, store_pb2, store_pb2_grpc

_THREADS = 8
_FLUSHERS = 4
_EXPIRY_SECONDS = 600.0
_ASKING_AGAIN = 0.05
"""Seconds between two looks at whether a writer has let go."""

_TELL_SECONDS = 5.0
"""Time between two answers of a collection of garbage; the contract promises one every 10 s."""


class StoreServicer(store_pb2_grpc.StoreServicer):
    """The rpcs of ``noronha.v1.Store``."""

    def __init__(self, stores: Stores, context: Context, threads: ThreadPoolExecutor) -> None:
        self._stores = stores
        self._context = context
        self._uploads = Uploads(stores)
        self._threads = threads
        self._flushers = ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="store-finish")

    async def _run(self, work: Callable[[], Result]) -> Result:
        return await streams.run(self._threads, work)

    async def OpenUpload(self, request: store_pb2.OpenUploadRequest, context: Any) -> store_pb2.Upload:
        principal = principals.current()
        answer, succession = await self._run(lambda: self._uploads.open(principal, request))
        if succession is None:
            return answer
        while True:
            if not await self._run(succession.take_over):
                return await self._run(lambda: self._uploads.get(principal, answer.upload))
            await asyncio.sleep(_ASKING_AGAIN)

    async def GetUpload(self, request: store_pb2.GetUploadRequest, context: Any) -> store_pb2.Upload:
        principal = principals.current()
        return await self._run(lambda: self._uploads.get(principal, request.upload))

    async def AbortUpload(self, request: store_pb2.AbortUploadRequest, context: Any) -> empty_pb2.Empty:
        principal = principals.current()
        await self._run(lambda: self._uploads.abort(principal, request.upload))
        return empty_pb2.Empty()

    async def WriteBlobs(
        self, requests: AsyncIterator[store_pb2.WriteBlobsRequest], context: Any
    ) -> AsyncGenerator[store_pb2.WriteBlobsResponse, None]:
        principal = principals.current()
        iterator = aiter(requests)
        try:
            first = await anext(iterator)
        except StopAsyncIteration:
            raise InvalidArgument("the stream ended before it named its upload", reason="NO_UPLOAD") from None
        writer = await self._run(
            lambda: Writer(
                self._stores, self._uploads.session(principal, first.upload), proof=principal.kind is Kind.TASK,
                flushers=self._flushers,
            )
        )  # fmt: skip
        async with contextlib.aclosing(streams.write(writer, _after(first, iterator), self._threads)) as answers:
            async for answer in answers:
                yield answer

    async def ReadBlob(
        self, request: store_pb2.ReadBlobRequest, context: Any
    ) -> AsyncGenerator[store_pb2.ReadBlobResponse, None]:
        tenant = principals.current().tenant
        reader = await self._run(lambda: Reader(self._stores, tenant, request.digest, request.offset, request.limit))
        async with contextlib.aclosing(streams.read(reader, self._threads)) as answers:
            async for answer in answers:
                yield answer

    async def StatBlobs(self, request: store_pb2.StatBlobsRequest, context: Any) -> store_pb2.StatBlobsResponse:
        tenant = principals.current().tenant
        digests = _checked(request.digests)
        found = await self._run(lambda: self._stores.index.sizes(tenant, digests))
        blobs = [store_pb2.Blob(digest=digest, size_bytes=size) for digest, size in found]
        return store_pb2.StatBlobsResponse(blobs=blobs)

    async def SealUpload(self, request: store_pb2.SealUploadRequest, context: Any) -> store_pb2.Upload:
        tenant = principals.current().tenant
        hold = seconds_of(request.hold) if request.HasField("hold") else DEFAULT_HOLD
        return await self._run(lambda: self._uploads.seal(request.upload, request.subject, tenant, hold))

    async def DeleteBlobs(self, request: store_pb2.DeleteBlobsRequest, context: Any) -> store_pb2.DeleteBlobsResponse:
        tenant = principals.current().tenant
        digests = _checked(request.digests)

        def delete() -> list[str]:
            deletion = self._stores.index.delete_unheld(tenant, digests, as_of=time.time() - garbage.CLOCK_MARGIN)
            garbage.reclaim(self._stores, deletion.deleted)
            return deletion.held

        return store_pb2.DeleteBlobsResponse(held=await self._run(delete))

    async def CollectGarbage(
        self, request: store_pb2.CollectGarbageRequest, context: Any
    ) -> AsyncGenerator[store_pb2.CollectGarbageResponse, None]:
        collection = Collection(self._stores, dry_run=request.dry_run)
        await self._run(collection.begin)
        try:
            for tenant in await self._run(self._stores.index.tenants):
                sweep = asyncio.create_task(self._sweep(collection, tenant))
                try:
                    while not sweep.done():
                        await asyncio.wait({sweep}, timeout=_TELL_SECONDS)
                        yield collection.result
                except BaseException:  # the caller went
                    collection.give_up()
                    await asyncio.wait({sweep})  # its thread may not be at work when others are let in
                    raise
                await sweep
        except BaseException:
            collection.abandon()
            raise
        await self._run(collection.end)
        yield collection.result

    async def _sweep(self, collection: Collection, tenant: str) -> None:
        """Sweeps in a thread what Metadata lists; a list cut short fails it before anything beyond is deleted."""
        # Peers are called for the tenant of the current principal; this is a task, so it is current in here only.
        principals.become(replace(principals.current(), tenant=tenant))
        loop = asyncio.get_running_loop()
        pages = aiter(self._context.peers.records.ListReferencedDigests(records_pb2.ListReferencedDigestsRequest()))

        async def page() -> list[str] | None:
            async for answer in pages:
                return list(answer.digests)
            return None

        def referenced() -> Iterator[str]:
            while (digests := asyncio.run_coroutine_threadsafe(page(), loop).result()) is not None:
                yield from digests

        await self._run(lambda: collection.sweep(tenant, referenced()))

    def is_adoption_needed(self) -> bool:
        """Says whether the index was lost. Blocks."""
        return adoption.is_needed(self._stores)

    async def adopt(self) -> None:
        """Makes a lost index anew; until then what it does not know yet is taken for not there."""
        await self._run(lambda: adoption.adopt(self._stores))

    async def expire_forever(self) -> None:
        """Removes expired uploads now and then."""
        while True:
            await self._run(lambda: garbage.expire(self._stores))
            await asyncio.sleep(_EXPIRY_SECONDS)

    def close(self) -> None:
        """Waits for what is being written and closes the stores."""
        self._flushers.shutdown()
        self._stores.close()


@contextlib.asynccontextmanager
async def mount(server: Any, context: Context) -> AsyncIterator[list[str]]:
    """Adds Store to a server; yields the full names of its gRPC services.

    Raises FailedPrecondition ``STORE_READ_ONLY``, ResourceExhausted ``NO_SPACE``, InvalidArgument ``UNKNOWN_BACKEND``.
    """
    url = context.settings.backend("store")
    folder = context.state_dir("store")
    kind = registry.load(SCHEMES, url, "store.backend")
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")
    scheme = url.partition(":")[0]

    def start() -> Stores:
        return Stores(SqliteIndex(folder / "index.db"), {scheme: kind(url, folder)}, scheme, scheme)

    servicer = StoreServicer(await streams.run(threads, start), context, threads)
    store_pb2_grpc.add_StoreServicer_to_server(servicer, server)
    if await streams.run(threads, servicer.is_adoption_needed):
        context.background(servicer.adopt, "store: making the index anew")
    context.background(servicer.expire_forever, "store: expiry of uploads")
    try:
        yield ["noronha.v1.Store"]
    finally:
        await streams.run(threads, servicer.close)
        threads.shutdown()


async def _after(
    first: store_pb2.WriteBlobsRequest, rest: AsyncIterator[store_pb2.WriteBlobsRequest]
) -> AsyncIterator[store_pb2.WriteBlobsRequest]:
    yield first
    async for request in rest:
        yield request


def _checked(digests: Any) -> list[str]:
    if len(digests) > MAX_FILES:
        raise InvalidArgument(
            f"{len(digests)} digests are more than {MAX_FILES}; ask in several calls", reason="TOO_MANY_FILES",
            count=len(digests), limit=MAX_FILES,
        )  # fmt: skip
    return [check_digest(digest, "digests") for digest in digests]
