"""Parameters of a notebook: from JSON text to one cell of Python, without loss.

A parameter reaches the notebook as the Python value its JSON text means: integers keep all their digits,
``1.0`` stays a float, strings arrive byte for byte. The cell holds plain assignments of literals, so whoever
opens the executed notebook reads what the cells worked with.
"""

from __future__ import annotations

import json
import keyword
import math
from typing import Any

from noronha.tools.failures import NotebookFailure

MAX_DEPTH = 64
"""Levels of nesting accepted; Python's own parser gives up at around a hundred."""

TAG = "parameters"
INJECTED_TAG = "injected-parameters"


def parse(params_json: str) -> dict[str, Any]:
    """Reads the JSON object of a task's parameters; empty text means none.

    Raises NotebookFailure ``PARAMETERS_INVALID`` when the text is not one JSON object, names a parameter twice,
    holds a number that JSON has no value for, or names a parameter that cannot be a Python variable.
    """
    if not params_json.strip():
        return {}
    try:
        params = json.loads(params_json, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise _invalid(f"they are nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise _invalid(str(error)) from None
    if not isinstance(params, dict):
        raise _invalid('they must be one JSON object, as in {"gamma": 0.1}')
    if _depth(params) > MAX_DEPTH:
        raise _invalid(f"they are nested deeper than {MAX_DEPTH} levels")
    for name in params:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise _invalid(f"{name!r} cannot be the name of a Python variable")
    return params


def source(params: dict[str, Any]) -> str:
    """Writes the parameters as Python assignments, one a line."""
    lines = [f"{name} = {value!r}" for name, value in params.items()]
    return "\n".join(["# Parameters", *lines])


def inject(notebook: Any, params: dict[str, Any]) -> bool:
    """Puts a cell with the parameters after each one tagged ``parameters``, or at the top if there is none.

    After each, because a second cell of defaults must not take back what was asked for. Cells injected by an earlier
    run are replaced. Returns whether a tagged cell was there.
    """
    tagged = False
    cells: list[Any] = []
    for cell in notebook.cells:
        if is_injected(cell):
            continue
        cells.append(cell)
        if TAG in _tags(cell):
            tagged = True
            cells.append(_injected(notebook, params))
    notebook.cells = cells if tagged else [_injected(notebook, params), *cells]
    return tagged


def is_injected(cell: Any) -> bool:
    """Says whether a cell was put into the notebook to hold its parameters, so that its author never saw it."""
    return INJECTED_TAG in _tags(cell)


def _injected(notebook: Any, params: dict[str, Any]) -> Any:
    from nbformat.v4 import new_code_cell

    cell = new_code_cell(source=source(params))
    cell.metadata["tags"] = [INJECTED_TAG]
    if "id" in cell and (notebook.get("nbformat", 4), notebook.get("nbformat_minor", 0)) < (4, 5):
        del cell["id"]  # ids of cells came with format 4.5; older files must not have them
    return cell


def _tags(cell: Any) -> list[str]:
    tags = cell.get("metadata", {}).get("tags", [])
    return tags if isinstance(tags, list) else []


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is larger than a float can be")
    return value


def _depth(value: Any) -> int:
    deepest, level, layer = 0, 0, [value]
    while layer:
        level += 1
        inner: list[Any] = []
        for one in layer:
            if isinstance(one, dict):
                inner.extend(one.values())
                deepest = level
            elif isinstance(one, list):
                inner.extend(one)
                deepest = level
        layer = inner
    return deepest


def _invalid(why: str) -> NotebookFailure:
    return NotebookFailure("PARAMETERS_INVALID", f"The parameters of the notebook cannot be used: {why}.")
