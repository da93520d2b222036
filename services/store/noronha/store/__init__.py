"""Store: bytes in, bytes out, by the digest of their content."""

from noronha.store.service import mount

__all__ = ["mount"]
