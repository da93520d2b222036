"""Evens out the two releases of envoy-data-plane that are in use.

Python 3.11 and newer get 2.x, Python 3.10 the last one that runs there, 0.8. Both build and parse the same messages;
they differ in where Google's own types lie, and 0.8 knows neither Envoy's newest fields nor a difference between a
duration of zero and none. What is missing is added to a message as a serialised field, which both carry along.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
from typing import Any

from envoy_data_plane.envoy.config.core import v3 as core
from envoy_data_plane.envoy.service.discovery import v3 as discovery
from envoy_data_plane.google import rpc as google_rpc

from noronha.router import splice

try:
    protobuf: Any = importlib.import_module("envoy_data_plane.google.protobuf")
except ImportError:
    protobuf = importlib.import_module("betterproto.lib.google.protobuf")

DiscoveryRequest = discovery.DiscoveryRequest
DiscoveryResponse = discovery.DiscoveryResponse
Status = google_rpc.Status

Message = Any
"""A message of either release; they have no type in common."""


def number(message: type[Message], name: str) -> int:
    """Returns the field number of a message's field."""
    fields = {each.name: each for each in dataclasses.fields(message)}
    return int(fields[name].metadata["betterproto"].number)


def type_url(message: type[Message]) -> str:
    """Returns the type URL of a top-level message."""
    package = message.__module__.removeprefix("envoy_data_plane.")
    return f"type.googleapis.com/{package}.{message.__name__}"


def packed(message: Message) -> Any:
    """Packs a top-level message into a `google.protobuf.Any`."""
    return protobuf.Any(type_url=type_url(type(message)), value=bytes(message))


def extension(name: str, message: Message) -> core.TypedExtensionConfig:
    """Names and packs the configuration of an extension."""
    return core.TypedExtensionConfig(name=name, typed_config=packed(message))


def added(message: Message, *fields: bytes) -> Any:
    """Adds serialised fields to a message and returns it."""
    message._unknown_fields += b"".join(fields)
    return message


def duration(number: int, value: datetime.timedelta) -> bytes:
    """Serialises a field that holds a duration, also one of zero."""
    seconds, rest = divmod(value, datetime.timedelta(seconds=1))
    nanos = rest // datetime.timedelta(microseconds=1) * 1000
    parts = [splice.number(place, part) for place, part in ((1, seconds), (2, nanos)) if part]
    return splice.field(number, b"".join(parts))


def true(number: int) -> bytes:
    """Serialises a field that holds a `google.protobuf.BoolValue` of true."""
    return splice.field(number, splice.number(1, 1))
