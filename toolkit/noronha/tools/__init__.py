"""What notebooks import: where their files are, publishing what they made, serving what they load.

    from noronha.tools.shortcuts import data_path, model_path, tmp_path
    from noronha.tools.publish import Publisher
    from noronha.tools.serving import OnlinePredict, LazyModelServer

The same names can be taken from here; each is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

_PLACES = {
    "shortcuts": (
        "data_path", "dataset_meta", "get_purpose", "model_path", "movers_meta", "require_dataset", "require_movers",
        "tmp_path", "train_meta",
    ),
    "publish": ("Publisher",),
    "serving": ("LazyModelServer", "ModelServer", "OnlinePredict"),
    "notebook": ("NotebookRunner",),
    "errors": ("NhaDataError", "PrettyError", "ResolutionError", "ServingError"),
}  # fmt: skip

__all__ = sorted(name for names in _PLACES.values() for name in names)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"noronha.tools.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
