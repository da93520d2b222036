"""Errors that notebooks raise and see; each also is what it means in the mesh's own terms."""

from __future__ import annotations

from noronha.rpc.errors import FailedPrecondition, Internal, InvalidArgument, NoronhaError


class PrettyError(NoronhaError):
    """Base of the errors below. Raised by a prediction function it is answered with 500, and /health turns to 503."""


class NhaDataError(InvalidArgument, PrettyError):
    """The data given is not what is expected. Raised by a prediction function it is answered with 400."""

    default_reason = "BAD_DATA"


class ResolutionError(FailedPrecondition, PrettyError):
    """What was meant cannot be told: nothing fits, or more than one thing does."""

    default_reason = "NOT_RESOLVED"


class ServingError(Internal, PrettyError):
    """The model server itself cannot do its work."""

    default_reason = "SERVING"


class OutsideTaskError(FailedPrecondition, PrettyError):
    """The toolkit was asked for something that only a task of Noronha has."""

    default_reason = "OUTSIDE_TASK"
