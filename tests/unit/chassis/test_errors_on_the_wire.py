"""Every error class crosses the wire and comes out as itself, in all call shapes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from noronha.chassis import principals
from noronha.chassis.interceptors import Activity, Guard
from noronha.chassis.principals import Kind, Principal, Tokens
from noronha.rpc import dial
from noronha.rpc.errors import BY_CODE, Internal, NoronhaError, PermissionDenied, Unauthenticated
from noronha.v1 import mesh_pb2 as pb

KINDS = [kind for code, kind in sorted(BY_CODE.items())]
UNARY = "/noronha.v1.Mesh/GetInfo"
STREAM = "/noronha.v1.Metadata/Watch"
BOTH = "/noronha.v1.Store/WriteBlobs"


class Thrower(grpc.GenericRpcHandler):
    """Raises what the request's header names."""

    def service(self, details):
        def wanted(context) -> Exception:
            asked = dict(context.invocation_metadata())
            if "bug" in asked:
                return ZeroDivisionError("secret inner detail")
            return BY_CODE[int(asked["code"])](
                "no such thing", reason="SPECIAL", violations=[("a.b", "is wrong")], name="x", n=3
            )

        async def unary(request, context):
            raise wanted(context)

        async def stream(request, context) -> AsyncIterator[pb.MeshInfo]:
            yield pb.MeshInfo(version="first")
            raise wanted(context)

        parts = dict(
            request_deserializer=pb.GetInfoRequest.FromString, response_serializer=pb.MeshInfo.SerializeToString
        )
        if details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(unary, **parts)
        if details.method == STREAM:
            return grpc.unary_stream_rpc_method_handler(stream, **parts)
        if details.method == BOTH:
            return grpc.stream_stream_rpc_method_handler(stream, **parts)
        return None


@pytest.fixture
async def server(tmp_path: Path):
    tokens = Tokens(b"k" * 32)
    server = grpc.aio.server(interceptors=[Guard(tokens, Principal(Kind.OWNER, "me"), Activity())])
    server.add_generic_rpc_handlers((Thrower(),))
    path = f"unix:{tmp_path}/s"
    server.add_insecure_port(path)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield path, f"127.0.0.1:{port}", tokens
    await server.stop(0)


def _check(caught: NoronhaError, kind: type[NoronhaError]) -> None:
    assert type(caught) is kind and str(caught) == "no such thing" and caught.reason == "SPECIAL"
    assert caught.metadata == {"name": "x", "n": "3"} and caught.violations == [("a.b", "is wrong")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_asynchronous_calls(server, kind) -> None:
    async with dial.dial_async(server[0], headers=lambda: [("code", str(kind.code))]) as channel:
        call = channel.unary_unary(UNARY, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
        with pytest.raises(kind) as caught:
            await call(pb.GetInfoRequest())
        _check(caught.value, kind)
        stream = channel.unary_stream(STREAM, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
        seen = []
        with pytest.raises(kind) as caught:
            async for answer in stream(pb.GetInfoRequest()):
                seen.append(answer.version)
        _check(caught.value, kind)
        assert seen == ["first"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_synchronous_calls(server, kind) -> None:
    import asyncio

    def talk() -> None:
        with dial.dial(server[0]) as channel:
            headers = (("code", str(kind.code)),)
            call = channel.unary_unary(UNARY, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
            with pytest.raises(kind) as caught:
                call(pb.GetInfoRequest(), metadata=headers)
            _check(caught.value, kind)
            both = channel.stream_stream(BOTH, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
            with pytest.raises(kind) as caught:
                list(both(iter([pb.GetInfoRequest()]), metadata=headers))
            _check(caught.value, kind)

    await asyncio.to_thread(talk)


async def test_a_defect_tells_the_log_and_not_the_caller(server, caplog) -> None:
    logger = logging.getLogger("noronha")
    logger.propagate = True
    async with dial.dial_async(server[0], headers=lambda: [("bug", "1")]) as channel:
        call = channel.unary_unary(UNARY, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
        with pytest.raises(Internal) as caught:
            await call(pb.GetInfoRequest())
    assert "inner" not in str(caught.value) and caught.value.metadata["request"] in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_over_tcp_a_token_is_needed_and_decides(server) -> None:
    _, address, tokens = server
    cases = [
        ([], Unauthenticated),
        ([("authorization", "Bearer nonsense")], Unauthenticated),
        ([("authorization", "Basic eA==")], Unauthenticated),
        ([("authorization", f"Bearer {tokens.mint(Principal(Kind.TASK, 't'))}")], PermissionDenied),
    ]
    for headers, kind in cases:
        async with dial.dial_async(address, headers=lambda headers=headers: [*headers, ("code", "5")]) as channel:
            stream = channel.unary_stream(STREAM, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
            with pytest.raises(kind):
                async for _ in stream(pb.GetInfoRequest()):
                    pass


async def test_only_services_speak_for_another_tenant(server, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(principals, "authorize", lambda method, principal: seen.append(principal.tenant))
    _, address, tokens = server
    for kind in (Kind.SERVICE, Kind.USER):
        token = tokens.mint(Principal(kind, "x"))
        headers = [("authorization", f"Bearer {token}"), ("noronha-tenant", "other"), ("code", "5")]
        async with dial.dial_async(address, headers=lambda headers=headers: headers) as channel:
            call = channel.unary_unary(UNARY, pb.GetInfoRequest.SerializeToString, pb.MeshInfo.FromString)
            with pytest.raises(NoronhaError):
                await call(pb.GetInfoRequest())
    assert seen == ["other", "default"]
