"""Parameters of a notebook: from JSON text to one cell of Python, without loss.

A parameter reaches the notebook as the Python value its JSON text means: integers keep all their digits,
``1.0`` stays a float, strings arrive byte for byte. The cell holds plain assignments of literals, so whoever
opens the executed notebook reads what the cells worked with.
"""

from __future__ import annotations

import keyword
from typing import Any

from noronha.rpc import json_text
from noronha.tools.failures import NotebookFailure

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
        params = json_text.parse(params_json)
    except json_text.Refused as error:
        raise _invalid(f"their text {error}") from None
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


def _invalid(why: str) -> NotebookFailure:
    return NotebookFailure("PARAMETERS_INVALID", f"The parameters of the notebook cannot be used: {why}.")
