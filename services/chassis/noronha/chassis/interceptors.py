"""What happens around every call: who is it, may they, typed errors on the wire, one structured log line."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from noronha.chassis import principals
from noronha.chassis.call_log import CallLog
from noronha.chassis.principals import ANONYMOUS, TENANT_HEADER, Kind, Principal, Tokens
from noronha.rpc.errors import DETAILS_KEY, Internal, NoronhaError, Unauthenticated, Unimplemented, to_status

REQUEST_HEADER = "x-request-id"
"""Header that carries the id under which a call and what it caused are logged."""

log = logging.getLogger("noronha")

_REMEMBERED = 30.0
"""Seconds for which a token that was verified is taken without another look, and may outlive its expiry."""

_request: contextvars.ContextVar[str] = contextvars.ContextVar("noronha_request", default="")
_STATUS: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def current_request() -> str:
    """Returns the id of the call being served, '' outside of one."""
    return _request.get()


class Activity:
    """When people last called, and how many of their calls are open; what the idle stop asks."""

    def __init__(self) -> None:
        self.open = 0
        self.last = time.monotonic()


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """The one interceptor of every server.

    ``owner`` is the principal of a call without a token on a Unix socket; None where sockets are not trusted. ``calls``
    takes a line for each call; None takes none.
    """

    def __init__(
        self, tokens: Tokens, owner: Principal | None, activity: Activity, calls: CallLog | None = None
    ) -> None:
        self._calls = calls
        self._tokens = tokens
        self._owner = owner
        self._activity = activity
        self._handlers: dict[str, Any] = {}
        self._known: dict[str, tuple[float, Principal]] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """Wraps a method's handler, once; handlers never change while a server runs."""
        method: str = details.method
        wrapped = self._handlers.get(method)
        if wrapped is not None:
            return wrapped
        handler = await continuation(details)
        if handler is None:
            return None
        requests = "stream" if handler.request_streaming else "unary"
        answers = "stream" if handler.response_streaming else "unary"
        inner = getattr(handler, f"{requests}_{answers}")
        guard = self._guarded(method, _written(inner) if handler.response_streaming else inner)
        make = getattr(grpc, f"{requests}_{answers}_rpc_method_handler")
        wrapped = make(guard, handler.request_deserializer, handler.response_serializer)
        self._handlers[method] = wrapped
        return wrapped

    def _enter(self, method: str, context: Any) -> Principal:
        token = tenant = request = ""
        for key, value in context.invocation_metadata():
            if key == "authorization":
                if token:
                    raise Unauthenticated("the call brings two authorization headers; send one", reason="BAD_TOKEN")
                token = value
            elif key == TENANT_HEADER:
                tenant = value
            elif key == REQUEST_HEADER:
                request = value[:64]
        _request.set(request or os.urandom(6).hex())
        principal = self._identify(token, context)
        if tenant and principal.kind is Kind.SERVICE:
            principal = Principal(Kind.SERVICE, principal.subject, tenant)
        principals.authorize(method, principal)
        principals.become(principal)
        return principal

    def _identify(self, header: str, context: Any) -> Principal:
        if not header:
            if self._owner is not None and context.peer().startswith("unix:"):
                return self._owner
            return ANONYMOUS
        known = self._known.get(header)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the authorization header is not 'Bearer <token>'", reason="BAD_TOKEN")
        principal = self._tokens.verify(token)
        if len(self._known) >= 10_000:
            self._known.clear()
        self._known[header] = (time.monotonic() + _REMEMBERED, principal)
        return principal

    def _guarded(self, method: str, answer: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        """Wraps what answers a method: who calls and may they before, typed errors and a line in the log after."""

        async def guard(request: Any, context: Any) -> Any:
            began = time.perf_counter()
            principal = ANONYMOUS
            code = 0
            counted = False
            try:
                principal = self._enter(method, context)
                counted = self._arrive(principal)
                return await answer(request, context)
            except asyncio.CancelledError:
                code = 1
                raise
            except grpc.aio.AbortError:
                code = 2
                raise
            except Exception as error:
                code = await self._abort(method, context, error)
            finally:
                self._leave(counted)
                self._note(method, principal, code, began)

        return guard

    def _arrive(self, principal: Principal) -> bool:
        if principal.kind not in (Kind.OWNER, Kind.USER):
            return False
        self._activity.open += 1
        self._activity.last = time.monotonic()
        return True

    def _leave(self, counted: bool) -> None:
        if counted:
            self._activity.open -= 1
            self._activity.last = time.monotonic()

    def _note(self, method: str, principal: Principal, code: int, began: float) -> None:
        if self._calls is not None:
            took = (time.perf_counter() - began) * 1000
            self._calls.write(time.time(), current_request(), method, principal.identity, _STATUS[code].name, took)

    async def _abort(self, method: str, context: Any, error: Exception) -> int:
        if isinstance(error, NotImplementedError):  # of an rpc that a service has and a server does not carry out
            name = method.rpartition("/")[2]
            error = Unimplemented(f"this mesh has no {name} yet", reason="NOT_IMPLEMENTED", method=name)
        elif not isinstance(error, NoronhaError):
            log.error("%s failed, request %s", method, current_request(), exc_info=error)
            error = Internal(
                f"something went wrong inside the mesh; its log has the details under {current_request()}",
                request=current_request(),
            )
        elif isinstance(error, Internal):
            log.error("%s failed, request %s", method, current_request(), exc_info=error)
        status = to_status(error).SerializeToString()
        try:
            await context.abort(_STATUS[error.code], error.message, ((DETAILS_KEY, status),))
        except grpc.aio.AbortError:
            return error.code
        return error.code


def _written(inner: Any) -> Callable[[Any, Any], Awaitable[None]]:
    """Returns what writes the answers of a streaming handler, so that errors and the end of the call are met in it."""

    async def answer(request: Any, context: Any) -> None:
        answers = inner(request, context)
        if hasattr(answers, "__aiter__"):
            try:
                async for each in answers:
                    await context.write(each)
            finally:
                await answers.aclose()
        else:  # it writes its answers itself, as the Watch of grpc.health.v1 does
            await answers

    return answer
