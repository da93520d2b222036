"""What the channel says of its calls at DEBUG: a line each, with nothing of what was sent."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest

from noronha.rpc.dial import dial
from noronha.rpc.errors import Unimplemented
from noronha.v1 import log_pb2, metadata_pb2, metadata_pb2_grpc, model_pb2, runner_pb2_grpc


class _Metadata(metadata_pb2_grpc.MetadataServicer):
    def UpdateModel(self, request: Any, context: Any) -> model_pb2.Model:
        return request.model


class _Runner(runner_pb2_grpc.RunnerServicer):
    def TailLogs(self, request: Any, context: Any) -> Iterator[log_pb2.TailLogsResponse]:
        yield log_pb2.TailLogsResponse(data=b"canary")


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    metadata_pb2_grpc.add_MetadataServicer_to_server(_Metadata(), server)
    runner_pb2_grpc.add_RunnerServicer_to_server(_Runner(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with dial(f"127.0.0.1:{port}", token="canary") as channel:
            yield channel
    finally:
        server.stop(None).wait()


def _lines(caplog: Any) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "noronha.rpc"]


def test_every_call_is_one_line_at_debug_and_none_above(channel: grpc.Channel, caplog: Any) -> None:
    metadata = metadata_pb2_grpc.MetadataStub(channel)
    model = model_pb2.Model(name="models/iris", description="canary")
    with caplog.at_level(logging.INFO, "noronha.rpc"):
        metadata.UpdateModel(metadata_pb2.UpdateModelRequest(model=model))
    assert _lines(caplog) == []
    with caplog.at_level(logging.DEBUG, "noronha.rpc"):
        metadata.UpdateModel(metadata_pb2.UpdateModelRequest(model=model))
        with pytest.raises(Unimplemented):
            metadata.ListDatasets(metadata_pb2.ListDatasetsRequest(parent="models/-", filter="canary"))
        log = runner_pb2_grpc.RunnerStub(channel).TailLogs(log_pb2.TailLogsRequest(name="projects/p/trainings/t"))
        assert [each.data for each in log] == [b"canary"]
    assert [re.sub(r"[0-9.]+ ms$", "ms", line) for line in _lines(caplog)] == [
        "Metadata/UpdateModel models/iris OK ms",
        "Metadata/ListDatasets models/- UNIMPLEMENTED ms",
        "Runner/TailLogs projects/p/trainings/t OK ms",
    ]


def test_a_stream_that_is_given_up_is_told_as_cancelled(channel: grpc.Channel, caplog: Any) -> None:
    with caplog.at_level(logging.DEBUG, "noronha.rpc"):
        runner_pb2_grpc.RunnerStub(channel).TailLogs(log_pb2.TailLogsRequest(name="projects/p/trainings/t")).cancel()
    assert [line.split()[:3] for line in _lines(caplog)] == [["Runner/TailLogs", "projects/p/trainings/t", "CANCELLED"]]
