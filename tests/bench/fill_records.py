"""Creates many datasets with details: ``fill_records.py ADDRESS COUNT``. Part k of 1,000 recurs, so pages fill early."""

from __future__ import annotations

import asyncio
import sys

import grpc.aio

from noronha.v1 import dataset_pb2
from noronha.v1 import metadata_pb2 as pb


async def main(address: str, count: int) -> None:
    """Creates them from 32 clients."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            "/noronha.v1.Metadata/CreateDataset", request_serializer=pb.CreateDatasetRequest.SerializeToString
        )
        numbers = iter(range(count))

        async def client() -> None:
            for number in numbers:
                details = f'{{"part": {number % 1000}, "source": "sensor-{number}", "rows": {number * 7}}}'
                await call(
                    pb.CreateDatasetRequest(
                        parent="models/bench",
                        dataset_id=f"d{number:06d}",
                        dataset=dataset_pb2.Dataset(details_json=details),
                    )
                )

        await asyncio.gather(*(client() for _ in range(32)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
