"""Runner: runs trainings and deployments, and hosts Tasks, the one service that tasks talk to."""

from __future__ import annotations

TYPE_CHECKING = False  # typing costs a supervisor half of its time to start
if TYPE_CHECKING:
    from typing import Any

    from noronha.runner.service import mount

__all__ = ["mount"]


def __getattr__(name: str) -> Any:
    # The supervisor lives in this package and must not pay for gRPC, so the service is imported when it is mounted.
    if name == "mount":
        from noronha.runner.service import mount

        return mount
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
