"""Calls that are safe to repeat, repeated until the mesh is back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from noronha.client.connection import Notice, silent
from noronha.client.patience import Interruption
from noronha.rpc.errors import DeadlineExceeded, Unavailable

if TYPE_CHECKING:
    from noronha.client.connection import Mesh

PATIENCE = 60.0
"""Seconds that the mesh may be away."""

Answer = TypeVar("Answer")


def persistently(
    mesh: Mesh, call: Callable[[], Answer], *, patience: float = PATIENCE, notice: Notice = silent
) -> Answer:
    """Returns what ``call()`` returns, called again while the mesh is away; an embedded one is started again.

    Only for calls whose repeat is harmless: reads, and writes that carry one request id through all repeats. Raises
    Unavailable or DeadlineExceeded after ``patience`` seconds, Unavailable ``MESH_STOPPED`` when the mesh was stopped
    meanwhile, and at once whatever else the call raises. ``notice`` is told once when the mesh stays away.
    """
    deadline = time.monotonic() + patience
    pause = 0.1
    interruption = Interruption(patience, notice)
    while True:
        try:
            return call()
        except (Unavailable, DeadlineExceeded) as error:  # one that stands still does not even refuse
            if time.monotonic() + pause > deadline or error.reason != error.default_reason:
                raise
            interruption.failed(error)
        mesh.revive()
        time.sleep(pause)
        pause = min(pause * 2, 2.0)
