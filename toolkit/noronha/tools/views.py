"""What notebooks see of records: read-only, with the attributes they have always had."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


class View:
    """A record, read-only: ``view.name``, ``view.model.name``, ``view.details['metrics']``.

    A field that the record does not have is None, as unset fields have always been. ``details`` and ``params`` are
    plain dicts, copies that may be changed freely.
    """

    __slots__ = ("_content", "_kind")

    def __init__(self, content: Mapping[str, Any], kind: str = "Record"):
        object.__setattr__(self, "_content", dict(content))
        object.__setattr__(self, "_kind", kind)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._content.get(name)
        if name == "details" or (name == "params" and value is not None):
            return json.loads(json.dumps(value or {}))
        return _wrapped(value, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{self._kind} is read-only; publish a new version to change what is recorded")

    __delattr__ = __setattr__  # type: ignore[assignment]

    def __getitem__(self, name: str) -> Any:
        if name not in self._content:
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __contains__(self, name: object) -> bool:
        return name in self._content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and other._content == self._content

    def __hash__(self) -> int:
        return hash((self._kind, self._content.get("_id"), self._content.get("revision")))

    def __reduce__(self) -> Any:
        return View, (self._content, self._kind)

    def __dir__(self) -> list[str]:
        return sorted({*self._content, "as_dict", "pk", "show"})

    @property
    def pk(self) -> str:
        """The key people write, such as ``iris-clf:experiment-v1``."""
        return str(self._content.get("_id") or self._content.get("name") or "")

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain dicts and lists."""
        copied: dict[str, Any] = json.loads(json.dumps(self._content))
        return copied

    def show(self) -> str:
        """Returns ``<key>:<when it was made>``."""
        made = self._content.get("modified")
        return f"{self.pk}:{made}" if made else self.pk

    def __str__(self) -> str:
        return self.pk

    def __repr__(self) -> str:
        return f"<{self._kind}: {self.show()}>"


_KINDS = {"model": "Model", "train": "Training", "ds": "Dataset", "pretrained": "ModelVersion", "proj": "Project",
          "bvers": "BuildVersion", "task": "Task"}  # fmt: skip


def _wrapped(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return View(value, _KINDS.get(name, "Record"))
    if isinstance(value, list):
        return [_wrapped(one, name) for one in value]
    return value
