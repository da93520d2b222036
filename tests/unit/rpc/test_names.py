"""One grammar of names, checked in one place."""

from __future__ import annotations

import itertools

import pytest

from noronha.rpc import names
from noronha.rpc.errors import InvalidArgument

REFUSED = [
    "a_b", "-a", "a-", "a--b", "a b", "x:y", "../../x", "", "a" * 65, "a\n", "é", "ａ", "a\u0301", "а", "a.", ".a", "a..b",
    "a.-b", "%2e%2e", "a\x00", "a/b", "a@1", "-", "\u202ea", "CON ", "💐",
]  # fmt: skip


@pytest.mark.parametrize("value", REFUSED, ids=ascii)
def test_ids_outside_the_grammar_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        names.check_id(value)
    assert caught.value.reason == "BAD_NAME" and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["a", "A-b1", "iris-clf.v1", "0", "a" * 64, "a.b-c.d"])
def test_ids_inside_the_grammar_are_taken(value: str) -> None:
    assert names.check_id(value) == value


@pytest.mark.parametrize(
    "value", ["", "-a", ".a", "a b", "x:y", "../../x", "a" * 129, "a\n", "é", "a/b", "a@1"], ids=ascii
)
def test_tags_outside_dockers_grammar_are_refused(value: str) -> None:
    with pytest.raises(InvalidArgument):
        names.check_tag(value)


@pytest.mark.parametrize("value", ["latest", "_x", "a_b", "a--b", "1.0.0-rc1", "a" * 128])
def test_tags_inside_it_are_taken(value: str) -> None:
    assert names.check_tag(value) == value


@pytest.mark.parametrize("kind", sorted(names.PATTERNS))
def test_names_come_apart_and_together(kind: str) -> None:
    ids = [("7" if part == "{revision}" else "x1") for part in names.PATTERNS[kind].split("/") if part.startswith("{")]
    full = names.join(kind, *ids)
    taken = names.parse(full, kind)
    assert taken == names.Name(kind, tuple(ids)) and str(taken) == full
    if kind in names.REVISIONED:
        assert names.parse(full + "@12").revision == 12
    else:
        with pytest.raises(InvalidArgument):
            names.parse(full + "@12")
    with pytest.raises(InvalidArgument):
        names.parse(full + "/extra")


@pytest.mark.parametrize(
    "text",
    ["models/a@0", "models/a/versions/v@", "models/a/versions/v@x", "models/a/versions/v@1@2", "models//versions/v"],
)
def test_revisions_are_numbers_from_one(text: str) -> None:
    with pytest.raises(InvalidArgument):
        names.parse(text)


def test_a_wildcard_stands_only_where_it_may() -> None:
    assert names.parse("models/-", "model", wildcard=True).ids == ("-",)
    with pytest.raises(InvalidArgument):
        names.parse("models/-", "model")


def test_platform_names_never_meet() -> None:
    parts = ["a", "A", "a-b", "a.b", "b-c", "b", "c", "a-b-c", "x" * 64, "x" * 63 + "y"]
    made = {}
    for pair in itertools.product(parts, parts):
        label = names.for_platform(*pair)
        assert len(label) <= 63 and label == label.lower() and label[0] != "-" and label[-1] != "-"
        assert made.setdefault(label, pair) == pair
