"""Filters with 1.6's field paths become filters in the contract's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from noronha.cli import filters
from noronha.metadata import kinds
from noronha.metadata.filters import parse
from noronha.rpc.errors import InvalidArgument


@pytest.mark.parametrize(
    "kind,given,wanted",
    [
        ("model", {"name": "iris"}, {"name": "models/iris"}),
        ("model", {"_id": "iris"}, {"name": "models/iris"}),
        ("model", {"desc": "x"}, {"description": "x"}),
        ("model", {"name": {"$in": ["a", "b"]}}, {"$or": [{"name": "models/a"}, {"name": "models/b"}]}),
        ("model", {"name": {"$ne": "a"}}, {"$nor": [{"name": "models/a"}]}),
        ("model", {"name": {"$regex": "^iris"}}, {"name": {"$regex": "^models/iris"}}),
        ("project", {"models": "iris"}, {"models": "models/iris"}),
        ("project", {"git_repo": "u", "docker_repo": "d"}, {"git_repository": "u", "docker_repository": "d"}),
        ("build", {"tag": "latest"}, {"name": {"$regex": "/latest$"}}),
        ("build", {"proj": "botanics"}, {"name": {"$regex": "^projects/botanics/"}}),
        ("build", {"built_from": "pre-built"}, {"source.origin": "PRE_BUILT"}),
        ("training", {"task.state": "finished"}, {"status.state": "SUCCEEDED"}),
        ("training", {"task.state": {"$in": ["waiting", "RUNNING"]}}, {"status.state": {"$in": ["PENDING", "RUNNING"]}}),
        ("training", {"details.params.gamma": {"$gt": 0.1}}, {"params.gamma": {"$gt": 0.1}}),
        ("training", {"bvers.tag": "v1.0"}, {"build": {"$regex": r"/v1\.0@[0-9]+$"}}),
        ("model_version", {"_id": "iris:v1"}, {"name": "models/iris/versions/v1"}),
        ("model_version", {"name": "v1"}, {"name": {"$regex": "/v1$"}}),
        ("model_version", {"train": "p:t"}, {"training_snapshot.name": "projects/p/trainings/t"}),
        ("model_version", {"train.name": "t"}, {"training_snapshot.name": {"$regex": "/t$"}}),
        ("model_version", {"ds.name": "d"}, {"dataset": {"$regex": "/d@[0-9]+$"}}),
        ("model_version", {"details.metrics.acc": {"$gt": 0.9}}, {"details.metrics.acc": {"$gt": 0.9}}),
        ("model_version", {"lightweight": True}, {"storage_class": "STORAGE_CLASS_LIGHTWEIGHT"}),
        ("model_version", {"lightweight": False}, {"storage_class": {"$ne": "STORAGE_CLASS_LIGHTWEIGHT"}}),
        ("deployment", {"movers.name": "v1"}, {"spec.model_versions": {"$regex": "/v1@[0-9]+$"}}),
        ("deployment", {"details.params": {"$exists": True}}, {"spec.params": {"$exists": True}}),
        ("model_version", {"train.details.params.gamma": 0.1}, {"training_snapshot.params.gamma": 0.1}),
        ("model_version", {"train.details.note": "x"}, {"training_snapshot.details.note": "x"}),
        ("training", {"$or": [{"name": "a"}, {"task.state": "failed"}]},
         {"$or": [{"name": {"$regex": "/a$"}}, {"status.state": "FAILED"}]}),
        ("dataset", {"name": "d", "model": "m"},
         {"$and": [{"name": {"$regex": "/d$"}}, {"name": {"$regex": "^models/m/"}}]}),
        ("dataset", {"status.anything": 1}, {"status.anything": 1}),
        ("dataset", {"$where": "x"}, {"$where": "x"}),
    ],
)  # fmt: skip
def test_the_table(kind: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert filters.rewrite(kind, given) == wanted


def test_every_path_of_the_table_leads_somewhere() -> None:
    for kind, fields in filters.FIELDS.items():
        places = [field.path for field in fields.values()] + list(filters.PREFIXES.get(kind, {}).values())
        for path in places:
            parse(json.dumps({path: "x"}), kinds.MESSAGES[kind])


@pytest.mark.parametrize(
    ("kind", "path", "hint"),
    [
        ("build", "tagg", "'tag'?"), ("training", "task.stat", "'task.state'?"), ("deployment", "movers.nme", "'movers.name'?"),
        ("model", "zzz", "what the mesh said"),
    ],
)  # fmt: skip
def test_the_nearest_field_of_old_is_named_too(kind: str, path: str, hint: str) -> None:
    violations = [("filter", "has a field that is not there")]
    said = InvalidArgument("what the mesh said", reason="BAD_FILTER", violations=violations, field=path, near="x")
    error = filters.with_hint(kind, said)
    assert hint in error.message and error.reason == "BAD_FILTER"
    assert error.violations == violations and error.metadata == {"field": path, "near": "x"}


def test_dots_in_names_match_themselves_alone() -> None:
    assert filters.rewrite("model_version", {"name": "v1.0"}) == {"name": {"$regex": r"/v1\.0$"}}


def test_conditions_of_options_are_joined_to_the_users() -> None:
    joined = filters.combine("model_version", '{"name": "v1"}', {"training": "t"})
    assert json.loads(joined) == {"$and": [{"name": {"$regex": "/v1$"}}, {"training": "t"}]}
    assert json.loads(filters.combine("model", None, {"a": 1})) == {"a": 1}


def test_an_operator_that_names_do_not_take_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"\$gt"):
        filters.rewrite("model_version", {"name": {"$gt": "a"}})
