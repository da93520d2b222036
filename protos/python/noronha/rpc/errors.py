"""One exception for each meaning, the same class on both ends of the wire.

A server raises one of these; the chassis turns it into a ``google.rpc.Status`` with exactly one ``ErrorInfo`` of domain
``noronha``; a dialled channel raises the same class again at the client, with reason and metadata intact.

    NoronhaError
    ├── InvalidArgument      what was asked makes no sense; asking again will not help
    ├── NotFound             it does not exist
    ├── AlreadyExists        the name, or the request id, is taken
    ├── FailedPrecondition   the state does not allow it; change the state first
    ├── Aborted              somebody was faster; read again and retry
    ├── OutOfRange           a position past what is there
    ├── PermissionDenied     the caller may not
    ├── Unauthenticated      nobody knows the caller
    ├── ResourceExhausted    a limit or a disk is full
    ├── Unavailable          it is not there now; a retry may help
    ├── DeadlineExceeded     it took too long
    ├── DataLoss             stored bytes are not what they were
    ├── Unimplemented        this mesh cannot do that
    ├── Cancelled            the call was given up
    ├── Internal             a defect of ours
    └── Unknown              an error that did not come from Noronha

Format: https://google.aip.dev/193. This module imports no grpc, so that rules and backends can raise without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from google.rpc import status_pb2

DOMAIN = "noronha"
"""Domain of every ErrorInfo that Noronha writes."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata under which gRPC carries a serialised ``google.rpc.Status``."""


class NoronhaError(Exception):
    """An error with one meaning, one reason for machines and one line for people.

    ``message`` says what is wrong and what to do. ``reason`` is upper-case words joined by ``_``, at most 63 long.
    Keyword arguments become ``metadata``, each variable part of the message as text. ``violations`` lists every
    (field path, what is wrong) of an invalid request.
    """

    code: ClassVar[int] = 2
    default_reason: ClassVar[str] = "UNKNOWN"

    address = ""
    """Where the call went, of an error that no server of Noronha wrote, as of a channel that found nobody; else ''."""

    service = ""
    """The service that was called, such as ``Store``, where ``address`` is there; else ''."""

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: Iterable[tuple[str, str]] = (),
        **metadata: object,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = list(violations)
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}

    def __str__(self) -> str:
        return self.message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r}, reason={self.reason!r})"

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.message, self.reason, self.violations, self.metadata)


def _rebuild(
    kind: type[NoronhaError],
    message: str,
    reason: str,
    violations: list[tuple[str, str]],
    metadata: dict[str, str],
) -> NoronhaError:
    return kind(message, reason=reason, violations=violations, **metadata)


class Cancelled(NoronhaError):
    """The call was given up."""

    code, default_reason = 1, "CANCELLED"


class Unknown(NoronhaError):
    """An error that did not come from Noronha."""

    code, default_reason = 2, "UNKNOWN"


class InvalidArgument(NoronhaError):
    """What was asked makes no sense, whatever the state."""

    code, default_reason = 3, "INVALID_ARGUMENT"


class DeadlineExceeded(NoronhaError):
    """It took longer than the caller waits."""

    code, default_reason = 4, "DEADLINE_EXCEEDED"


class NotFound(NoronhaError):
    """It does not exist."""

    code, default_reason = 5, "NOT_FOUND"


class AlreadyExists(NoronhaError):
    """The name, or the request id, is taken."""

    code, default_reason = 6, "ALREADY_EXISTS"


class PermissionDenied(NoronhaError):
    """The caller is known and may not."""

    code, default_reason = 7, "PERMISSION_DENIED"


class ResourceExhausted(NoronhaError):
    """A limit is reached or a disk is full."""

    code, default_reason = 8, "RESOURCE_EXHAUSTED"


class FailedPrecondition(NoronhaError):
    """The state does not allow it."""

    code, default_reason = 9, "FAILED_PRECONDITION"


class Aborted(NoronhaError):
    """Somebody was faster: what the caller knew is stale."""

    code, default_reason = 10, "ABORTED"


class OutOfRange(NoronhaError):
    """A position past what is there."""

    code, default_reason = 11, "OUT_OF_RANGE"


class Unimplemented(NoronhaError):
    """This mesh cannot do that."""

    code, default_reason = 12, "UNIMPLEMENTED"


class Internal(NoronhaError):
    """A defect of ours; the server's log has the details."""

    code, default_reason = 13, "INTERNAL"


class Unavailable(NoronhaError):
    """It is not there now; a retry may help."""

    code, default_reason = 14, "UNAVAILABLE"


class DataLoss(NoronhaError):
    """Stored bytes are not what they were."""

    code, default_reason = 15, "DATA_LOSS"


class Unauthenticated(NoronhaError):
    """Nobody knows the caller."""

    code, default_reason = 16, "UNAUTHENTICATED"


BY_CODE: Mapping[int, type[NoronhaError]] = {
    kind.code: kind
    for kind in (
        Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied,
        ResourceExhausted, FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal, Unavailable, DataLoss,
        Unauthenticated,
    )
}  # fmt: skip
"""The class for each number of ``google.rpc.Code``."""


def to_status(error: NoronhaError) -> status_pb2.Status:
    """Returns the ``google.rpc.Status`` of an error: its code, its line, one ErrorInfo, and the violations if any."""
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=error.code, message=error.message)
    info = error_details_pb2.ErrorInfo(domain=DOMAIN, reason=error.reason, metadata=error.metadata)
    packed = any_pb2.Any()
    packed.Pack(info)
    status.details.append(packed)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for field, description in error.violations:
            bad.field_violations.add(field=field, description=description)
        packed = any_pb2.Any()
        packed.Pack(bad)
        status.details.append(packed)
    return status


def from_status(status: status_pb2.Status) -> NoronhaError:
    """Returns the error that a ``google.rpc.Status`` stands for."""
    from google.rpc import error_details_pb2

    reason: str | None = None
    metadata: dict[str, str] = {}
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [(each.field, each.description) for each in bad.field_violations]
    error = BY_CODE.get(status.code, Unknown)(status.message, reason=reason, violations=violations)
    error.metadata = metadata
    return error


def from_rpc(error: Any, address: str = "", service: str = "") -> NoronhaError:
    """Returns the error that a ``grpc.RpcError`` of either API stands for.

    ``address`` is where the call went and ``service`` what was called; an error that no server of Noronha wrote keeps
    both.
    """
    from google.rpc import status_pb2

    code = error.code()
    number = code.value[0] if code is not None else Unknown.code
    try:
        trailing = error.trailing_metadata() or ()
    except Exception:  # an error made by the channel itself has no trailing metadata to ask for
        trailing = ()
    for key, value in trailing:
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            if status.code == number:
                return from_status(status)
    details = error.details() or ""
    found = BY_CODE.get(number, Unknown)(details or f"the call failed with {code}")
    found.address, found.service = address, service
    return found
