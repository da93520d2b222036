"""Positions in logs as clients hold them: opaque, and good for the log that they came from alone."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping

from noronha.rpc.errors import InvalidArgument


def _mark(text: str, log: str) -> str:
    return hashlib.sha256(f"{text} {log}".encode()).hexdigest()[:12]


def seal(offsets: Mapping[str, int], log: str) -> str:
    """Returns the position that stands for offsets in bytes, by part, in the log of this name."""
    text = json.dumps(offsets, separators=(",", ":"), sort_keys=True)
    return base64.urlsafe_b64encode(f"{_mark(text, log)} {text}".encode()).decode()


def unseal(position: str, log: str) -> dict[str, int]:
    """Returns the offsets that were sealed. Raises InvalidArgument ``BAD_POSITION`` for a position of another log."""
    try:
        mark, _, text = base64.urlsafe_b64decode(position.encode()).decode().partition(" ")
        offsets = json.loads(text) if mark == _mark(text, log) else None
    except (ValueError, binascii.Error, UnicodeError):
        offsets = None
    if not isinstance(offsets, dict) or not all(type(each) is int and each >= 0 for each in offsets.values()):
        why = "is not one of this log; start without it"
        raise InvalidArgument(f"position {why}", reason="BAD_POSITION", violations=[("position", why)])
    return offsets
