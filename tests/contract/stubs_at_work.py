"""Run by another interpreter, beside the protobuf and grpcio that are installed there: ``stubs_at_work.py``.

Imports every stub, sends every message there and back, and calls a server of the contract as our clients do. Prints the
versions it ran with.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import message_factory

import noronha.v1
from noronha.rpc.dial import dial
from noronha.rpc.errors import DETAILS_KEY, NotFound, to_status
from noronha.v1 import log_pb2, metadata_pb2, metadata_pb2_grpc, project_pb2, runner_pb2_grpc


def stubs() -> list[Any]:
    """Imports every module of the contract."""
    return [importlib.import_module(f"noronha.v1.{each.name}") for each in pkgutil.iter_modules(noronha.v1.__path__)]


def classes(module: Any) -> list[Any]:
    """Returns the classes of a module's messages, as the installed protobuf makes them."""
    described = getattr(module, "DESCRIPTOR", None)
    made = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory().GetPrototype
    return [made(each) for each in described.message_types_by_name.values()] if described is not None else []


class Metadata(metadata_pb2_grpc.MetadataServicer):
    """Knows one project."""

    def GetProject(self, request: Any, context: Any) -> Any:
        """Answers, or says in Noronha's words what is missing."""
        if request.name == "projects/p":
            return project_pb2.Project(name=request.name, labels={"größe": "m"})
        status = to_status(NotFound(f"{request.name} does not exist", name=request.name)).SerializeToString()
        context.abort_with_status(_Status(status))


class Runner(runner_pb2_grpc.RunnerServicer):
    """Has one log."""

    def TailLogs(self, request: Any, context: Any) -> Any:
        """Streams two pieces."""
        yield log_pb2.TailLogsResponse(data=b"one")
        yield log_pb2.TailLogsResponse(data=b"two", position="2")


class _Status(grpc.Status):
    code, details = grpc.StatusCode.NOT_FOUND, "gone"

    def __init__(self, status: bytes) -> None:
        self.trailing_metadata = ((DETAILS_KEY, status),)


def main() -> None:
    """Does it all; whatever is wrong is raised."""
    found = [each for module in stubs() for each in classes(module)]
    assert len(found) > 150
    for each in found:
        assert each.FromString(each().SerializeToString()) == each()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    metadata_pb2_grpc.add_MetadataServicer_to_server(Metadata(), server)
    runner_pb2_grpc.add_RunnerServicer_to_server(Runner(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with dial(f"127.0.0.1:{port}") as channel:
        metadata = metadata_pb2_grpc.MetadataStub(channel)
        project = metadata.GetProject(metadata_pb2.GetProjectRequest(name="projects/p"))
        assert dict(project.labels) == {"größe": "m"}
        try:
            metadata.GetProject(metadata_pb2.GetProjectRequest(name="projects/q"))
        except NotFound as error:
            assert (error.reason, error.metadata) == ("NOT_FOUND", {"name": "projects/q"})
        else:
            raise AssertionError("a project that is missing was found")
        pieces = runner_pb2_grpc.RunnerStub(channel).TailLogs(log_pb2.TailLogsRequest(name="projects/p/trainings/t"))
        assert b"".join(piece.data for piece in pieces) == b"onetwo"
    server.stop(None)
    print(*(f"{name}=={importlib.metadata.version(name)}" for name in ("grpcio", "protobuf")))


if __name__ == "__main__":
    main()
