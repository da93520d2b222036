"""Lengths of time as clients send them, which need not be ones that a ``Duration`` may hold."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration


def seconds_of(duration: Duration) -> float:
    """Returns a length of time in seconds; not a number, which lies within no bounds, where its fields contradict."""
    if abs(duration.nanos) >= 1_000_000_000 or duration.seconds * duration.nanos < 0:
        return math.nan
    return float(duration.seconds) + duration.nanos / 1e9
