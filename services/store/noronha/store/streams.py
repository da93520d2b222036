"""Byte streams between the event loop and the threads that do the blocking work.

Receiving goes on while a thread works on what came before, and a thread reads ahead while an answer is being sent, both
within a bound, so that a stream runs at the speed of its slower half and takes a few megabytes whatever its length.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from typing import TypeVar

from noronha.rpc.errors import NoronhaError
from noronha.store.reader import Reader
from noronha.store.writer import Writer
from noronha.v1 import store_pb2

Result = TypeVar("Result")

INBOX_BYTES = 4 << 20
"""Bytes of messages that wait while a thread works on earlier ones."""

LINGER_SECONDS = 0.02
"""Time without messages after which small blobs that wait for more of their kind are settled."""

_MESSAGE_OVERHEAD = 256


class Inbox:
    """Messages that arrived and wait to be worked on, up to a bound."""

    def __init__(self) -> None:
        self._messages: list[store_pb2.WriteBlobsRequest] = []
        self._bytes = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()

    async def fill(self, requests: AsyncIterator[store_pb2.WriteBlobsRequest]) -> None:
        """Takes messages until they end, waiting while there are too many."""
        try:
            async for request in requests:
                self._messages.append(request)
                self._bytes += len(request.data) + _MESSAGE_OVERHEAD
                self._changed.set()
                while self._bytes >= INBOX_BYTES:
                    self._drained.clear()
                    await self._drained.wait()
        except Exception as error:
            self._failure = error
        finally:
            self._ended = True
            self._changed.set()

    async def take(self, patience: float | None) -> list[store_pb2.WriteBlobsRequest] | None:
        """Returns what has arrived, nothing after ``patience`` seconds of silence, None at the end."""
        if not self._messages and not self._ended:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), patience)
            except asyncio.TimeoutError:
                return []
        if not self._messages and self._failure is not None:
            raise self._failure
        taken, self._messages, self._bytes = self._messages, [], 0
        self._drained.set()
        return taken or (None if self._ended else [])


async def write(
    writer: Writer, requests: AsyncIterator[store_pb2.WriteBlobsRequest], threads: Executor
) -> AsyncGenerator[store_pb2.WriteBlobsResponse, None]:
    """Runs a stream of chunks through a writer, which is closed at the end; yields its answers.

    What was whole before an error is settled and answered before the error is raised.
    """
    inbox = Inbox()
    filling = asyncio.create_task(inbox.fill(requests))
    try:
        while True:
            batch = await inbox.take(LINGER_SECONDS if writer.unsettled else None)
            failure: NoronhaError | None = None
            answers: list[store_pb2.WriteBlobsResponse] = []
            if batch:
                try:
                    answers = await run(threads, lambda batch=batch: writer.take(batch))  # type: ignore[misc]
                except NoronhaError as error:
                    failure = error
            for answer in answers:
                yield answer
            if not batch or failure is not None:
                for answer in await run(threads, writer.settle):
                    yield answer
            if failure is not None:
                raise failure
            if batch is None:
                return
    finally:
        filling.cancel()
        await run(threads, writer.close)


async def read(reader: Reader, threads: Executor) -> AsyncGenerator[store_pb2.ReadBlobResponse, None]:
    """Yields a reader's answers, one batch read ahead; the reader is closed at the end."""
    ahead = asyncio.ensure_future(run(threads, reader.next))
    try:
        while answers := await ahead:
            ahead = asyncio.ensure_future(run(threads, reader.next))
            for answer in answers:
                yield answer
    finally:
        await asyncio.wait([ahead])
        if not ahead.cancelled():
            ahead.exception()
        await run(threads, reader.close)


async def run(threads: Executor, work: Callable[[], Result]) -> Result:
    """Runs blocking work in a thread. When the caller is cancelled, the work still ends before this does."""
    future = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # nobody is left to hear it
        raise
