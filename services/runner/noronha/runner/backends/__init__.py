"""Backends of Runner, one module for each scheme of ``runner.backend``."""

from __future__ import annotations

from noronha.chassis.registry import BackendClass

SCHEMES = {
    "process": BackendClass("noronha.runner.backends.process:Processes"),
}
"""Schemes of ``runner.backend`` and the classes that carry them."""
