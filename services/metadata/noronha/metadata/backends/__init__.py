"""Backends of Metadata, one module for each scheme of ``metadata.backend``."""

from __future__ import annotations

from noronha.chassis.registry import BackendClass

SCHEMES = {
    "memory": BackendClass("noronha.metadata.backends.memory:MemoryRecords"),
    "sqlite": BackendClass("noronha.metadata.backends.sqlite:SqliteRecords"),
}
"""Schemes of ``metadata.backend`` and the classes that carry them."""
