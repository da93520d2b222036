"""Calls one rpc in a loop from N clients: ``load_client.py ADDRESS get|create CLIENTS SECONDS``; prints calls a second."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid

import grpc.aio

from noronha.v1 import metadata_pb2 as pb
from noronha.v1 import model_pb2


async def main(address: str, what: str, clients: int, limit: float) -> None:
    """Runs the clients, each with one call at a time."""
    async with grpc.aio.insecure_channel(address) as channel:
        method = {"get": "GetModel", "create": "CreateModel"}[what]
        call = channel.unary_unary(
            f"/noronha.v1.Metadata/{method}", request_serializer=lambda request: request.SerializeToString()
        )
        run = uuid.uuid4().hex[:12]
        deadline = time.perf_counter() + limit

        async def client(number: int) -> int:
            done = 0
            while time.perf_counter() < deadline:
                if what == "get":
                    request = pb.GetModelRequest(name="models/bench")
                else:
                    request = pb.CreateModelRequest(
                        model_id=f"m{run}-{number}-{done}", request_id=str(uuid.uuid4()),
                        model=model_pb2.Model(description="bench"),
                    )  # fmt: skip
                await call(request)
                done += 1
            return done

        began = time.perf_counter()
        total = sum(await asyncio.gather(*(client(number) for number in range(clients))))
        print(total / (time.perf_counter() - began))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
