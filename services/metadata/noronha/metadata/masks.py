"""Field masks: which fields a change touches, and which a reader wants."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from noronha.rpc.errors import InvalidArgument

M = TypeVar("M", bound=Message)


def bad_mask(field: str, path: str, why: str) -> InvalidArgument:
    """Returns the error for a path of a mask."""
    return InvalidArgument(
        f"{field} names {path[:80]!r}, {why}", reason="BAD_MASK", violations=[(field, why)], path=path[:80]
    )


@functools.cache
def server_made(descriptor: Descriptor) -> frozenset[str]:
    """Returns the fields that only the server sets: names, output-only ones and etags."""
    made = {field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER}
    return frozenset(
        field.name
        for field in descriptor.fields
        if field.name == "etag" or made.intersection(field.GetOptions().Extensions[field_behavior_pb2.field_behavior])
    )


@functools.lru_cache(1024)
def _check(descriptor: Descriptor, path: str, field: str) -> None:
    inside: Descriptor | None = descriptor
    for part in path.split("."):
        known = inside.fields_by_name.get(part) if inside is not None else None
        if known is None:
            raise bad_mask(field, path, f"which is no field of {descriptor.name}")
        inside = known.message_type if known.message_type and not known.message_type.GetOptions().map_entry else None


def paths_of(sent: Message, mask: FieldMask, fixed: frozenset[str], field: str = "update_mask") -> list[str]:
    """Returns the paths that a change touches: those of the mask, every set field without one, all but fixed for ``*``.

    ``fixed`` are the top-level fields that this caller cannot change. Raises InvalidArgument ``BAD_MASK``.
    """
    descriptor = sent.DESCRIPTOR
    if not mask.paths:
        return [each.name for each, _ in sent.ListFields() if each.name not in fixed]
    if "*" in mask.paths:
        if len(mask.paths) > 1:
            raise bad_mask(field, "*", "which stands alone")
        return [each.name for each in descriptor.fields if each.name not in fixed]
    for path in mask.paths:
        _check(descriptor, path, field)
        if path.partition(".")[0] in fixed:
            raise bad_mask(field, path, "which cannot be changed here")
    return list(mask.paths)


def copy_paths(source: Any, target: Any, paths: list[str]) -> None:
    """Makes the fields of ``target`` at these paths what they are in ``source``, unset ones included."""
    for path in paths:
        *outer, last = path.split(".")
        given, changed = source, target
        for part in outer:
            given, changed = getattr(given, part), getattr(changed, part)
        changed.ClearField(last)
        descriptor = given.DESCRIPTOR.fields_by_name[last]
        if descriptor.has_presence and not given.HasField(last):
            continue
        value = getattr(given, last)
        if isinstance(value, (str, int, float, bool, bytes)):
            setattr(changed, last, value)
        elif isinstance(value, Message):
            getattr(changed, last).CopyFrom(value)
        else:
            getattr(changed, last).MergeFrom(value)


def pick(message: M, mask: FieldMask) -> M:
    """Returns the fields of a message that a reader wants; the message itself when it wants all.

    Raises InvalidArgument ``BAD_MASK``.
    """
    if not mask.paths or list(mask.paths) == ["*"]:
        return message
    for path in mask.paths:
        _check(message.DESCRIPTOR, path, "read_mask")
    picked = type(message)()
    mask.MergeMessage(message, picked)
    return picked


def check_read(kind: type[Message], mask: FieldMask) -> None:
    """Raises InvalidArgument ``BAD_MASK`` for a mask with unknown paths, also when there is nothing to pick from."""
    if list(mask.paths) != ["*"]:
        for path in mask.paths:
            _check(kind.DESCRIPTOR, path, "read_mask")
