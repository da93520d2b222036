"""One transfer in a process of its own: ``transfer.py ADDRESS upload FILE | download DIGEST SIZE FOLDER``.

Prints one line of JSON: seconds, highest memory above that after the imports in MiB, payload bytes sent, the digest.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from measure import peak_mb, reset_peak, resident_mb

from noronha.client import transfer
from noronha.rpc.dial import dial
from noronha.v1 import file_pb2, store_pb2_grpc


class Counting:
    """A stub of Store that counts the payload bytes that leave."""

    def __init__(self, stub: store_pb2_grpc.StoreStub) -> None:
        self._stub = stub
        self.sent = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._stub, name)

    def WriteBlobs(self, requests, **more):
        def counted():
            for request in requests:
                self.sent += len(request.data)
                yield request

        return self._stub.WriteBlobs(counted(), **more)


def main() -> None:
    """Does the transfer."""
    address, what, *rest = sys.argv[1:]
    with dial(address) as channel:
        stub = Counting(store_pb2_grpc.StoreStub(channel))
        digest = ""
        reset_peak(os.getpid())
        idle = resident_mb(os.getpid())
        began = time.perf_counter()
        if what == "upload":
            digest = transfer.upload(stub, [("big.bin", Path(rest[0]))]).files[0].digest
        else:
            wanted = file_pb2.File(path="big.bin", digest=rest[0], size_bytes=int(rest[1]))
            transfer.download(stub, [wanted], Path(rest[2]), durable=True)
        took = time.perf_counter() - began
        print(json.dumps({"seconds": took, "memory": peak_mb(os.getpid()) - idle, "sent": stub.sent, "digest": digest}))


if __name__ == "__main__":
    main()
