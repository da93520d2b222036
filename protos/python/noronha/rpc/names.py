"""Resource names: the one place where they are checked, taken apart and put together.

Ids match ``[A-Za-z0-9]+([-.][A-Za-z0-9]+)*`` in full and have at most 64 characters. Build tags follow Docker's
grammar. Patterns of names are in ``PATTERNS``; ``-`` stands for any id in a parent or a watch.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

from noronha.rpc.errors import InvalidArgument

MAX_ID = 64
_ID = re.compile(r"[A-Za-z0-9]+(?:[-.][A-Za-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_REVISION = re.compile(r"[1-9][0-9]{0,17}")

PATTERNS: dict[str, str] = {
    "project": "projects/{project}",
    "build": "projects/{project}/builds/{build}",
    "training": "projects/{project}/trainings/{training}",
    "deployment": "projects/{project}/deployments/{deployment}",
    "deployment_revision": "projects/{project}/deployments/{deployment}/revisions/{revision}",
    "replica": "projects/{project}/deployments/{deployment}/replicas/{replica}",
    "traffic": "projects/{project}/deployments/{deployment}/traffic",
    "notebook": "projects/{project}/notebooks/{notebook}",
    "model": "models/{model}",
    "model_version": "models/{model}/versions/{version}",
    "dataset": "models/{model}/datasets/{dataset}",
    "alias": "models/{model}/aliases/{alias}",
    "chest": "chests/{chest}",
    "island": "islands/{island}",
}
"""Kind of resource (a field name of ``Resource``) to the pattern of its name."""

REVISIONED = frozenset({"build", "model_version", "dataset"})
"""Kinds whose names may end in ``@{revision}``."""


class Name(NamedTuple):
    """A name taken apart: its kind, its ids from the outside in, and its revision (None when bare)."""

    kind: str
    ids: tuple[str, ...]
    revision: int | None = None

    def __str__(self) -> str:
        return join(self.kind, *self.ids, revision=self.revision)

    @property
    def bare(self) -> str:
        """The name without its revision."""
        return join(self.kind, *self.ids)


_SHAPES: dict[tuple[str, ...], str] = {}
for _kind, _pattern in PATTERNS.items():
    _SHAPES[tuple("{" if part.startswith("{") else part for part in _pattern.split("/"))] = _kind


def bad_name(value: str, field: str, why: str) -> InvalidArgument:
    """Returns the error for a name or id that breaks the grammar."""
    shown = value if len(value) <= 80 else value[:77] + "..."
    return InvalidArgument(
        f"{field} {shown!r} {why}", reason="BAD_NAME", violations=[(field, why)], field=field, value=shown
    )


def check_id(value: str, field: str = "name") -> str:
    """Returns the id. Raises InvalidArgument ``BAD_NAME`` when it breaks the grammar of ids."""
    if len(value) > MAX_ID:
        raise bad_name(value, field, f"has {len(value)} characters; at most {MAX_ID} are allowed")
    if not _ID.fullmatch(value):
        raise bad_name(
            value, field, "must be letters and digits (A-Z, a-z, 0-9), joined by single '-' or '.', as in iris-clf.v1"
        )
    return value


def check_tag(value: str, field: str = "tag") -> str:
    """Returns the build tag. Raises InvalidArgument ``BAD_NAME`` when it breaks Docker's grammar of tags."""
    if not _TAG.fullmatch(value):
        raise bad_name(
            value, field, "must be 1 to 128 letters, digits, '_', '.' and '-', and begin with none of '.' and '-'"
        )
    return value


def _check_part(kind: str, last: bool, value: str, field: str) -> None:
    if last and kind == "build":
        check_tag(value, field)
    elif last and kind == "deployment_revision":
        if not _REVISION.fullmatch(value):
            raise bad_name(value, field, "must be a revision number from 1")
    else:
        check_id(value, field)


def join(kind: str, *ids: str, revision: int | None = None) -> str:
    """Returns the name of a kind with these ids; no id is checked."""
    remaining = list(ids)
    parts = [remaining.pop(0) if part.startswith("{") else part for part in PATTERNS[kind].split("/")]
    if remaining:
        raise InvalidArgument(f"a {kind} takes {len(ids) - len(remaining)} ids, not {len(ids)}", reason="BAD_NAME")
    name = "/".join(parts)
    return f"{name}@{revision}" if revision is not None else name


def parse(name: str, *kinds: str, field: str = "name", wildcard: bool = False) -> Name:
    """Takes a full name apart and checks every part.

    ``kinds`` restricts what is taken; none means any. ``wildcard`` lets ``-`` stand for an id. Raises InvalidArgument
    ``BAD_NAME``.
    """
    body, at, revision_text = name.partition("@")
    parts = body.split("/")
    kind = next(
        (
            kind
            for shape, kind in _SHAPES.items()
            if len(shape) == len(parts) and all(want in ("{", got) for want, got in zip(shape, parts, strict=True))
        ),
        None,
    )
    if kind is None or (kinds and kind not in kinds):
        wanted = " or ".join(PATTERNS[each] for each in kinds) if kinds else "a full name such as projects/iris"
        raise bad_name(name, field, f"is not {wanted}")
    ids = tuple(part for part, shape in zip(parts, PATTERNS[kind].split("/"), strict=True) if shape.startswith("{"))
    for index, each in enumerate(ids):
        if not (wildcard and each == "-"):
            _check_part(kind, index == len(ids) - 1, each, field)
    revision: int | None = None
    if at:
        if kind not in REVISIONED or not _REVISION.fullmatch(revision_text):
            raise bad_name(name, field, "has no revision like that; write name@1")
        revision = int(revision_text)
    return Name(kind, ids, revision)


def parent_of(name: Name) -> str:
    """Returns the full name of what a resource lies in, '' at the top."""
    parts = name.bare.split("/")
    cut = 1 if name.kind == "traffic" else 2
    return "/".join(parts[:-cut])


def for_platform(*parts: str, limit: int = 63) -> str:
    """Encodes names into one label that container managers hold: ``a-z``, ``0-9`` and ``-``, at most ``limit`` long.

    Injective for all practical purposes: it ends in a digest (64 bits of SHA-256) of all parts as they were, so neither
    letter case, dots nor the places where parts are joined can make two names meet.
    """
    readable = "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") or "x" for part in parts)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"{readable[: limit - 17].strip('-') or 'x'}-{digest}"
