"""JSON that users write is read strictly, and alike by the command, by the services and by tasks."""

from __future__ import annotations

import json

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noronha.cli import options
from noronha.rpc import json_text
from noronha.rpc.errors import InvalidArgument
from noronha.tools import parameters
from noronha.tools.failures import NotebookFailure

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


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e309}', "[]", "{", '{"a":' * 65 + "1" + "}" * 65])
def test_the_command_and_a_task_refuse_what_services_refuse(text: str) -> None:
    with pytest.raises(json_text.Refused) as refused:
        json_text.parse(text)
    with pytest.raises(click.BadParameter) as told:
        options.JSON.convert(text, None, None)
    assert str(refused.value) in told.value.message
    with pytest.raises(NotebookFailure) as failed:
        parameters.parse(text)
    assert str(refused.value) in str(failed.value)
