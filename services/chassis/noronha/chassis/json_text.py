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


class _Refused(ValueError):
    """Something that Python's reader takes and JSON, or its readers elsewhere, do not."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"holds the key {key[:64]!r} twice")
            seen.add(key)
    return found


def _constant(text: str) -> NoReturn:
    raise _Refused(f"holds {text}, which is not JSON")


def _float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise _Refused(f"holds the number {text[:40]}, which is too large")
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


def read(
    text: str,
    field: str,
    *,
    reason: str = "BAD_JSON",
    max_bytes: int = MAX_BYTES,
    max_levels: int = MAX_LEVELS,
) -> dict[str, Any]:
    """Returns the object that ``text`` holds; '' is read as ``{}``.

    Integers keep their value whatever their size, and ``1.0`` stays a float. ``field`` is the field's path, for the
    message. Raises InvalidArgument (``BAD_JSON`` unless ``reason`` says otherwise) for what is not one JSON object of
    at most ``max_bytes`` and ``max_levels``, for a key that comes twice in one object, for NaN and Infinity, for
    numbers past the range of a double, and for halves of surrogate pairs, which UTF-8 cannot carry.
    """
    if not text:
        return {}
    why = ""
    value: Any = None
    if len(text) > max_bytes or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > max_bytes):
        why = f"has more than {max_bytes:,} bytes"
    else:
        try:
            value, end = _READER.raw_decode(text, len(text) - len(text.lstrip(" \t\r\n")))
            if text[end:].strip(" \t\r\n"):
                why = f"goes on after the object, at character {end + 1}"
            elif not isinstance(value, dict):
                why = 'is not a JSON object, such as {"key": "value"}'
            elif _too_deep(value, max_levels):
                why = f"has more than {max_levels} levels"
            elif "\\u" in text:
                json.dumps(value, ensure_ascii=False).encode("utf-8")
        except RecursionError:
            why = f"has more than {max_levels} levels"
        except UnicodeEncodeError:
            why = "holds half of a surrogate pair, which is no character"
        except json.JSONDecodeError as error:
            why = f"is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        except _Refused as error:
            why = str(error)
        except ValueError:  # Python reads integers of at most 4,300 digits
            why = "holds an integer of too many digits"
    if why:
        raise InvalidArgument(f"{field} {why}", reason=reason, violations=[(field, why)], field=field)
    return value  # type: ignore[no-any-return]
