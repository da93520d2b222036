"""The places that routes lead from and to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edge:
    """What is the same for every deployment: where requests come in and where Router itself is reached."""

    host: str
    """Address that listeners bind to, such as `127.0.0.1`."""
    port: int
    """Port of the one listener for all deployments."""
    update_socket: str
    """Path of the Unix socket of Router's own `/update` endpoint."""
    request_timeout: float = 60.0
    """Seconds that a prediction may take; 0 means no bound."""


@dataclass(frozen=True)
class Endpoint:
    """Where one replica is reached."""

    host: str
    port: int
