"""Puts already serialised protobuf messages together without parsing them again.

A protobuf message is the concatenation of its fields, in any order, so a large message (a route table with a thousand
entries, an answer with a thousand clusters) can be made from cached pieces at the cost of copying bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

VARINT = 0
LENGTH_DELIMITED = 2


def varint(value: int) -> bytes:
    """Encodes an unsigned number the way protobuf does."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, payload: bytes) -> bytes:
    """Encodes one field that holds a message, a string or bytes."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(payload)) + payload


def number(number: int, value: int) -> bytes:
    """Encodes one field that holds an unsigned number."""
    return varint(number << 3 | VARINT) + varint(value)


def fields(number: int, payloads: Iterable[bytes]) -> bytes:
    """Encodes a repeated field of messages, strings or bytes."""
    tag = varint(number << 3 | LENGTH_DELIMITED)
    return b"".join([part for payload in payloads for part in (tag, varint(len(payload)), payload)])


def any_message(type_url: str, payload: bytes) -> bytes:
    """Encodes a `google.protobuf.Any`."""
    return field(1, type_url.encode()) + field(2, payload)


def map_entry(key: str, payload: bytes) -> bytes:
    """Encodes one entry of a `map<string, message>`, to be used as the payload of the map's field."""
    return field(1, key.encode()) + field(2, payload)
