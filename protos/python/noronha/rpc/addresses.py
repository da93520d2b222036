"""Where services are found: which one carries which, and how long the path of a socket may be."""

from __future__ import annotations

import os
from pathlib import Path

from noronha.rpc.errors import FailedPrecondition

CARRIED_BY = {"records": "metadata", "tasks": "runner"}
"""Services of the contract that are mounted by another one, to that one."""

SOCKET_PATH_MAX = 107
"""Most bytes of a Unix socket's path on Linux."""


def check_socket_path(path: str | Path) -> None:
    """Raises FailedPrecondition ``SOCKET_PATH_TOO_LONG`` for a path that no socket can have."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise FailedPrecondition(
            f"the socket path {path} is longer than {SOCKET_PATH_MAX} bytes; set mesh.state_dir to a shorter folder",
            reason="SOCKET_PATH_TOO_LONG",
        )
