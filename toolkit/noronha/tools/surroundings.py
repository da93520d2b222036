"""Where a notebook finds itself: the folders and facts of the task it runs in.

A task leaves a folder, named by ``NORONHA_TASK_DIR``, that only its user can enter:

    task.json          purpose, folders, names, how to serve
    meta/*.json        one record each: train, depl, proj, bvers, ds.<model>.<name>, mv.<model>.<name>
    task.sock          answers what needs the mesh (see `noronha.tools.channel`)

Nothing in it is a secret. Without the variable, as in a container made by hand, the folders are /data, /model and /tmp.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noronha.tools.errors import OutsideTaskError

VARIABLE = "NORONHA_TASK_DIR"

SECTIONS = ("nha-train", "nha-depl", "nha-ide", "nha-isle")
"""What a container may be there for."""

KINDS = {"ds": "dataset", "mv": "modelversion"}
"""Prefix of an asset's record to what messages call it."""


def task_folder() -> Path | None:
    """Returns the folder of the task we run in, None outside of one."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None


def require_task_folder(what: str) -> Path:
    """Returns the folder of the task we run in. Raises OutsideTaskError, naming ``what`` needs it."""
    folder = task_folder()
    if folder is None:
        raise OutsideTaskError(
            f"{what} works in notebooks that Noronha runs: start this one by 'nha train new' or 'nha depl new'"
        )
    return folder


def facts() -> Mapping[str, Any]:
    """Returns what the task is told; empty outside of one."""
    folder = task_folder()
    if folder is None:
        return {}
    return _read(folder / "task.json") or {}


def place(key: str) -> Path:
    """Returns one of the task's folders; ``key`` is ``data``, ``model`` or ``tmp``."""
    told = facts().get("folders", {}).get(key)
    if told:
        return Path(told)
    variable = {"data": "LOCAL_DATA_DIR", "model": "LOCAL_MODEL_DIR", "tmp": "TMPDIR"}[key]
    return Path(os.environ.get(variable) or f"/{key}")


def record(name: str) -> dict[str, Any] | None:
    """Returns one record of ``meta/``, such as ``train``; None when there is none."""
    folder = task_folder()
    return _read(folder / "meta" / f"{name}.json") if folder else None


def assets(kind: str) -> list[dict[str, Any]]:
    """Returns the records of the datasets (``ds``) or versions (``mv``) that are here, by name.

    Each has ``path``, ``revision``, ``name`` and ``model.name``. Outside a task the folders themselves are listed.
    """
    folder = task_folder()
    found: list[dict[str, Any]] = []
    if folder is not None:
        for file in sorted((folder / "meta").glob(f"{kind}.*.json")):
            content = _read(file)
            if content is not None:
                found.append(content)
        return found
    base = place("data" if kind == "ds" else "model")
    if not base.is_dir():
        return []
    for path in sorted(base.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            found.append({"path": str(path), "folder": path.name})
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content if isinstance(content, dict) else None
