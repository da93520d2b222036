"""Metadata: the records of everything that exists, and the one place to read, search and watch them."""

from noronha.metadata.service import mount

__all__ = ["mount"]
