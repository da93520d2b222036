"""Filters as people write them, with the field paths of Noronha 1.6, turned into the contract's.

The one table is ``FIELDS``. A path that is not in it is handed on as it is, so the contract's own paths work as well,
with ``details.…`` and ``params.…`` for what is inside. Names are written as people write them: ``name`` is the last id,
``_id`` all of them joined by ``:``.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from noronha.rpc.errors import InvalidArgument, NoronhaError

Test = dict[str, Any]

OPERATORS_ON_VALUES = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
OPERATORS_ON_LISTS = frozenset({"$in", "$nin", "$all"})


class Field(NamedTuple):
    """Where a field of 1.6 is now, and what its values are."""

    path: str
    value: str = ""
    """How values are rewritten: '' not at all, else the name of a rule in ``RULES`` or ``last:<pattern>``."""


def _state(value: Any) -> Any:
    words = {"waiting": "PENDING", "finished": "SUCCEEDED"}
    return words.get(value.lower(), value.upper()) if isinstance(value, str) else value


def _origin(value: Any) -> Any:
    return {"local": "LOCAL", "git": "GIT", "pre-built": "PRE_BUILT"}.get(value, value)


def _storage(value: Any) -> Any:
    return "STORAGE_CLASS_LIGHTWEIGHT" if value else {"$ne": "STORAGE_CLASS_LIGHTWEIGHT"}


def _full(kind: str) -> Callable[[Any], Any]:
    """Returns the rule that makes ``model:name`` a full name; what is not one is handed on."""

    def rule(value: Any) -> Any:
        from noronha.client.references import to_name

        if not isinstance(value, str) or "/" in value:
            return value
        try:
            return to_name(kind, value)
        except NoronhaError:
            return value

    return rule


RULES: dict[str, Callable[[Any], Any]] = {
    "state": _state,
    "origin": _origin,
    "storage": _storage,
    **{
        kind: _full(kind)
        for kind in ("project", "model", "build", "dataset", "model_version", "training", "deployment")
    },
}

_TASK = {
    "task.state": Field("status.state", "state"),
    "task.progress": Field("status.progress"),
    "task.start_time": Field("status.start_time"),
    "task.update_time": Field("status.update_time"),
    "task.end_time": Field("status.end_time"),
    "task.error": Field("status.error.message"),
    "task.reason": Field("status.reason"),
}
_STORED = {
    "_id": Field("name", "pk"),
    "name": Field("name", "last"),
    "model": Field("name", "first"),
    "model.name": Field("name", "first"),
    "lightweight": Field("storage_class", "storage"),
    "modified": Field("create_time"),
}

FIELDS: dict[str, dict[str, Field]] = {
    "model": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "desc": Field("description"),
        "model_files.desc": Field("model_files.description"),
        "data_files.desc": Field("data_files.description"),
        "created": Field("create_time"),
        "modified": Field("update_time"),
    },
    "project": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "desc": Field("description"),
        "model": Field("models", "model"),
        "models": Field("models", "model"),
        "git_repo": Field("git_repository"),
        "docker_repo": Field("docker_repository"),
        "created": Field("create_time"),
        "modified": Field("update_time"),
    },
    "build": {
        "_id": Field("name", "pk"),
        "tag": Field("name", "last"),
        "name": Field("name", "last"),
        "proj": Field("name", "first"),
        "proj.name": Field("name", "first"),
        "docker_id": Field("artifact.id"),
        "git_version": Field("source.git_commit"),
        "built_at": Field("build_time"),
        "built_from": Field("source.origin", "origin"),
        "modified": Field("update_time"),
        **_TASK,
    },
    "dataset": _STORED,
    "model_version": {
        **_STORED,
        # A version's training may be gone; what it was stays.
        "train": Field("training_snapshot.name", "training"),
        "train._id": Field("training_snapshot.name", "training"),
        "train.name": Field("training_snapshot.name", "tail"),
        "ds": Field("dataset", "starts:dataset"),
        "ds._id": Field("dataset", "starts:dataset"),
        "ds.name": Field("dataset", "tail@"),
        "pretrained": Field("pretrained", "starts:model_version"),
        "pretrained.name": Field("pretrained", "tail@"),
    },
    "training": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "proj": Field("name", "first"),
        "proj.name": Field("name", "first"),
        "bvers": Field("build", "starts:build"),
        "bvers.tag": Field("build", "tail@"),
        "bvers.git_version": Field("build_snapshot.source.git_commit"),
        "bvers.docker_id": Field("build_snapshot.artifact.id"),
        "ds": Field("datasets", "starts:dataset"),
        "ds.name": Field("datasets", "tail@"),
        "mover": Field("published", "starts:model_version"),
        "movers": Field("published", "starts:model_version"),
        "deploy_update": Field("target_deployment_updated"),
        "created": Field("create_time"),
        "modified": Field("update_time"),
        **_TASK,
    },
    "deployment": {
        "_id": Field("name", "pk"),
        "name": Field("name", "last"),
        "proj": Field("name", "first"),
        "proj.name": Field("name", "first"),
        "bvers": Field("spec.build", "starts:build"),
        "bvers.tag": Field("spec.build", "tail@"),
        "bvers.git_version": Field("spec.build_snapshot.source.git_commit"),
        "bvers.docker_id": Field("spec.build_snapshot.artifact.id"),
        "movers": Field("spec.model_versions", "starts:model_version"),
        "movers.name": Field("spec.model_versions", "tail@"),
        "notebook": Field("spec.notebook"),
        "host_port": Field("port"),
        "state": Field("status.state", "state"),
        "availability": Field("status.availability"),
        "created": Field("create_time"),
        "modified": Field("update_time"),
    },
}
"""Kind of record to the fields of 1.6 and where they are now."""

PREFIXES = {
    "model_version": {
        "train.details.params": "training_snapshot.params",
        "train.details": "training_snapshot.details",
        "train.notebook": "training_snapshot.notebook",
        "ds.details": "dataset_snapshot.details",
        "pretrained.details": "pretrained_snapshot.details",
    },
    "training": {"details.params": "params"},
    "deployment": {"details.params": "spec.params", "movers.details": "spec.model_version_snapshots.details"},
}
"""Whole branches of 1.6 that lie elsewhere now; of two that fit, the first counts."""

SHAPES = {
    "model": "models/{}",
    "project": "projects/{}",
    "build": "projects/{}/builds/{}",
    "dataset": "models/{}/datasets/{}",
    "model_version": "models/{}/versions/{}",
    "training": "projects/{}/trainings/{}",
    "deployment": "projects/{}/deployments/{}",
}


def combine(kind: str, query: str | None, also: dict[str, Any] | None = None) -> str:
    """Returns the contract's filter for the user's, with further conditions in the contract's own fields."""
    parts = []
    if query:
        parts.append(rewrite(kind, json.loads(query)))
    if also:
        parts.append(also)
    return json.dumps(parts[0] if len(parts) == 1 else {"$and": parts})


def with_hint(kind: str, error: InvalidArgument) -> InvalidArgument:
    """Returns the mesh's error for a path that leads nowhere, with the nearest of 1.6's fields where there is one."""
    path = error.metadata.get("field", "")
    near = difflib.get_close_matches(path, FIELDS[kind], n=1, cutoff=0.7) if path else []
    if error.reason != "BAD_FILTER" or not near:
        return error
    return InvalidArgument(
        f"filter has the field {path!r}, which is not there; did you mean {near[0]!r}?",
        reason=error.reason,
        violations=error.violations,
        **error.metadata,
    )


def rewrite(kind: str, query: dict[str, Any]) -> dict[str, Any]:
    """Returns a query with its fields rewritten by the table. Raises InvalidArgument ``BAD_FILTER``."""
    found: list[Test] = []
    for key, value in query.items():
        if key in ("$and", "$or", "$nor"):
            if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
                raise InvalidArgument(f"{key} takes a list of objects", reason="BAD_FILTER")
            found.append({key: [rewrite(kind, each) for each in value]})
        else:
            found.append(_field(kind, key, value))
    if len(found) == 1:
        return found[0]
    keys = [key for each in found for key in each]
    if len(set(keys)) == len(keys):
        return {key: value for each in found for key, value in each.items()}
    return {"$and": found}


def _field(kind: str, path: str, value: Any) -> Test:
    field = FIELDS[kind].get(path)
    if field is None:
        for prefix, place in PREFIXES.get(kind, {}).items():
            if path == prefix or path.startswith(prefix + "."):
                return {place + path[len(prefix) :]: value}
        return {path: value}
    if not field.value:
        return {field.path: value}
    if field.value in RULES:
        return {field.path: _each(value, RULES[field.value])}
    return _by_name(kind, field, value)


def _each(value: Any, rule: Callable[[Any], Any]) -> Any:
    """Applies a rule to the values inside a test."""
    if isinstance(value, dict):
        return {
            operator: [rule(each) for each in inner]
            if operator in OPERATORS_ON_LISTS and isinstance(inner, list)
            else _each(inner, rule)
            if operator in ("$not", "$elemMatch")
            else rule(inner)
            if operator in OPERATORS_ON_VALUES
            else inner
            for operator, inner in value.items()
        }
    if isinstance(value, list):
        return [rule(each) for each in value]
    return rule(value)


def _by_name(kind: str, field: Field, value: Any) -> Test:
    """Rewrites a test on a part of a name: as an equality where the whole name is known, else as a pattern."""
    if not isinstance(value, dict):
        return _name_is(kind, field, value)
    tests: list[Test] = []
    for operator, inner in value.items():
        if operator == "$eq":
            tests.append(_name_is(kind, field, inner))
        elif operator == "$ne":
            tests.append({"$nor": [_name_is(kind, field, inner)]})
        elif operator in ("$in", "$nin") and isinstance(inner, list) and inner:
            tests.append({"$or" if operator == "$in" else "$nor": [_name_is(kind, field, each) for each in inner]})
        elif operator == "$all" and isinstance(inner, list) and inner:
            tests.append({"$and": [_name_is(kind, field, each) for each in inner]})
        elif operator == "$regex" and isinstance(inner, str):
            tests.append({field.path: {"$regex": _pattern(kind, field, inner)}})
        elif operator in ("$exists", "$size"):
            tests.append({field.path: {operator: inner}})
        else:
            raise InvalidArgument(
                f"{operator} cannot be used on names; use $eq, $ne, $in, $nin or $regex", reason="BAD_FILTER"
            )
    return tests[0] if len(tests) == 1 else {"$and": tests}


def _name_is(kind: str, field: Field, value: Any) -> Test:
    if not isinstance(value, str) or "/" in value:
        return {field.path: value}
    text = re.escape(value)
    shape = SHAPES[kind]
    rule, _, of = field.value.partition(":")
    if rule == "pk":
        parts = value.split(":")
        wanted = shape.count("{}")
        return {field.path: shape.format(*parts) if len(parts) == wanted else value}
    if rule == "last" and shape.count("{}") == 1:
        return {field.path: shape.format(value)}
    if rule == "last":
        return {field.path: {"$regex": f"/{text}$"}}
    if rule == "first":
        return {field.path: {"$regex": f"^{shape.split('/')[0]}/{text}/"}}
    if rule == "tail":
        return {field.path: {"$regex": f"/{text}$"}}
    if rule == "tail@":
        return {field.path: {"$regex": f"/{text}@[0-9]+$"}}
    full = RULES[of](value)  # starts:<kind>, a name that is stored with its revision
    if full == value or "@" in value:
        return {field.path: full}
    return {field.path: {"$regex": f"^{re.escape(full)}@[0-9]+$"}}


def _pattern(kind: str, field: Field, pattern: str) -> str:
    """Returns a pattern on the whole name for one on a part of it."""
    shape = SHAPES[kind]
    if field.value == "last" and pattern.startswith("^"):
        return (f"^{shape.split('/')[0]}/" if shape.count("{}") == 1 else f"/{shape.split('/')[2]}/") + pattern[1:]
    if field.value == "last" and not pattern.endswith("$"):
        return f"/[^/]*(?:{pattern})[^/]*$"
    if field.value == "last":
        return f"/[^/]*{pattern}"
    raise InvalidArgument("$regex can be used on name only, not on other references", reason="BAD_FILTER")
