"""The language of filters: what it takes, what it means, and that SQLite means the same."""

from __future__ import annotations

import json
import sqlite3
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from noronha.metadata import kinds
from noronha.metadata.backends.sqlite import filters as sqlite_filters
from noronha.metadata.filters import MAX_BYTES, MAX_TESTS, MAX_VALUES, matcher, parse
from noronha.metadata.patterns import MAX_PATTERN, BadPattern, Pattern
from noronha.rpc.errors import InvalidArgument

DOCUMENT: dict[str, Any] = {
    "name": "models/iris/versions/v1",
    "revision": 2,
    "stored": True,
    "labels": {"team": "blue"},
    "files": [{"path": "clf.pkl", "size_bytes": 10}, {"path": "info/notes.txt", "size_bytes": 3}],
    "details": {
        "acc": 0.95,
        "folds": 3,
        "whole": 3.0,
        "huge": 2**70,
        "nothing": None,
        "tags": ["a", "b"],
        "grid": [[1, 2], [3]],
        "nested": {"x": {"y": "deep"}},
        "0": "zero",
        "text": "line one\nline two",
    },
}


@pytest.mark.parametrize(
    ("query", "taken"),
    [
        ({}, True),
        ({"name": "models/iris/versions/v1"}, True),
        ({"name": "models/iris"}, False),
        ({"stored": True}, True),
        ({"stored": 1}, False),
        ({"revision": True}, False),
        ({"details.folds": 3.0}, True),
        ({"details.whole": 3}, True),
        ({"details.huge": 2**70}, True),
        ({"details.huge": 2**70 + 1}, False),
        ({"details.huge": {"$gt": 2**70 - 1}}, True),
        ({"details.huge": {"$gt": 1.0e21, "$lt": 2.0e21}}, True),
        ({"details.acc": {"$gt": 0.9}}, True),
        ({"details.acc": {"$gt": 0.9, "$lt": 0.95}}, False),
        ({"details.acc": {"$gte": 0.95, "$lte": 0.95}}, True),
        ({"details.acc": {"$gt": "0.9"}}, False),
        ({"details.folds": {"$gt": "a"}}, False),
        ({"details.nothing": None}, True),
        ({"details.absent": None}, True),
        ({"details.nothing": {"$exists": True}}, True),
        ({"details.absent": {"$exists": False}}, True),
        ({"details.absent": {"$ne": 1}}, True),
        ({"details.absent": {"$in": [None, 5]}}, True),
        ({"details.tags": "a"}, True),
        ({"details.tags": ["a", "b"]}, True),
        ({"details.tags": ["b", "a"]}, False),
        ({"details.tags.1": "b"}, True),
        ({"details.tags.2": {"$exists": True}}, False),
        ({"details.tags": {"$all": ["b", "a"]}}, True),
        ({"details.tags": {"$all": ["b", "c"]}}, False),
        ({"details.tags": {"$all": []}}, False),
        ({"details.tags": {"$size": 2}}, True),
        ({"details.acc": {"$size": 1}}, False),
        ({"details.tags": {"$ne": "a"}}, False),
        ({"details.tags": {"$nin": ["c", "d"]}}, True),
        ({"details.tags": {"$in": []}}, False),
        ({"details.grid": [3]}, True),
        ({"details.grid": 3}, False),
        ({"details.grid.0": 2}, True),
        ({"details.grid": {"$elemMatch": {"$size": 1}}}, True),
        ({"details.grid": {"$elemMatch": {"$eq": 1}}}, False),
        ({"details.0": "zero"}, True),
        ({"details.nested": {"x": {"y": "deep"}}}, True),
        ({"details.nested.x.y": {"$regex": "^de+p$"}}, True),
        ({"details.text": {"$regex": "one$"}}, False),
        ({"details.text": {"$regex": "(?s)^line.*two$"}}, True),
        ({"details.text": {"$regex": "(?i)LINE O"}}, True),
        ({"details.acc": {"$regex": "0"}}, False),
        ({"files.path": "clf.pkl"}, True),
        ({"files.path": {"$regex": "^info/"}}, True),
        ({"files": {"$elemMatch": {"path": "clf.pkl", "size_bytes": {"$gt": 5}}}}, True),
        ({"files": {"$elemMatch": {"path": "clf.pkl", "size_bytes": {"$lt": 5}}}}, False),
        ({"files.size_bytes": {"$lt": 5, "$gt": 5}}, True),
        ({"files": {"$elemMatch": {"$or": [{"path": "x"}, {"size_bytes": 3}]}}}, True),
        ({"files": {"$not": {"$size": 2}}}, False),
        ({"details.acc": {"$not": {"$gt": 0.9, "$lt": 0.94}}}, True),
        ({"$or": [{"name": "x"}, {"stored": True}]}, True),
        ({"$and": [{"name": "x"}, {"stored": True}]}, False),
        ({"$nor": [{"name": "x"}, {"stored": False}]}, True),
        ({"labels.team": {"$in": ["red", "blue"]}}, True),
    ],
)
def test_what_filters_mean(query: dict[str, Any], taken: bool) -> None:
    assert matcher(parse(json.dumps(query)))(DOCUMENT) is taken


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"$where": "1"}', "$where"),
        ('{"$expr": {}}', "$expr"),
        ('{"a": {"$function": {}}}', "$function"),
        ('{"a": {"$where": 1}}', "$where"),
        ('{"a": {"$type": "string"}}', "$type"),
        ('{"a": {"$regex": "a", "$options": "i"}}', "$options"),
        ('{"a": {"$gt": 1, "b": 2}}', "b"),
        ('{"$not": {"a": 1}}', "$nor"),
        ('{"a.$b": 1}', "$b"),
        ('{"a": {"$in": [{"$gt": 1}]}}', "$gt"),
        ('{"a": {"b": {"$gt": 1}}}', ""),
        ('{"a": {"$eq": {"b": {"$where": 1}}}}', "$where"),
        ('{"a": {"$elemMatch": {"$where": 1}}}', "$where"),
        ('{"a": {"$elemMatch": 1}}', "$elemMatch"),
        ('{"a": {"$not": 1}}', "$not"),
        ('{"a": {"$not": {}}}', "$not"),
        ('{"a": {"$gt": null}}', "$gt"),
        ('{"a": {"$lt": true}}', "$lt"),
        ('{"a": {"$lt": [1]}}', "$lt"),
        ('{"a": {"$size": 1.5}}', "$size"),
        ('{"a": {"$size": -1}}', "$size"),
        ('{"a": {"$exists": 1}}', "$exists"),
        ('{"a": {"$in": 1}}', "$in"),
        ('{"a": {"$all": "x"}}', "$all"),
        ('{"$or": []}', "$or"),
        ('{"$or": {}}', "$or"),
        ('{"$and": [1]}', "$and"),
        ('{"a..b": 1}', "a..b"),
        ('{"": 1}', "path"),
        ('{".a": 1}', ".a"),
        ('{"a": {"$regex": 1}}', "$regex"),
        ('{"a": {"$regex": "(a+)+"}}', "nested"),
        ('{"a": {"$regex": "(?=a)"}}', "lookaround"),
        ('{"a": {"$regex": "(a)\\\\1"}}', "backreference"),
        ("[]", "object"),
        ("nonsense", "JSON"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": 1e999}', "large"),
        (json.dumps({"a": {"$in": list(range(MAX_VALUES + 1))}}), "values"),
        (json.dumps({"$or": [{"a": each} for each in range(MAX_TESTS + 1)]}), "tests"),
        ('{"a": "' + "x" * MAX_BYTES + '"}', "bytes"),
        ('{"$and": [' * 15 + "{}" + "]}" * 15, "levels"),
        ('{"a": {"$regex": "' + "a" * (MAX_PATTERN + 1) + '"}}', str(MAX_PATTERN)),
    ],
)
def test_what_is_not_taken_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert caught.value.reason == "BAD_FILTER"
    assert named in caught.value.message
    assert caught.value.violations[0][0] == "filter"


TRAINING, VERSION = kinds.MESSAGES["training"], kinds.MESSAGES["model_version"]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("stats.state", "'status'"),
        ("status.sate", "'status.state'"),
        ("status.state.x", "status.state has no fields"),
        ("datasets.0.name", "datasets.0 has no fields"),
        ("datasets.0.0", "datasets.0 has no fields"),
        ("details_json", "'details'"),
        ("_id", "known: name, build"),
        ("build_snapshot.source.git_comit", "'build_snapshot.source.git_commit'"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_with_the_nearest_field(path: str, named: str) -> None:
    for query in (
        {path: 1}, {path: {"$exists": False}}, {"$nor": [{"name": "x"}, {path: {"$not": {"$gt": 1}}}]},
        {path: {"$in": [1, None]}}, {path: {"$size": 1}}, {path: {"$elemMatch": {"$eq": 1}}},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument) as caught:
            parse(json.dumps(query), TRAINING)
        assert caught.value.reason == "BAD_FILTER" and repr(path) in caught.value.message
        assert named in caught.value.message and "\n" not in caught.value.message


def test_paths_that_may_lead_somewhere_are_taken() -> None:
    parse('{"files": {"$elemMatch": {"path": "a", "$or": [{"size_bytes": {"$gt": 1}}]}}, "files.0.path": "a"}', VERSION)
    with pytest.raises(InvalidArgument, match=r"'files\.path'"):
        parse('{"files": {"$elemMatch": {"pth": "a"}}}', VERSION)
    for path in ("details", "details.any.thing", "params.0.x", "labels.team", "environment.PATH", "datasets.1", "status",
                 "build_snapshot.labels.x", "status.error.message", "create_time"):  # fmt: skip
        parse(json.dumps({path: 1}), TRAINING)
    parse('{"params.x": 1, "training_snapshot.params.gamma": 2}', TRAINING, VERSION)
    with pytest.raises(InvalidArgument, match="ModelVersion or Training"):
        parse('{"nonsense": 1}', TRAINING, VERSION)


@pytest.mark.parametrize(
    ("test", "value"),
    [
        ("BANANA", "BANANA"), ({"$eq": "running"}, "running"), ({"$ne": "FINISHED"}, "FINISHED"),
        ({"$in": ["RUNNING", "BANANA"]}, "BANANA"), ({"$nin": ["BANANA"]}, "BANANA"), ({"$all": ["BANANA"]}, "BANANA"),
        ({"$not": {"$eq": "BANANA"}}, "BANANA"), ("", ""),
    ],
)  # fmt: skip
def test_a_word_that_an_enumeration_does_not_have_is_refused_with_those_it_has(test: Any, value: str) -> None:
    for query in ({"status.state": test}, {"$or": [{"name": "x"}, {"build_snapshot.status.state": test}]}):
        with pytest.raises(InvalidArgument, match="known: PENDING, RUNNING, SUCCEEDED, FAILED, CANCELLED;") as caught:
            parse(json.dumps(query), TRAINING)
        assert caught.value.reason == "BAD_FILTER" and f"with {value!r}" in caught.value.message
    with pytest.raises(InvalidArgument, match="BANANA"):
        parse('{"training_snapshot": {"$elemMatch": {"status.state": "BANANA"}}}', VERSION)


def test_what_an_enumeration_may_be_is_taken() -> None:
    for test in ("RUNNING", "STATE_UNSPECIFIED", 7, None, {"$in": [None, 9, "FAILED"]}, {"$regex": "ING$"}, {"$gt": "BANANA"},
                 {"$exists": True}):  # fmt: skip
        parse(json.dumps({"status.state": test}), TRAINING)
    deployment = kinds.MESSAGES["deployment"]
    for state in ("READY", "SUCCEEDED"):
        parse(json.dumps({"status.state": state}), TRAINING, deployment)
    with pytest.raises(InvalidArgument, match=r"SUCCEEDED, .*READY"):
        parse('{"status.state": "BANANA"}', TRAINING, deployment)
    parse('{"details.state": "BANANA", "labels.state": "BANANA"}', TRAINING)


keys = st.sampled_from(["a", "b", "c", "0", "1", "é", "x y", 'q"t', "a-b"])
texts = st.one_of(
    st.sampled_from(["", "a", "b", "ab", "a\0", "a\0b", "B", "é", "zz", "\U0001f600", "\uffff", "10", "\\u0000"]),
    st.text(max_size=3),
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from(
        [2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, -(2**63), -(2**63) - 1, 2**64, 10**30, 0.1, -0.0, 0.5, 1.0, 1e300,
         2.0**53, 2.0**63, 5e-324, 0.1 + 0.2, 123456789.123456789]
    ),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=8,
)
documents = st.dictionaries(keys, values, max_size=4)
paths = st.lists(keys, min_size=1, max_size=3).map(".".join)
orders = st.sampled_from(["$gt", "$gte", "$lt", "$lte"])


def _operators(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.builds(lambda value: {"$eq": value}, values),
        st.builds(lambda value: {"$ne": value}, values),
        st.builds(lambda operator, value: {operator: value}, orders, st.one_of(numbers, texts)),
        st.builds(lambda operator, found: {operator: found}, st.sampled_from(["$in", "$nin", "$all"]),
                  st.lists(values, max_size=3)),
        st.builds(lambda flag: {"$exists": flag}, st.booleans()),
        st.builds(lambda size: {"$size": size}, st.integers(0, 3)),
        st.builds(lambda pattern: {"$regex": pattern}, st.sampled_from(["a", "^a", "b$", "(?i)B", ".", "^$"])),
        st.builds(lambda query: {"$elemMatch": query}, inner),
    )  # fmt: skip


queries = st.recursive(
    st.dictionaries(paths, st.one_of(values.filter(lambda each: not isinstance(each, dict)), _operators(st.just({}))),
                    max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda word, parts: {word: parts}, st.sampled_from(["$and", "$or", "$nor"]),
                  st.lists(inner, min_size=1, max_size=3)),
        st.dictionaries(paths, _operators(inner), max_size=2),
        st.dictionaries(paths, st.builds(lambda tests: {"$not": tests}, _operators(inner)), max_size=2),
    ),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=400, deadline=None, print_blob=True)
@given(query=queries, found=st.lists(documents, max_size=8))
@example(query={"a": {"$gt": "a"}}, found=[{"a": "a\0b"}])
@example(query={"a": {"$ne": "a"}}, found=[{"a": "a\0b"}])
@example(query={"a.b": {"$gt": 1}}, found=[{"a": [{"b": 2}]}])
@example(query={"$nor": [{"a": {"$in": ["x", "a"]}}]}, found=[{"a": "a"}, {"a": ["a"]}, {}])
def test_sqlite_takes_what_memory_takes(query: dict[str, Any], found: list[dict[str, Any]]) -> None:
    """SQL may take more, for what it takes is looked at once more; it must never take less."""
    tree = parse(json.dumps(query))
    takes = matcher(tree)
    sql, parameters = sqlite_filters.compile(tree)
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE TABLE records (number INTEGER PRIMARY KEY, document TEXT)")
        connection.executemany(
            "INSERT INTO records VALUES (?, ?)",
            [(number, json.dumps(each, ensure_ascii=False)) for number, each in enumerate(found)],
        )
        taken = {row[0] for row in connection.execute(f"SELECT number FROM records WHERE {sql}", parameters)}
    finally:
        connection.close()
    wanted = {number for number, each in enumerate(found) if takes(each)}
    assert wanted <= taken


@pytest.mark.parametrize(
    "query",
    [
        {"status.state": "RUNNING"},
        {"details.acc": {"$gt": 0.9}},
        {"details.n": {"$in": [1, 2]}},
        {"status.state": {"$nin": ["SUCCEEDED", "FAILED"]}},
        {"status.state": {"$not": {"$eq": "SUCCEEDED"}}},
        {"$or": [{"labels.a": "x"}, {"labels.a": "y"}]},
    ],
)
def test_common_filters_are_judged_by_sqlite(query: dict[str, Any]) -> None:
    """What matches nothing must not make us read every document in Python."""
    sql, parameters = sqlite_filters.compile(parse(json.dumps(query)))
    document = {"status": {"state": "SUCCEEDED"}, "details": {"acc": 0.5, "n": 3}, "labels": {"a": "z"}}
    connection = sqlite3.connect(":memory:")
    row = connection.execute(
        f"SELECT 1 FROM (SELECT ? AS document) WHERE {sql}", [json.dumps(document), *parameters]
    ).fetchone()
    connection.close()
    assert row is None


atoms = st.sampled_from(["a", "b", "c", ".", "[ab]", "[^a]", r"\d", r"\W", r"\s", "1", " ", r"\.", "[a-c1]", "é"])
patterns = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.builds(lambda one, other: one + other, inner, inner),
        st.builds(lambda one, other: f"({one}|{other})", inner, inner),
        st.builds(lambda one, how: f"(?:{one}){how}", inner, st.sampled_from(["*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])),
        st.builds(lambda one: f"^{one}", inner),
        st.builds(lambda one: f"{one}$", inner),
    ),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(pattern=patterns, flags=st.sampled_from(["", "(?i)", "(?s)"]), text=st.text("abcA1 .\né", max_size=8))
def test_patterns_mean_what_they_mean_elsewhere(pattern: str, flags: str, text: str) -> None:
    import re

    try:
        ours = Pattern(flags + pattern)
    except BadPattern:
        return
    theirs = re.compile(
        flags + pattern.replace("$", r"\Z").replace(r"\W", "[^a-zA-Z0-9_]"), re.ASCII if not flags else 0
    )
    assert ours.search(text) == bool(theirs.search(text))


@pytest.mark.parametrize(
    "pattern", ["a*a*a*a*a*a*a*b", "(a|a|a)*b", ".*.*.*.*=.*b", "(?:a?){100}b", "[a-z]+[a-z]+[a-z]+1"]
)
def test_no_pattern_keeps_us_busy(pattern: str) -> None:
    try:
        ours = Pattern(pattern)
    except BadPattern:
        return
    began = time.process_time()
    assert not ours.search("a" * 20_000)
    # A backtracking engine would need longer than the universe has: the bound is about which, not about how fast.
    assert time.process_time() - began < 30
