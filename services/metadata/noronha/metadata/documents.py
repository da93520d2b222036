"""What filters see of a resource: its message as one JSON object.

Fields have their names of the contract. Enumerations are told by name, times as ``2026-11-23T07:17:00.000000Z``,
lengths of time in seconds. A field without presence is always there; messages and optional fields only when set.
``details_json`` and ``params_json`` are told as the objects they hold, ``details`` and ``params``.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

_EPOCH = datetime.datetime(1970, 1, 1)
_JSON_FIELDS = {"details_json": "details", "params_json": "params"}

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

_Convert = Callable[[Any], Any]


def microseconds(time: Timestamp) -> int:
    """Returns a time in microseconds since the epoch."""
    return time.seconds * 1_000_000 + time.nanos // 1000


def timestamp(microseconds: int) -> Timestamp:
    """Returns the time that lies so many microseconds after the epoch."""
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


@functools.lru_cache(64)
def _second(seconds: int) -> str:
    return (_EPOCH + datetime.timedelta(seconds=seconds)).isoformat()


def _time(value: Timestamp) -> str:
    return f"{_second(value.seconds)}.{value.nanos // 1000:06d}Z"


def _duration(value: Duration) -> float:
    return value.seconds + value.nanos / 1e9


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _same(value: Any) -> Any:
    return value


def _converter(field: FieldDescriptor) -> _Convert | None:
    """Returns what turns one value of a field into JSON, None for what filters do not see."""
    if field.message_type is not None:
        name = field.message_type.full_name
        if name == "google.protobuf.Timestamp":
            return _time
        if name == "google.protobuf.Duration":
            return _duration
        if name == "google.protobuf.Any":
            return None
        return of
    if field.enum_type is not None:
        values = field.enum_type.values_by_number
        return lambda number: values[number].name if number in values else number
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        return _number
    if field.type == FieldDescriptor.TYPE_BYTES:
        return None
    return _same


@functools.cache
def _plan(descriptor: Descriptor) -> tuple[tuple[str, str, str, _Convert], ...]:
    """Returns (field, key, how, converter) for each field that filters see."""
    plan: list[tuple[str, str, str, _Convert]] = []
    for field in descriptor.fields:
        convert = _converter(field)
        if convert is None:
            continue
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            plan.append((field.name, field.name, "map", _same))
        elif field.name in _JSON_FIELDS:
            plan.append((field.name, _JSON_FIELDS[field.name], "json", _same))
        else:
            how = "repeated" if isinstance(field.default_value, list) else "optional" if field.has_presence else "plain"
            plan.append((field.name, field.name, how, convert))
    return tuple(plan)


class Misled(Exception):
    """A path that no document of a kind can follow."""

    def __init__(self, followed: tuple[str, ...], known: tuple[str, ...]) -> None:
        super().__init__(followed)
        self.followed = followed
        """The part of the path that leads somewhere."""
        self.known = known
        """Fields that are there; none where what is there has no fields."""


def follow(kind: type[Message], path: Sequence[str]) -> EnumDescriptor | None:
    """Follows a path through documents of a kind; returns the enumeration that it leads to, None for anything else.

    Raises Misled where no document can hold anything at it. Users' own objects can hold anything.
    """
    inside: Any = kind.DESCRIPTOR
    enumeration: EnumDescriptor | None = None
    in_array = False
    for at, part in enumerate(path):
        if in_array and part.isascii() and part.isdigit():
            in_array = False
            continue
        plan = {key: (field, how, convert) for field, key, how, convert in _plan(inside)} if inside is not None else {}
        if inside is None or part not in plan:
            raise Misled(tuple(path[:at]), tuple(plan))
        field, how, convert = plan[part]
        if how in ("map", "json"):
            return None
        found = inside.fields_by_name[field]
        enumeration = found.enum_type
        inside = found.message_type if convert is of else None
        in_array = how == "repeated"
    return enumeration


def of(message: Message) -> dict[str, Any]:
    """Returns the document of a message."""
    document: dict[str, Any] = {}
    for field, key, how, convert in _plan(message.DESCRIPTOR):
        if how == "plain":
            document[key] = convert(getattr(message, field))
        elif how == "optional":
            if message.HasField(field):
                document[key] = convert(getattr(message, field))
        elif how == "repeated":
            document[key] = [convert(each) for each in getattr(message, field)]
        elif how == "map":
            document[key] = dict(getattr(message, field))
        else:
            document[key] = json.loads(getattr(message, field) or "{}")
    return document


def text_of(message: Message) -> str:
    """Returns the document of a message as text."""
    return _ENCODER.encode(of(message))
