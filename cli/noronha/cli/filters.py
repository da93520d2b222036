"""Filters as people write them, with the fields that the command shows and those of Noronha 1.6, turned into the
contract's.

The fields are in the table of ``filter_fields``. A path that is not in it is handed on as it is, so the contract's own
paths work as well, with ``details.…`` and ``params.…`` for what is inside.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from noronha.cli.filter_fields import FIELDS, PREFIXES, SHAPES, Field
from noronha.rpc.errors import InvalidArgument, NoronhaError

Test = dict[str, Any]

OPERATORS_ON_VALUES = frozenset({"$eq", "$ne", "$gt", "$gte", "$lt", "$lte"})
OPERATORS_ON_LISTS = frozenset({"$in", "$nin", "$all"})


def _state(value: Any) -> Any:
    words = {"waiting": "PENDING", "finished": "SUCCEEDED"}
    return words.get(value.lower(), value.upper()) if isinstance(value, str) else value


def _origin(value: Any) -> Any:
    return {"local": "LOCAL", "git": "GIT", "pre-built": "PRE_BUILT"}.get(value, value)


def _storage(value: Any) -> Any:
    return "STORAGE_CLASS_LIGHTWEIGHT" if value else {"$ne": "STORAGE_CLASS_LIGHTWEIGHT"}


_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(Z|[+-]\d\d:\d\d)?)?")


def _time(value: Any) -> Any:
    """Returns a time as the mesh sorts it: in UTC, with microseconds. One without a zone is this machine's, as shown.

    Raises InvalidArgument ``BAD_FILTER`` for a text that is no time.
    """
    if not isinstance(value, str):
        return value
    found = _TIME.fullmatch(value)
    try:
        if found is None:
            raise ValueError(value)
        day, clock, fraction, zone = found.groups()
        zone = "+00:00" if zone == "Z" else zone or ""
        time = datetime.fromisoformat(f"{day}T{clock or '00:00:00'}.{fraction or '':0<6}{zone}")
        return f"{time.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    except (ValueError, OverflowError):
        why = f"compares with {value[:64]!r}, which is no time; write it as in 2026-11-23T07:17:00Z"
        raise InvalidArgument(f"filter {why}", reason="BAD_FILTER", violations=[("filter", why)]) from None


def _whole_second(value: Any) -> Any:
    """Returns the test for a time as the command prints it, without a fraction: some moment of that second."""
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] is None or found[3] is not None:
        return _time(value)
    begin = _time(value)
    return {"$gte": begin, "$lte": f"{begin[:-len('000000Z')]}999999Z"}


def _percent(value: Any) -> Any:
    """Returns a number from 0 to 1 for a share as it is shown, in whole hundredths."""
    found = re.fullmatch(r"(\d{1,3})%", value) if isinstance(value, str) else None
    return int(found[1]) / 100 if found else value


def _share(value: Any) -> Any:
    """Returns the test for a share as it is shown: whatever is rounded to it."""
    share = _percent(value)
    return value if share is value else {"$gte": share - 0.005, "$lte": share + 0.005}


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
    "time": _time,
    "share": _percent,
    **{
        kind: _full(kind)
        for kind in ("project", "model", "build", "dataset", "model_version", "training", "deployment")
    },
}

ROUNDED: dict[str, Callable[[Any], Any]] = {"time": _whole_second, "share": _share}
"""Rules for plain values of what is shown with less than is kept: they become a range."""

ON_WHOLES = frozenset({"$exists", "$size", "$elemMatch"})
"""Operators that compare with no value."""


def combine(kind: str, query: str | None, also: dict[str, Any] | None = None) -> str:
    """Returns the contract's filter for the user's, with further conditions in the contract's own fields."""
    parts = []
    if query:
        parts.append(rewrite(kind, json.loads(query)))
    if also:
        parts.append(also)
    return json.dumps(parts[0] if len(parts) == 1 else {"$and": parts})


def with_hint(kind: str, error: InvalidArgument) -> InvalidArgument:
    """Returns the mesh's error in the words of the command: for a path that leads nowhere with the nearest field that
    people know, for a word that an enumeration does not have with those that are shown."""
    path = error.metadata.get("field", "")
    near = _near(kind, path)
    known = error.metadata.get("values", "")
    if error.reason != "BAD_FILTER" or not (known or near):
        return error
    if known:
        line = error.message.replace(known, ", ".join(_shown(kind, each) for each in known.split(", ")))
    else:
        line = f"filter has the field {path!r}, which is not there; did you mean {near[0]!r}?"
    return InvalidArgument(
        line,
        reason=error.reason,
        violations=error.violations,
        **error.metadata,
    )


def _near(kind: str, path: str) -> list[str]:
    """Returns the field that people know which a path most likely means, if there is one."""
    last = path.rpartition(".")[2]
    # What the command shows under another field; ``status`` is 1.6's word for ``task``.
    elsewhere = [name for name in FIELDS[kind] if name.endswith(f".{last}") and not name.startswith("status.")]
    if not path or elsewhere:
        return elsewhere[:1] if path else []
    # A field inside is no misspelling of what it is in.
    alike = [name for name in FIELDS[kind] if name.count(".") == path.count(".")]
    return difflib.get_close_matches(path, alike, n=1, cutoff=0.7)


def _shown(kind: str, value: str) -> str:
    """Returns the word that the command shows for a value of an enumeration."""
    from noronha.client.words import ORIGINS, STATES

    return {**STATES, **ORIGINS}.get(value, value) if kind in ("build", "training") else value


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
    rule, _, inside = field.value.partition(":")
    if rule == "whole":
        if isinstance(value, dict) and value and value.keys() <= ON_WHOLES:
            return {field.path: value}
        why = f"compares {path!r}, which cannot be filtered as a whole: the command puts it together"
        raise InvalidArgument(
            f"filter {why}; filter a field in it, such as {inside!r}",
            reason="BAD_FILTER", violations=[("filter", why)], field=path,
        )  # fmt: skip
    if field.value in ROUNDED and not isinstance(value, dict | list):
        return {field.path: ROUNDED[field.value](value)}
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
    rule, _, of = field.value.partition(":")
    if isinstance(value, list) and rule == "starts":
        return {field.path: [RULES[of](each) for each in value]}
    if not isinstance(value, str) or "/" in value:
        return {field.path: value}
    text = re.escape(value)
    shape = SHAPES[kind]
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
