"""Predictions as JSON: nothing dropped, nothing bent."""

import datetime
import decimal
import json

import pytest

from noronha.tools.answers import encode


class Array:
    """Stands in for numpy's arrays, which have the same method."""

    def __init__(self, values):
        self.values = values

    def tolist(self):
        return self.values


class Scalar:
    """Stands in for numpy's integers."""

    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value

    def __hash__(self):
        return hash(self.value)


class Frame:
    """Stands in for a pandas frame."""

    def to_dict(self, orient="dict"):
        return [{"a": 1}] if orient == "records" else {"a": {0: 1}}


@pytest.mark.parametrize(
    "value", [[], {}, "", 0, None, False, 0.0, 1.0, [None, "", 0], {"a": None, "": []}, 2**70, "naïve 🌸"]
)
def test_values_of_json_come_out_as_they_are(value):
    decoded = json.loads(encode(value))
    assert decoded == value and type(decoded) is type(value)


@pytest.mark.parametrize("value, expected", [
    (Array([1, 2]), [1, 2]), ({"x": Array([[0.5]])}, {"x": [[0.5]]}), (Scalar(7), 7), ([Scalar(True)], [True]),
    ({Scalar(3): 1}, {"3": 1}), ({1: "a", None: "b", (1, 2): "c"}, {"1": "a", "null": "b", "(1, 2)": "c"}), ((1, 2), [1, 2]),
    ({3, 1}, [1, 3]), (iter([1]), [1]), (range(2), [0, 1]), (b"text", "text"), (Frame(), [{"a": 1}]),
    (datetime.date(2026, 1, 2), "2026-01-02"), (decimal.Decimal("1.5"), 1.5),
    (float("nan"), None), ([float("inf"), 1.5], [None, 1.5]), (Array([float("nan")]), [None]),
])  # fmt: skip
def test_values_beyond_json_come_out_as_what_they_mean(value, expected):
    assert json.loads(encode(value)) == expected


def test_real_numpy_values_come_out_faithfully():
    numpy = pytest.importorskip("numpy")
    value = {
        "i": numpy.int64(3),
        "f": numpy.float32(0.5),
        "s": numpy.str_("setosa"),
        "a": numpy.arange(3),
        "b": numpy.bool_(True),
    }
    assert json.loads(encode(value)) == {"i": 3, "f": 0.5, "s": "setosa", "a": [0, 1, 2], "b": True}


def test_what_cannot_be_written_is_a_type_error_that_names_the_type():
    with pytest.raises(TypeError, match="object"):
        encode({"x": object()})
    loop = []
    loop.append(loop)
    with pytest.raises(TypeError, match="contains itself"):
        encode(loop)
