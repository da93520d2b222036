"""What a prediction becomes on the wire: JSON that says what the function returned, nothing dropped, nothing bent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def encode(value: Any) -> bytes:
    """Writes a value as JSON.

    Beyond JSON's own types it takes numpy scalars and arrays, pandas objects, sets, tuples, generators, dates and bytes
    of UTF-8. NaN and infinities, for which JSON has no value, become null. Raises TypeError for anything else.
    """
    try:
        return json.dumps(value, default=plain, allow_nan=False, separators=(", ", ": ")).encode()
    except (TypeError, ValueError):
        # Keys that are no strings, NaN, or something that cannot be written: take it apart, slowly.
        return json.dumps(_apart(value, 0), allow_nan=False).encode()


def plain(value: Any) -> Any:
    """Returns a value of JSON's own types for one that is not, one level deep. Raises TypeError when there is none."""
    for method in ("tolist", "item"):  # numpy arrays and scalars, pandas series and indexes, torch tensors
        convert = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            converted = convert()
            if converted is not value:
                return converted
    convert = getattr(value, "to_dict", None)
    if callable(convert) and not isinstance(value, type):
        try:
            return convert(orient="records")  # a pandas frame: one object a row
        except TypeError:
            return convert()
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8")
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "_asdict"):
        return value._asdict()
    if hasattr(value, "as_tuple") and hasattr(value, "quantize"):  # a Decimal, without importing decimal for it
        return float(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if hasattr(value, "__next__") or isinstance(value, range):
        return list(value)
    raise TypeError(f"a result of type {type(value).__module__}.{type(value).__qualname__} cannot be written as JSON")


def _apart(value: Any, depth: int) -> Any:
    if depth > 200:
        raise TypeError("a result that is nested deeper than 200 levels, or contains itself, cannot be written as JSON")
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _apart(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_apart(one, depth + 1) for one in value]
    return _apart(plain(value), depth + 1)


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str(key)
    if key is None or isinstance(key, bool | int | float):
        return str(json.dumps(key))
    item = getattr(key, "item", None)
    return _key(item()) if callable(item) else str(key)
