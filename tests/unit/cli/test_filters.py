"""Filters with the fields that people know become filters in the contract's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from noronha.cli import documents, filter_fields, filters, output
from noronha.metadata import documents as seen
from noronha.metadata import kinds
from noronha.metadata.filters import matcher, parse
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
        ("training", {"status.state": "WAITING"}, {"status.state": "PENDING"}),
        ("build", {"status.state": {"$ne": "finished"}}, {"status.state": {"$ne": "SUCCEEDED"}}),
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
        ("model", {"created": {"$gt": "2026-11-23T07:17:00Z"}}, {"create_time": {"$gt": "2026-11-23T07:17:00.000000Z"}}),
        ("model", {"created": "2026-11-23 07:17:00+02:00"},
         {"create_time": {"$gte": "2026-11-23T05:17:00.000000Z", "$lte": "2026-11-23T05:17:00.999999Z"}}),
        ("model", {"created": "2026-11-23T07:17:00.25Z"}, {"create_time": "2026-11-23T07:17:00.250000Z"}),
        ("deployment", {"availability": "29%"}, {"status.availability": {"$gte": 0.285, "$lte": 0.295}}),
        ("deployment", {"availability": {"$gt": "50%"}}, {"status.availability": {"$gt": 0.5}}),
        ("dataset", {"status.anything": 1}, {"status.anything": 1}),
        ("dataset", {"$where": "x"}, {"$where": "x"}),
    ],
)  # fmt: skip
def test_the_table(kind: str, given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert filters.rewrite(kind, given) == wanted


def test_every_path_of_the_table_leads_somewhere() -> None:
    for kind, fields in filter_fields.FIELDS.items():
        places = [field.path for field in fields.values()] + list(filter_fields.PREFIXES.get(kind, {}).values())
        for path in places:
            parse(json.dumps({path: {"$exists": True}}), kinds.MESSAGES[kind])


@pytest.mark.parametrize(
    ("kind", "path", "hint"),
    [
        ("build", "tagg", "'tag'?"), ("training", "task.stat", "'task.state'?"), ("deployment", "movers.nme", "'movers.name'?"),
        ("model", "zzz", "what the mesh said"), ("dataset", "files.pth", "what the mesh said"), ("dataset", "creatd", "'created'?"),
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


WHEN = {"create_time": "2026-11-23T07:17:00.250123Z", "update_time": "2026-11-23T08:00:00Z"}
STATUS = {
    "state": "SUCCEEDED", "progress": 0.5, "start_time": "2026-11-23T07:17:01Z", "update_time": "2026-11-23T07:18:00.5Z",
    "end_time": "2026-11-23T07:19:00Z", "error": {"message": "it broke"}, "reason": "BROKE", "exit_code": 3,
    "limits_applied": True,
}  # fmt: skip
RUN = {
    "environment": {"A": "1"}, "mounts": [{"source": "/a", "target": "/b"}],
    "resources": {"profile": "big", "limits": {"cpu_milli": 1000, "memory_mb": 64}},
}  # fmt: skip
PUBLISHED = {
    "revision": 2, "stored": True, "compressed": True, "storage_class": "STORAGE_CLASS_LIGHTWEIGHT",
    "details_json": '{"acc": 0.5}', "size_bytes": 7, "labels": {"team": "blue"}, **WHEN, "update_time": WHEN["create_time"],
    "files": [{"path": "a.csv", "digest": "sha256:ab", "size_bytes": 7}],
}  # fmt: skip
FULL: dict[str, dict[str, Any]] = {
    "model": {
        "name": "models/m", "description": "d", "model_files": [{"name": "a"}], "data_files": [{"name": "b"}],
        "labels": {"team": "blue"}, **WHEN,
    },
    "project": {
        "name": "projects/p", "description": "d", "models": ["models/m"], "home_dir": "/h", "git_repository": "g",
        "docker_repository": "r", "labels": {"team": "blue"}, **WHEN,
    },
    "build": {
        "name": "projects/p/builds/t", "revision": 2, "source": {"origin": "GIT", "git_commit": "c", "git_dirty": True},
        "artifact": {"id": "i", "image": "im", "python_version": "3.11", "size_bytes": 7}, "status": STATUS,
        "build_time": "2026-11-23T07:19:00Z", "notices": ["n"], "labels": {"team": "blue"}, **WHEN,
    },
    "dataset": {"name": "models/m/datasets/d", **PUBLISHED},
    "model_version": {
        "name": "models/m/versions/v", "training": "projects/p/trainings/t", "dataset": "models/m/datasets/d@1",
        "training_snapshot": {"name": "projects/p/trainings/t", "notebook": "n", "build": "projects/p/builds/t@1"},
        "dataset_snapshot": {"name": "models/m/datasets/d", "revision": 1}, "pretrained": "models/m/versions/v@1",
        **PUBLISHED,
    },
    "training": {
        "name": "projects/p/trainings/t", "build": "projects/p/builds/t@1", "notebook": "n", "status": STATUS,
        "details_json": '{"acc": 0.5}', "params_json": '{"gamma": 1}', "datasets": ["models/m/datasets/d@1"],
        "pretrained": ["models/m/versions/v@1"], "published": ["models/m/versions/v@2"], **RUN,
        "target_deployment": "projects/p/deployments/d", "target_deployment_updated": True,
        "executed_notebook": {"path": "n.ipynb", "digest": "sha256:ab"}, "warnings": ["w"], "labels": {"team": "blue"}, **WHEN,
    },
    "deployment": {
        "name": "projects/p/deployments/d", "replicas": 2, "port": 8080, "revision": 3, "details_json": '{"a": 1}',
        "spec": {
            "build": "projects/p/builds/t@1", "notebook": "n", "params_json": '{"gamma": 1}',
            "model_versions": ["models/m/versions/v@2"], **RUN,
        },
        "status": {
            "state": "DEGRADED", "ready_replicas": 1, "availability": 0.29, "serving_revision": 2, "reason": "BROKE",
            "revisions": [{"revision": 2, "desired_replicas": 2, "ready_replicas": 1}], "error": {"message": "it broke"},
            "port_error": "taken", "address": "127.0.0.1:8080",
        },
        "labels": {"team": "blue"}, **WHEN,
    },
}  # fmt: skip
"""A record of each kind with every field that the command shows."""


@pytest.mark.parametrize("kind", documents.COLUMNS)
def test_everything_that_is_shown_can_be_filtered_or_says_why_not(kind: str) -> None:
    message = kinds.MESSAGES[kind]
    record = json_format.ParseDict(FULL[kind], message())
    shown = json.loads(output.to_json(documents.of(record)))
    values = {**shown, **{f"task.{key}": value for key, value in shown.get("task", {}).items()}}
    values |= dict.fromkeys({"created", "modified"} - shown.keys(), "2026-11-23T07:17:00.250123Z")

    def takes(test: Any, path: str) -> bool:
        return matcher(parse(filters.combine(kind, json.dumps({path: test})), message))(seen.of(record))

    wholes = set()
    for path, value in values.items():
        assert value not in ("", None, [], {}), f"{path} of {kind} is empty in this test: fill it"
        assert takes({"$exists": True}, path) and not takes({"$exists": False}, path), path
        try:
            taken = takes(value, path)
        except InvalidArgument as refused:
            assert f"{path!r}, which cannot be filtered as a whole" in refused.message and isinstance(value, dict | list)
            takes({"$exists": True}, refused.message.rpartition("such as ")[2].strip("'"))
            wholes.add(path)
        else:
            assert taken, f"{path} of {kind} does not take the value that is shown: {value!r}"
    assert all(isinstance(value, dict | list) for path, value in values.items() if path in wholes)


def test_the_documents_list_every_field() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "filters.md").read_text(encoding="utf-8")
    table = filter_fields.names_table()
    assert table in text, f"docs/filters.md has another table than this one:\n{table}"


@pytest.mark.parametrize(
    ("kind", "query", "known"),
    [
        ("training", {"status.state": "BANANA"}, "known: WAITING, RUNNING, FINISHED, FAILED, CANCELLED;"),
        ("build", {"built_from": "banana"}, "known: local, git, pre-built;"),
        ("deployment", {"state": "banana"}, "known: PENDING, PROGRESSING, READY, DEGRADED, FAILED, STOPPED;"),
    ],
)
def test_a_word_that_is_never_shown_is_refused_with_those_that_are(kind: str, query: dict[str, Any], known: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(filters.combine(kind, json.dumps(query)), kinds.MESSAGES[kind])
    error = filters.with_hint(kind, caught.value)
    assert known in error.message and error.reason == "BAD_FILTER"
    assert error.violations == caught.value.violations and error.metadata == caught.value.metadata


@pytest.mark.parametrize("value", ["2026", "yesterday", "2026-13-01", "2026-11-23T25:00:00Z", "", "9999-12-31 23:59:59-23:59"])
def test_what_is_no_time_is_refused(value: str) -> None:
    for test in (value, {"$gt": value}, {"$in": [value]}):
        with pytest.raises(InvalidArgument, match="which is no time") as caught:
            filters.rewrite("training", {"task.end_time": test})
        assert caught.value.reason == "BAD_FILTER"


def test_a_time_as_it_is_printed_finds_what_it_was_printed_of() -> None:
    record = json_format.ParseDict(FULL["model"], kinds.MESSAGES["model"]())
    printed = output.to_text(documents.of(record)).partition("created: ")[2].splitlines()[0].strip("'")
    tree = parse(filters.combine("model", json.dumps({"created": printed})), kinds.MESSAGES["model"])
    assert matcher(tree)(seen.of(record)), printed


def test_a_field_that_is_inside_another_one_is_named() -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(filters.combine("training", '{"state": "FAILED"}'), kinds.MESSAGES["training"])
    assert "did you mean 'task.state'?" in filters.with_hint("training", caught.value).message
