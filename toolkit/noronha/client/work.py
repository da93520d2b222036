"""How a piece of work ended, for builds, trainings and deployments alike."""

from __future__ import annotations

from typing import Any, TypeVar

from noronha.rpc.errors import NoronhaError

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
"""States in which a piece of work is over."""

Record = TypeVar("Record")


class WorkEnded(NoronhaError):
    """A piece of work did not end as it was meant to; ``record`` is what is known of it."""

    def __init__(self, message: str, *, record: Any = None, reason: str | None = None, **more: Any) -> None:
        super().__init__(message, reason=reason, **more)
        self.record = record


class WorkFailed(WorkEnded):
    """A training, a build or a deployment ended badly; reason and line are those of its record."""

    code, default_reason = 9, "WORK_FAILED"


class WorkCancelled(WorkEnded):
    """A training or a build ended because somebody asked for it."""

    code, default_reason = 1, "WORK_CANCELLED"


def state_of(record: Any) -> str:
    """Returns the state of a record that has a ``status``, as the contract writes it."""
    name: str = record.status.State.Name(record.status.state)
    return name


def has_ended(record: Any) -> bool:
    """Says whether a build or a training is over."""
    return state_of(record) in ENDED


def check(record: Record, what: str) -> Record:
    """Returns a record whose work ended well. Raises WorkFailed or WorkCancelled with the reason of its status."""
    status = record.status  # type: ignore[attr-defined]
    state = state_of(record)
    if state == "FAILED":
        why = status.error.message or "no reason was told"
        raise WorkFailed(f"{what} failed: {why}", record=record, reason=status.reason or None)
    if state == "CANCELLED":
        raise WorkCancelled(f"{what} was cancelled", record=record, reason=status.reason or None)
    return record
