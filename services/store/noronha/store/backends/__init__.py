"""Backends of Store: a module for each scheme of ``store.backend``, and the index of what lies there."""

from __future__ import annotations

from noronha.chassis.registry import BackendClass

SCHEMES = {
    "file": BackendClass("noronha.store.backends.file:FileObjects"),
}
"""Schemes of ``store.backend`` and the classes that carry them."""
