"""Builder on gRPC: parses, calls the builds, answers."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import empty_pb2

from noronha.builder.attempts import Attempts
from noronha.builder.backend import Backend
from noronha.builder.backends import SCHEMES
from noronha.builder.builds import Builds
from noronha.builder.logs import Logs
from noronha.chassis import registry
from noronha.chassis.mount import Context
from noronha.v1 import builder_pb2 as pb
from noronha.v1 import builder_pb2_grpc as rpc
from noronha.v1 import log_pb2
from noronha.v1.build_pb2 import Build


class BuilderServicer(rpc.BuilderServicer):
    """Answers the calls of Builder."""

    def __init__(self, builds: Builds) -> None:
        self._builds = builds

    async def CreateBuild(self, request: pb.CreateBuildRequest, context: Any) -> Build:
        return await self._builds.create(request)

    async def CancelBuild(self, request: pb.CancelBuildRequest, context: Any) -> Build:
        return await self._builds.cancel(request.name)

    async def DeleteBuild(self, request: pb.DeleteBuildRequest, context: Any) -> empty_pb2.Empty:
        await self._builds.delete(request.name, request.etag)
        return empty_pb2.Empty()

    async def TailLogs(self, request: log_pb2.TailLogsRequest, context: Any) -> AsyncIterator[log_pb2.TailLogsResponse]:
        pieces = self._builds.tail(request.name, request.position, request.tail_lines, request.follow)
        async for data, position in pieces:
            yield log_pb2.TailLogsResponse(data=data, position=position)


@contextlib.asynccontextmanager
async def mount(server: Any, context: Context) -> AsyncIterator[list[str]]:
    """Adds Builder to a server, with the backend that ``builder.backend`` names."""
    kind = registry.load(SCHEMES, context.settings.backend("builder"), "builder.backend")
    folder = context.state_dir("builder")
    backend: Backend = kind(context.root)
    await backend.open()
    logs = Logs(folder / "logs")
    attempts = Attempts(context, backend, logs)
    await attempts.open()
    builds = Builds(context, backend, logs, attempts)
    rpc.add_BuilderServicer_to_server(BuilderServicer(builds), server)
    context.background(attempts.reconcile, "builder's look for orphans")
    context.busy_while(attempts.busy)
    context.stop_with_tasks(attempts.stop)
    try:
        yield ["noronha.v1.Builder"]
    finally:
        await attempts.close()
        await backend.close()
