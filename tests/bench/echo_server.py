"""The reference for Metadata: a bare grpc.aio server that answers the request it gets. Run: ``echo_server.py ADDRESS``."""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio

from noronha.v1 import metadata_pb2 as pb


async def echo(request: object, context: object) -> object:
    """Answers the request."""
    return request


class Echo(grpc.GenericRpcHandler):
    """Echoes the two requests that are measured."""

    def service(self, details):
        name = details.method.rpartition("/")[2]
        kind = {"GetModel": pb.GetModelRequest, "CreateModel": pb.CreateModelRequest}.get(name)
        if kind is None:
            return None
        return grpc.unary_unary_rpc_method_handler(
            echo, request_deserializer=kind.FromString, response_serializer=kind.SerializeToString
        )


async def main(address: str) -> None:
    """Serves until ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(address)
    await server.start()
    print("serving", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
