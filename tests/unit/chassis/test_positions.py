"""A position is good for the log that it came from, and for no other."""

from __future__ import annotations

import base64

import pytest

from noronha.chassis import positions
from noronha.rpc.errors import InvalidArgument


def test_what_was_sealed_comes_back() -> None:
    offsets = {"r1-abc": 1 << 40, "": 0, "é": 7}
    assert positions.unseal(positions.seal(offsets, "a log"), "a log") == offsets


def _forged(text: str) -> str:
    return base64.urlsafe_b64encode(f"{positions._mark(text, 'a log')} {text}".encode()).decode()


@pytest.mark.parametrize(
    "position",
    ["x", "é", "AAAA", positions.seal({"": 1}, "another log"),
     *(_forged(text) for text in ("", "1", "[1]", '{"": -1}', '{"": 1.5}', '{"": true}', '{"": "1"}', '{"": 1'))],
)  # fmt: skip
def test_what_is_no_position_of_a_log_is_refused(position: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        positions.unseal(position, "a log")
    assert caught.value.reason == "BAD_POSITION"
