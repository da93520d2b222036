"""The time as records hold it."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp


def now() -> Timestamp:
    """Returns the time it is."""
    stamp = Timestamp()
    stamp.GetCurrentTime()
    return stamp
