"""Publishing a model version from a notebook.

from noronha.tools.publish import Publisher
from noronha.tools.shortcuts import tmp_path

joblib.dump(model, tmp_path('clf.pkl'))
Publisher()(details={'params': params, 'metrics': metrics})
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from noronha.tools import answers, channel, surroundings
from noronha.tools.errors import NhaDataError, ResolutionError
from noronha.tools.shortcuts import sole_model, tmp_path
from noronha.tools.views import View

__all__ = ["Publisher"]


class Publisher:
    """Publishes files as a version of a model, on behalf of the training that runs this notebook.

    Raises OutsideTaskError where no task runs the notebook.
    """

    def __init__(self) -> None:
        surroundings.require_task_folder("Publisher")
        self._train = surroundings.record("train")

    def __call__(
        self,
        src_path: str = "/tmp",
        details: dict[str, Any] | None = None,
        version_name: str | None = None,
        model_name: str | None = None,
        uses_dataset: bool = True,
        dataset_name: str | None = None,
        uses_pretrained: bool = False,
        pretrained_with: str | None = None,
        lightweight: bool = False,
    ) -> View:
        """Publishes the files of the model's definition found in ``src_path`` and returns the version's record.

        ``src_path`` is a folder or a file; ``/tmp`` stands for the task's own temporary folder, `tmp_path()`.
        ``details`` is free-form; numpy values in it become what they mean in JSON. ``version_name`` defaults to the
        training's name, a used name gets its next revision. ``model_name`` defaults to the project's only model. The
        version is linked to the mounted dataset, if there is one, unless ``uses_dataset`` is false; ``dataset_name``
        says which of several. ``uses_pretrained`` links the mounted version it started from; ``pretrained_with`` names
        it, ``'model:version'``.

        Raises ResolutionError when it cannot be told what is meant, NhaDataError for details that JSON cannot hold, and
        what the mesh refuses: MISSING_FILE, FILE_TOO_LARGE, NOT_LIGHTWEIGHT, ….
        """
        model = model_name or sole_model("publishing")
        name = version_name or (self._train["name"] if self._train is not None else None)
        document = channel.ask(
            "publish",
            what="Publisher",
            path=_source(src_path),
            model=model,
            version=name,
            details_json=_details(details),
            dataset=_dataset(model, dataset_name) if uses_dataset else None,
            pretrained=_pretrained(pretrained_with) if uses_pretrained or pretrained_with else None,
            lightweight=bool(lightweight),
        )
        return View(document, "ModelVersion")


def _source(src_path: str | os.PathLike[str]) -> str:
    path = os.path.abspath(os.path.expanduser(os.fspath(src_path)))
    if path == "/tmp":
        path = os.path.abspath(tmp_path())
    return path


def _details(details: Mapping[str, Any] | None) -> str:
    if details is None:
        return "{}"
    if not isinstance(details, Mapping):
        raise NhaDataError(f"details must be a dict, not {type(details).__name__}")
    _refuse_nan(details, "details")
    try:
        return answers.encode(dict(details)).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NhaDataError(f"details cannot be written as JSON: {error}") from None


def _refuse_nan(value: Any, path: str) -> None:
    """Refuses what JSON has no value for: silently published as nothing, a metric would look as if it never was."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            _refuse_nan(one, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for place, one in enumerate(value):
            _refuse_nan(one, f"{path}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise NhaDataError(f"{path} is {value}, which JSON cannot hold; publish None or a text instead", path=path)
    elif not isinstance(value, str | int | bool | bytes | None) and hasattr(value, "tolist"):
        _refuse_nan(value.tolist(), path)


def _dataset(model: str, name: str | None) -> str | None:
    """Returns the full name of the dataset to link, None when none is mounted."""
    mounted = [one for one in surroundings.assets("ds") if one.get("model", {}).get("name") == model]
    if name is not None:
        bare, at, revision = name.partition("@")
        found = [one for one in mounted if one["name"] == bare and (not at or str(one["revision"]) == revision)]
        if len(found) == 1:
            return _full("datasets", found[0])
        return f"models/{model}/datasets/{name}"
    if len(mounted) > 1:
        options = [f"{one['name']}@{one['revision']}" for one in mounted]
        raise ResolutionError(
            f"Could not resolve dataset. Found {len(mounted)} options: {options}. Please specify dataset_name, or "
            "uses_dataset=False"
        )
    return _full("datasets", mounted[0]) if mounted else None


def _pretrained(reference: str | None) -> str:
    """Returns the full name of the version that this one started from."""
    mounted = [one for one in surroundings.assets("mv") if "name" in one]
    if reference is None:
        if len(mounted) == 1:
            return _full("versions", mounted[0])
        options = [one["_id"] for one in mounted]
        told = f"Found {len(options)} options: {options}" if options else "No options found"
        raise ResolutionError(
            f"Could not resolve the pre-trained model version. {told}. Please specify pretrained_with='model:version'"
        )
    model, colon, name = reference.partition(":")
    if not colon or not model or not name or ":" in name:
        raise ResolutionError(f"pretrained_with={reference!r} names no version; write it as 'model:version'")
    found = [one for one in mounted if one["model"]["name"] == model and one["name"] == name]
    if len(found) == 1:
        return _full("versions", found[0])
    return f"models/{model}/versions/{name}"


def _full(kind: str, asset: Mapping[str, Any]) -> str:
    return f"models/{asset['model']['name']}/{kind}/{asset['name']}@{asset['revision']}"
