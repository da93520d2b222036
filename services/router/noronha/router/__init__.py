"""Router: which request reaches which replica; configures Envoy and keeps it running."""

from noronha.router.service import mount

__all__ = ["mount"]
