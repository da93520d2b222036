"""Errors of the contract in the words of the command."""

from __future__ import annotations

import pytest

from noronha.cli import wording
from noronha.rpc import names
from noronha.rpc.errors import FailedPrecondition, InvalidArgument, NotFound


@pytest.mark.parametrize(
    "name,said",
    [
        ("models/nope", "model nope does not exist; see 'nha model list'"),
        ("projects/p", "project p does not exist; see 'nha proj list'"),
        ("projects/p/trainings/x", "training p:x does not exist; see 'nha train list --proj p'"),
        ("projects/p/builds/v1.0@2", "build p:v1.0@2 does not exist; see 'nha bvers list --proj p'"),
        ("projects/p/deployments/d", "deployment p:d does not exist; see 'nha depl list --proj p'"),
        ("models/m/versions/v@3", "model version m:v@3 does not exist; see 'nha movers list --model m'"),
        ("models/m/datasets/d.1", "dataset m:d.1 does not exist; see 'nha ds list --model m'"),
        ("projects/p/deployments/d/replicas/r", "replica p:d:r does not exist"),
    ],
)
def test_what_is_not_found_is_named_as_people_type_it_with_where_to_look(name: str, said: str) -> None:
    assert wording.in_words(NotFound(f"{name} does not exist", name=name)) == said


def test_every_kind_of_name_is_said_in_words() -> None:
    for kind, pattern in names.PATTERNS.items():
        name = names.join(kind, *("1" if "revision" in part else "a" for part in pattern.split("/") if "{" in part))
        assert "/" not in wording.in_words(FailedPrecondition(f"{name} is busy", name=name)), name


def test_files_and_addresses_stay_as_they_are() -> None:
    for line in (
        "Dockerfile line 3: models/clf.pkl is not in the project",
        "/srv/projects/p/trainings/t cannot be read",
        "see https://host/models/m/versions/v",
        "write it as projects/{project}/trainings/{training}",
    ):
        assert wording.in_words(FailedPrecondition(line)) == line


def test_a_kind_that_is_said_already_is_not_said_twice() -> None:
    assert wording.in_words(FailedPrecondition("training projects/p/trainings/t runs")) == "training p:t runs"
    users = "models/m/versions/a, models/m/versions/b"
    error = FailedPrecondition(f"models/m is in use by {users}; delete them", name="models/m", users=users)
    assert wording.in_words(error) == "model m is in use by model version m:a, model version m:b; delete them"


@pytest.mark.parametrize(
    "field,option",
    [
        ("model_id", "--name"),
        ("build_id", "--tag"),
        ("training.environment['PATH']", "--env-var PATH"),
        ("deployment.spec.mounts[1].target", "--mount target"),
        ("model.model_files[0].max_mb", "--model-file max_mb"),
        ("project.git_repository", "--git-repo"),
        ("page_token", "page_token"),
    ],
)
def test_fields_are_said_as_the_options_that_fill_them(field: str, option: str) -> None:
    error = InvalidArgument(f"{field} is wrong; {field}s are not", violations=[(field, "is wrong")])
    assert wording.in_words(error) == f"{option} is wrong; {field}s are not"
