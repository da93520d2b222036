"""Filters as SQL over the JSON documents in SQLite.

The SQL need not take exactly what a filter takes: it may take more, and whoever uses it looks at each document once
more. So only what SQLite surely judges as we do is compiled, and everything else counts as taken. ``_may`` gives a
condition that is true of every document the node takes, ``_must`` one that is true only of such; a negation turns
one into the other.
"""

from __future__ import annotations

import re
from typing import Any

from noronha.metadata.filters import (
    And,
    Element,
    Equal,
    Exists,
    In,
    Matches,
    Node,
    Not,
    Or,
    Order,
    Path,
    Size,
)

_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EXACT = 2**53
_MOST_VALUES = 100

Sql = tuple[str, list[Any]]

_ANY: Sql = ("1", [])
_NONE: Sql = ("0", [])


def compile(node: Node) -> Sql:
    """Returns a condition on the column ``document``, and its parameters, that is true of all that the filter takes."""
    return _may(node)


def _joined(word: str, parts: list[Sql], empty: Sql) -> Sql:
    if not parts:
        return empty
    return f"({f' {word} '.join(sql for sql, _ in parts)})", [value for _, values in parts for value in values]


def _may(node: Node) -> Sql:
    if isinstance(node, And):
        parts = [part for part in map(_may, node.nodes) if part != _ANY]
        return _joined("AND", parts, _ANY)
    if isinstance(node, Or):
        parts = [_may(each) for each in node.nodes]
        return _ANY if _ANY in parts else _joined("OR", parts, _NONE)
    if isinstance(node, Not):
        sql, values = _must(node.node)
        return _ANY if sql == "0" else (f"NOT {sql}", values)
    if not _addressable(node.path):
        return _ANY
    return _by_type(node.path, _branches(node), missing=_takes_missing(node))


def _must(node: Node) -> Sql:
    if isinstance(node, And):
        parts = [_must(each) for each in node.nodes]
        return _NONE if _NONE in parts else _joined("AND", parts, _ANY)
    if isinstance(node, Or):
        parts = [part for part in map(_must, node.nodes) if part != _NONE]
        return _joined("OR", parts, _NONE)
    if isinstance(node, Not):
        sql, values = _may(node.node)
        return _NONE if sql == "1" else (f"NOT {sql}", values)
    if not _addressable(node.path):
        return _NONE
    path = _json_path(node.path)
    if isinstance(node, Exists):
        return "(json_type(document, ?) IS NOT NULL)", [path]
    if isinstance(node, (Equal, In)):
        wanted = node.values if isinstance(node, In) else (node.value,)
        texts = [value for value in wanted if _is_plain_text(value)][:_MOST_VALUES]
        if texts:
            # SQLite reads a text only up to its first NUL, so one that holds any proves nothing.
            return (
                "(json_type(document, ?) IS 'text' AND instr(document, '\\u0000') = 0"
                f" AND json_extract(document, ?) IN ({', '.join('?' * len(texts))}))",
                [path, path, *texts],
            )
    return _NONE


def _addressable(path: Path) -> bool:
    return bool(path) and all(_PLAIN.fullmatch(part) for part in path)


def _json_path(path: Path) -> str:
    return "$" + "".join(f'."{part}"' for part in path)


def _is_plain_text(value: Any) -> bool:
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _takes_missing(node: Node) -> bool:
    if isinstance(node, Equal):
        return node.value is None
    return isinstance(node, In) and any(value is None for value in node.values)


def _by_type(path: Path, branches: dict[str, Sql], *, missing: bool) -> Sql:
    """Returns a condition that judges by the type of what the path leads to.

    Where it leads nowhere, an array on the way may still lead somewhere: SQLite does not go into those.
    """
    full = _json_path(path)
    values: list[Any] = [full]
    cases = ""
    for kind, (sql, more) in branches.items():
        cases += f" WHEN '{kind}' THEN {sql.replace('VALUE', 'json_extract(document, ?)')}"
        for each in more:
            values.append(full if each is _VALUE else each)
    if missing:
        nowhere: Sql = ("1", [])
    else:
        before = [_json_path(path[:length]) for length in range(1, len(path))]
        nowhere = _joined("OR", [("json_type(document, ?) IS 'array'", [each]) for each in before], _NONE)
    sql, more = nowhere
    values += [full, *more]
    return f"(CASE json_type(document, ?){cases} ELSE (json_type(document, ?) IS NULL AND {sql}) END)", values


_VALUE = object()
"""Stands among the parameters for the path itself, where the SQL says VALUE."""


def _branches(node: Node) -> dict[str, Sql]:
    """Returns, for each JSON type that may be taken, the condition under which it is."""
    if isinstance(node, Exists):
        return dict.fromkeys(("null", "true", "false", "integer", "real", "text", "array", "object"), _ANY)
    branches: dict[str, Sql] = {"array": _ANY}
    if isinstance(node, Size):
        return {"array": ("json_array_length(VALUE) = ?", [_VALUE, node.size])} if node.size < _EXACT else branches
    if isinstance(node, Matches):
        branches["text"] = _ANY
    elif isinstance(node, Order):
        branches |= _order_branches(node)
    elif isinstance(node, Equal):
        branches |= _equal_branches([node.value])
    elif isinstance(node, In):
        branches |= _equal_branches(list(node.values))
    else:
        assert isinstance(node, Element)
    return branches


def _margin(value: float) -> float:
    """Returns how far SQLite may read a number from where Python reads it."""
    return max(abs(value) * 1e-9, 1e-290)


def _order_branches(node: Order) -> dict[str, Sql]:
    upward = node.operator in ("$gt", "$gte")
    if isinstance(node.value, str):
        if not _is_plain_text(node.value):
            return {"text": _ANY}
        return {"text": (f"VALUE {'>=' if upward else '<='} ?", [_VALUE, node.value])}
    if abs(node.value) > _EXACT:
        return {"integer": _ANY, "real": _ANY}
    value = float(node.value)
    limit = value - _margin(value) if upward else value + _margin(value)
    number: Sql = (f"VALUE {'>=' if upward else '<='} ?", [_VALUE, limit])
    return {"integer": number, "real": number}


def _equal_branches(values: list[Any]) -> dict[str, Sql]:
    branches: dict[str, Sql] = {}
    texts: list[str] = []
    numbers: list[Sql] = []
    any_text = any_number = len(values) > _MOST_VALUES
    for value in values:
        if value is None:
            branches["null"] = _ANY
        elif isinstance(value, bool):
            branches["true" if value else "false"] = _ANY
        elif isinstance(value, dict):
            branches["object"] = _ANY
        elif isinstance(value, str):
            # A text with NUL is kept whole and read up to it, so nothing can be said of it.
            any_text = any_text or not _is_plain_text(value)
            texts.append(value)
        elif isinstance(value, (int, float)):
            any_number = any_number or abs(value) > _EXACT
            if not any_number:
                low, high = float(value) - _margin(value), float(value) + _margin(value)
                numbers.append(("VALUE BETWEEN ? AND ?", [_VALUE, low, high]))
    if any_text and texts:
        branches["text"] = _ANY
    elif texts:
        branches["text"] = (f"VALUE IN ({', '.join('?' * len(texts))})", [_VALUE, *texts])
    if any_number:
        branches["integer"] = branches["real"] = _ANY
    elif numbers:
        branches["integer"] = branches["real"] = _joined("OR", numbers, _NONE)
    return branches
