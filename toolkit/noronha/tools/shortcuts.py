"""Where a notebook's files are, and what is recorded of them.

from noronha.tools.shortcuts import data_path, model_path, tmp_path

frame = read_csv(data_path('measures.csv'))
"""

from __future__ import annotations

import os
from typing import Any

from noronha.rpc.errors import NotFound
from noronha.tools import surroundings
from noronha.tools.errors import ResolutionError
from noronha.tools.views import View

__all__ = [
    "data_path", "dataset_meta", "get_purpose", "model_path", "movers_meta", "require_dataset", "require_movers",
    "tmp_path", "train_meta",
]  # fmt: skip


def get_purpose() -> str | None:
    """Returns what this notebook runs for: ``nha-train``, ``nha-depl``, ``nha-ide`` or ``nha-isle``; None elsewhere."""
    purpose = os.environ.get("CONTAINER_PURPOSE")
    return purpose if purpose in surroundings.SECTIONS else None


def tmp_path(file_name: str = "") -> str:
    """Returns the path of a file in the task's own temporary folder, or that folder."""
    return os.path.join(str(surroundings.place("tmp")), file_name)


def data_path(file_name: str = "", model: str | None = None, dataset: str | None = None) -> str:
    """Returns the path of a file of a mounted dataset; the file itself need not exist.

    With one dataset mounted, neither ``model`` nor ``dataset`` is needed. Names match exactly; ``name@2`` takes that
    revision. Raises ResolutionError when none or several fit.
    """
    return os.path.join(_only("ds", model, dataset)["path"], file_name)


def model_path(file_name: str = "", model: str | None = None, version: str | None = None) -> str:
    """Returns the path of a file of a mounted model version; the file itself need not exist.

    With one version mounted, neither ``model`` nor ``version`` is needed. Names match exactly: ``v1`` is not ``v10``;
    ``name@2`` takes that revision. Raises ResolutionError when none or several fit.
    """
    return os.path.join(_only("mv", model, version)["path"], file_name)


def dataset_meta(model: str | None = None, dataset: str | None = None, ignore: bool = False) -> View:
    """Returns what is recorded of a mounted dataset: ``name``, ``model``, ``details``, …

    With ``ignore``, an empty record stands in for one that cannot be resolved; else ResolutionError is raised.
    """
    return _meta("ds", "Dataset", model, dataset, ignore)


def movers_meta(model: str | None = None, version: str | None = None, ignore: bool = False) -> View:
    """Returns what is recorded of a mounted model version: ``name``, ``model``, ``details``, ``train``, ``ds``, …

    With ``ignore``, an empty record stands in for one that cannot be resolved; else ResolutionError is raised.
    """
    return _meta("mv", "ModelVersion", model, version, ignore)


def train_meta() -> View:
    """Returns what is recorded of the training that runs this notebook. Raises FileNotFoundError when none does."""
    content = surroundings.record("train")
    if content is None:
        raise FileNotFoundError("no training runs this notebook, so nothing is recorded of one")
    return View(content, "Training")


def require_dataset(dataset: str, model: str | None = None) -> str:
    """Fetches a dataset of the mesh, unless it is here already, and returns its folder.

    ``model`` defaults to the project's only model. Raises NotFound when there is no such dataset.
    """
    return str(_require("ds", dataset, model)["path"])


def require_movers(version: str, model: str | None = None) -> str:
    """Fetches a model version of the mesh, unless it is here already, and returns its folder.

    ``model`` defaults to the project's only model. Raises NotFound when there is no such version.
    """
    return str(_require("mv", version, model)["path"])


def sole_model(what: str) -> str:
    """Returns the project's only model. Raises ResolutionError that says how to name one for ``what``."""
    models = list(surroundings.facts().get("models", []))
    if len(models) == 1:
        return str(models[0])
    raise ResolutionError(
        f"Could not resolve model inside project {surroundings.facts().get('project', '')!r}. Options are: {models}. "
        f"Please specify which model you are {what}"
    )


def _require(kind: str, name: str, model: str | None) -> dict[str, Any]:
    from noronha.tools import channel

    if not name:
        raise NotFound("there is nothing without a name")
    model = model or sole_model("requiring a dataset of" if kind == "ds" else "requiring a version of")
    here = _matching(kind, model, name)
    if len(here) == 1:
        return here[0]
    question = "require_dataset" if kind == "ds" else "require_model_version"
    answer: dict[str, Any] = channel.ask(question, what="require_dataset" if kind == "ds" else "require_movers",
                                         model=model, name=name)  # fmt: skip
    return answer


def _meta(kind: str, title: str, model: str | None, name: str | None, ignore: bool) -> View:
    try:
        return View(_only(kind, model, name), title)
    except ResolutionError:
        if ignore:
            return View({}, title)
        raise


def _only(kind: str, model: str | None, name: str | None) -> dict[str, Any]:
    found = _matching(kind, model, name)
    if len(found) == 1:
        return found[0]
    wanted = ":".join(part or "*" for part in (model, name))
    base = surroundings.place("data" if kind == "ds" else "model")
    if found:
        options = [one.get("folder") or os.path.basename(str(one["path"])) for one in found]
        told = f"Found {len(found)} options: {options}"
    else:
        told = "No options found"
    raise ResolutionError(
        f"Could not resolve path to {surroundings.KINDS[kind]} {wanted!r} under directory {base}. {told}", wanted=wanted
    )


def _matching(kind: str, model: str | None, name: str | None) -> list[dict[str, Any]]:
    return [one for one in surroundings.assets(kind) if _fits(one, model, name)]


def _fits(asset: dict[str, Any], model: str | None, name: str | None) -> bool:
    if "name" not in asset:  # a folder without a record: its name is all there is, '<model>.<name>'
        folder = str(asset["folder"])
        if model is not None and name is not None:
            return folder == f"{model}.{name}"
        return (model is None or folder.startswith(f"{model}.")) and (name is None or folder.endswith(f".{name}"))
    if model is not None and asset.get("model", {}).get("name") != model:
        return False
    if name is None:
        return True
    bare, at, revision = name.partition("@")
    return asset["name"] == bare and (not at or str(asset.get("revision")) == revision)
