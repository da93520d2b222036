"""Backends of Builder, one module for each scheme of ``builder.backend``."""

from __future__ import annotations

from noronha.chassis.registry import BackendClass

SCHEMES = {
    "venv": BackendClass("noronha.builder.backends.venv:VenvBackend", "embedded"),
}
"""Schemes of ``builder.backend`` and the classes that carry them."""
