"""JSON that users send as text: details, parameters, metrics. Read strictly, kept as written."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from noronha.rpc.errors import InvalidArgument

MAX_BYTES = 1 << 20
"""Most bytes of UTF-8 in one object: 1 MiB."""

MAX_LEVELS = 64
"""Most levels of objects and arrays inside one another, the outermost included."""


class Refused(ValueError):
    """What is wrong with a text, in words that go on after its name."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise Refused(f"holds the key {key[:64]!r} twice")
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise Refused(f"holds {text}, which is not JSON")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise Refused(f"holds the number {text[:40]}, which is too large")
    return number


_READER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant, parse_float=_float)


def _too_deep(value: Any, limit: int) -> bool:
    layer = [value]
    for _ in range(limit):
        layer = [
            inner
            for outer in layer
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not layer:
            return False
    return True


def parse(text: str, *, max_bytes: int = MAX_BYTES, max_levels: int = MAX_LEVELS) -> dict[str, Any]:
    """Returns the object that ``text`` holds.

    Integers keep their value whatever their size, and ``1.0`` stays a float. Raises Refused for what is not one JSON
    object of at most ``max_bytes`` and ``max_levels``, for a key that comes twice in one object, for NaN and Infinity,
    for numbers past the range of a double, and for halves of surrogate pairs, which UTF-8 cannot carry.
    """
    if len(text) > max_bytes or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > max_bytes):
        raise Refused(f"has more than {max_bytes:,} bytes")
    too_deep = Refused(f"has more than {max_levels} levels")
    try:
        value, end = _READER.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
        if text[end:].strip(" \t\r\n"):
            raise Refused(f"goes on after the object, at character {end + 1}")
        if not isinstance(value, dict):
            raise Refused('is not a JSON object, such as {"key": "value"}')
        if _too_deep(value, max_levels):
            raise too_deep
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise too_deep from None
    except UnicodeEncodeError:
        raise Refused("holds half of a surrogate pair, which is no character") from None
    except json.JSONDecodeError as error:
        raise Refused(f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except Refused:
        raise
    except ValueError:  # Python reads integers of at most 4,300 digits
        raise Refused("holds an integer of too many digits") from None
    return value


def read(
    text: str,
    field: str,
    *,
    reason: str = "BAD_JSON",
    max_bytes: int = MAX_BYTES,
    max_levels: int = MAX_LEVELS,
) -> dict[str, Any]:
    """Returns the object that the text of a request's field holds, as ``parse`` reads it; '' is read as ``{}``.

    ``field`` is the field's path, for the message. Raises InvalidArgument (``BAD_JSON`` unless ``reason`` says
    otherwise) for what ``parse`` refuses.
    """
    if not text:
        return {}
    try:
        return parse(text, max_bytes=max_bytes, max_levels=max_levels)
    except Refused as error:
        why = str(error)
        raise InvalidArgument(f"{field} {why}", reason=reason, violations=[(field, why)], field=field) from None
