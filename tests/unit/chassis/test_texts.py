"""What services share about texts: strict JSON, page tokens, drawn names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noronha.chassis import anonymous, json_text, paging
from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_what_json_writes_is_read(value: dict[str, object]) -> None:
    assert json_text.read(json.dumps(value), "details_json") == value
    assert json_text.read(f" \n{json.dumps(value, ensure_ascii=False)}\t", "details_json") == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("1", "not a JSON object"),
        ("{", "not JSON"),
        ("{} {}", "goes on"),
        ("{'a': 1}", "not JSON"),
        ('{"a": 1,}', "not JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"x": {"a": 1, "a": 1}}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e309}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ('{"a": "\\ud800"}', "surrogate"),
        ('{"a":' * 65 + "1" + "}" * 65, "levels"),
        ('{"a":' + "[" * 100_000, "levels"),
        ('{"a": "' + "x" * (1 << 20) + '"}', "bytes"),
        ('{"a": "' + "é" * (1 << 19) + '"}', "bytes"),
        ("\ufeff{}", "not JSON"),
    ],
)
def test_what_is_no_object_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        json_text.read(text, "params_json")
    assert caught.value.reason == "BAD_JSON" and why in caught.value.message
    assert caught.value.violations[0][0] == "params_json"


def test_json_at_its_limits() -> None:
    assert json_text.read("", "x") == {}
    assert json_text.read('{"a":' * 64 + "1" + "}" * 64, "x")
    body = '{"a": "' + "x" * ((1 << 20) - 9) + '"}'
    assert len(body) == 1 << 20 and json_text.read(body, "x")
    read = json_text.read('{"a": 1.0, "b": 18446744073709551617, "c": -0.0}', "x")
    assert [type(each) for each in read.values()] == [float, int, float] and read["b"] == 2**64 + 1


POSITIONS = st.lists(st.text(max_size=5) | st.integers(-(2**60), 2**60), max_size=4)


@given(POSITIONS, POSITIONS)
def test_a_token_leads_back_to_its_position(position: list[str | int], query: list[str | int]) -> None:
    tokens = paging.PageTokens(b"key")
    token = tokens.seal(position, "t", query)
    assert tokens.unseal(token, "t", query) == position
    for other in (
        lambda: tokens.unseal(token, "u", query),
        lambda: tokens.unseal(token, "t", [*query, ""]),
        lambda: paging.PageTokens(b"other").unseal(token, "t", query),
        lambda: tokens.unseal(token[:-1], "t", query),
        lambda: tokens.unseal(token + "=", "t", query),
    ):
        with pytest.raises(InvalidArgument) as caught:
            other()
        assert caught.value.reason == "BAD_PAGE_TOKEN"


def test_page_sizes() -> None:
    assert [paging.size_of(each) for each in (0, 1, 1000, 1001, 2**31 - 1)] == [50, 1, 1000, 1000, 1000]
    with pytest.raises(InvalidArgument) as caught:
        paging.size_of(-1)
    assert caught.value.reason == "BAD_PAGE_SIZE"


def test_drawn_names_are_names() -> None:
    drawn = {anonymous.draw() for _ in range(500)}
    assert len(drawn) > 490
    for each in drawn:
        names.check_id(each)
        assert len(each.split("-")) == 3
