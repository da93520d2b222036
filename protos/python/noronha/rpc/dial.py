"""How a client reaches a server: deadlines, retries, credentials and typed errors come with the channel.

Calls with one answer get a deadline of 30 s unless they name their own. Reads, and writes that carry a request id, are
retried by gRPC itself when a server is UNAVAILABLE; nothing else is. Errors of Noronha are raised as their own classes.
At DEBUG, the logger ``noronha.rpc`` tells of each synchronous call when it has ended: method, what it was about, code
and milliseconds; never what was sent, and no credentials.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import grpc
import grpc.aio

from noronha.rpc.errors import from_rpc

LOG = logging.getLogger("noronha.rpc")

DEADLINE = 30.0
"""Seconds that a call with one answer may take unless it says otherwise."""

RETRIED: dict[str, tuple[str, ...]] = {
    "Mesh": ("GetInfo",),
    "Metadata": (
        "GetProject", "ListProjects", "CreateProject", "UpdateProject",
        "GetModel", "ListModels", "CreateModel", "UpdateModel",
        "GetModelVersion", "ListModelVersions", "CreateModelVersion", "PublishModelVersion",
        "GetDataset", "ListDatasets", "CreateDataset", "PublishDataset",
        "GetAlias", "ListAliases", "CreateAlias", "MoveAlias",
        "GetBuild", "ListBuilds", "GetTraining", "ListTrainings",
        "GetDeployment", "ListDeployments", "GetDeploymentRevision", "ListDeploymentRevisions",
        "ListReplicas", "GetTraffic", "GetNotebook", "ListNotebooks",
        "GetChest", "ListChests", "CreateChest", "UpdateChest", "GetIsland", "ListIslands",
        "SearchResources", "GetLineage",
    ),
    "Builder": ("CreateBuild",),
    "Runner": (
        "CreateTraining", "CreateDeployment", "UpdateDeployment", "RollbackDeployment", "CreateNotebook", "SetIsland",
    ),
    "Store": ("OpenUpload", "GetUpload", "StatBlobs"),
    "Router": ("UpdateTraffic", "GetProxy"),
    "Tasks": ("GetAssignment", "Heartbeat", "ReportProgress", "AppendOutput", "ReportPublished", "ReportOutcome"),
}  # fmt: skip
"""Methods whose repeat is harmless, by service: gRPC retries them when the server is UNAVAILABLE."""

SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": f"noronha.v1.{service}", "method": method}
                    for service, methods in RETRIED.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)

FLOW: list[tuple[str, Any]] = [
    # A window of a fixed size, where gRPC would measure and grow one: what waits for a slow reader of a large file
    # stays within it, at both ends.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    # A chunk of a file in one frame, not in sixty-four.
    ("grpc.http2.max_frame_size", 1 << 20),
]
"""How bytes flow, the same for servers and clients."""

OPTIONS: list[tuple[str, Any]] = [
    *FLOW,
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.enable_retries", 1),
    # A mesh is on this machine or behind an address that its owner wrote down; a proxy from the environment is neither.
    ("grpc.enable_http_proxy", 0),
    # A server that comes back is to be found within a second, not after gRPC's default of up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Despite its name this bounds one attempt to connect; a machine under load needs more than a moment to answer.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

Headers = Callable[[], "list[tuple[str, str]]"]


def _no_headers() -> list[tuple[str, str]]:
    return []


class _Details(
    NamedTuple(
        "_Details",
        [
            ("method", Any), ("timeout", Any), ("metadata", Any), ("credentials", Any), ("wait_for_ready", Any),
            ("compression", Any),
        ],
    ),
    grpc.ClientCallDetails,
):  # fmt: skip
    """Call details with our additions."""


class _Manners(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds credentials and deadlines to synchronous calls and raises typed errors."""

    def __init__(self, target: str, headers: Headers, deadline: float) -> None:
        self._target = target
        self._headers = headers
        self._deadline = deadline

    def _details(self, details: Any, answers_once: bool) -> _Details:
        timeout = details.timeout
        if timeout is None and answers_once:
            timeout = self._deadline
        return _Details(
            details.method, timeout, [*(details.metadata or ()), *self._headers()], details.credentials,
            details.wait_for_ready, getattr(details, "compression", None),
        )  # fmt: skip

    def _goal(self, details: Any) -> _Goal:
        return _Goal(self._target, details.method.rpartition("/")[0].rpartition(".")[2])

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        ended = _clock(details.method, request)
        return _settled(continuation(self._details(details, True), request), ended, self._goal(details))

    def intercept_stream_unary(self, continuation: Any, details: Any, requests: Any) -> Any:
        ended = _clock(details.method, None)
        return _settled(continuation(self._details(details, False), requests), ended, self._goal(details))

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        ended = _clock(details.method, request)
        return Answers(continuation(self._details(details, False), request), ended, self._goal(details))

    def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        ended = _clock(details.method, None)
        return Answers(continuation(self._details(details, False), requests), ended, self._goal(details))


class _Goal(NamedTuple):
    """Where a call goes, and the service that it asks."""

    address: str
    service: str


Ended = Callable[[Any], None]
"""Is told the code with which a call has ended, once or more often."""


def _clock(method: str, request: Any) -> Ended:
    """Begins to measure a call; returns what writes its line when it has ended."""
    if not LOG.isEnabledFor(logging.DEBUG):
        return lambda code: None
    began = time.monotonic()
    about = _about(request)
    told = False

    def ended(code: Any) -> None:
        nonlocal told
        if not told:
            told = True
            milliseconds = (time.monotonic() - began) * 1000
            words = [method.rpartition(".")[2], about, getattr(code, "name", "CANCELLED"), f"{milliseconds:.1f} ms"]
            LOG.debug(" ".join(word for word in words if word))

    return ended


def _about(request: Any) -> str:
    """Returns the name that a request is about: its own, that of the record it holds, or where it is to lie."""
    for holder in (request, *(value for _, value in request.ListFields())) if request is not None else ():
        for field in ("name", "parent"):
            name = getattr(holder, field, "")
            if name and isinstance(name, str):
                return name
    return ""


def _settled(call: Any, ended: Ended, goal: _Goal) -> Any:
    try:
        error = call.exception()
    except grpc.FutureCancelledError:
        ended(grpc.StatusCode.CANCELLED)
        return call
    ended(call.code())
    if error is not None:
        raise from_rpc(error, *goal) from None
    return call


class Answers:
    """The answers of a streaming call: an iterator that raises typed errors and can be cancelled."""

    def __init__(self, call: Any, ended: Ended, goal: _Goal) -> None:
        self._call = call
        self._ended = ended
        self._goal = goal

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except StopIteration:
            self._ended(grpc.StatusCode.OK)
            raise
        except grpc.RpcError as error:
            self._ended(error.code())
            raise from_rpc(error, *self._goal) from None

    def cancel(self) -> None:
        """Gives the call up."""
        self._call.cancel()
        self._ended(grpc.StatusCode.CANCELLED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


def bearer(token: str | None) -> Headers:
    """Returns the headers that carry a token; none without one."""
    if not token:
        return _no_headers
    headers = [("authorization", f"Bearer {token}")]
    return lambda: headers


def dial(target: str, *, token: str | None = None, deadline: float = DEADLINE) -> grpc.Channel:
    """Returns a synchronous channel to ``target`` (``unix:/path`` or ``host:port``); nothing is connected yet.

    Calls raise the classes of ``noronha.rpc.errors``. ``deadline`` is in seconds.
    """
    channel = grpc.insecure_channel(target, options=OPTIONS)
    return grpc.intercept_channel(channel, _Manners(target, bearer(token), deadline))


class _Async:
    """Adds credentials and deadlines to asynchronous calls and raises typed errors."""

    def __init__(self, headers: Headers, deadline: float) -> None:
        self._headers = headers
        self._deadline = deadline

    def _details(self, details: Any, answers_once: bool) -> Any:
        timeout = details.timeout
        if timeout is None and answers_once:
            timeout = self._deadline
        metadata = grpc.aio.Metadata(*(details.metadata or ()), *self._headers())
        return grpc.aio.ClientCallDetails(
            details.method, timeout, metadata, details.credentials, details.wait_for_ready
        )


class _AsyncUnary(_Async, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        try:
            call = await continuation(self._details(details, True), request)
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error) from None


class _AsyncAnswers(_Async, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return _typed(await continuation(self._details(details, False), request))


class _AsyncBoth(_Async, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, details: Any, requests: Any) -> Any:
        return _typed(await continuation(self._details(details, False), requests))


async def _typed(call: Any) -> AsyncIterator[Any]:
    try:
        async for answer in call:
            yield answer
    except grpc.aio.AioRpcError as error:
        raise from_rpc(error) from None
    finally:
        call.cancel()


def dial_async(target: str, *, headers: Headers = _no_headers, deadline: float = DEADLINE) -> grpc.aio.Channel:
    """Returns an asynchronous channel to ``target``; ``headers`` is asked before each call.

    Calls raise the classes of ``noronha.rpc.errors``. ``deadline`` is in seconds.
    """
    kinds = (_AsyncUnary, _AsyncAnswers, _AsyncBoth)
    return grpc.aio.insecure_channel(target, options=OPTIONS, interceptors=[kind(headers, deadline) for kind in kinds])


def new_request_id() -> str:
    """Returns a fresh request id: a random UUID, 36 characters."""
    return str(uuid.uuid4())
