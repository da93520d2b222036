"""How people write names, and how the contract does."""

from __future__ import annotations

import pytest

from noronha.client.references import last_id, to_key, to_name, within
from noronha.rpc.errors import InvalidArgument


@pytest.mark.parametrize(
    "kind,reference,name",
    [
        ("model", "iris", "models/iris"),
        ("model_version", "iris-clf:experiment-v1", "models/iris-clf/versions/experiment-v1"),
        ("model_version", "iris-clf:v1@2", "models/iris-clf/versions/v1@2"),
        ("dataset", "iris-clf:d", "models/iris-clf/datasets/d"),
        ("build", "p:my_tag", "projects/p/builds/my_tag"),
        ("training", "p:t", "projects/p/trainings/t"),
    ],
)
def test_there_and_back(kind: str, reference: str, name: str) -> None:
    assert to_name(kind, reference) == name
    assert to_key(name) == reference


@pytest.mark.parametrize(
    "kind,reference",
    [
        ("model_version", "iris"), ("model_version", "a:b:true"), ("model_version", ""), ("model", "a:b"),
        ("model_version", "iris:v1@0"), ("model_version", "iris:v1@x"), ("model", "iris@1"), ("dataset", "../x:y"),
        ("training", "p:a_b"),
    ],
)  # fmt: skip
def test_what_is_no_reference_is_refused(kind: str, reference: str) -> None:
    with pytest.raises(InvalidArgument):
        to_name(kind, reference)


def test_the_last_id_has_no_revision() -> None:
    assert last_id("models/m/versions/v@3") == "v"


@pytest.mark.parametrize("kind", ["training", "deployment", "build"])
@pytest.mark.parametrize("own", ["../../x", "x:y", "a b", "", "a\n", "-a"])
def test_an_id_inside_a_project_is_refused_by_its_grammar(kind: str, own: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        within(kind, "p", own)
    assert caught.value.reason == "BAD_NAME" and "projects/" not in str(caught.value)


def test_a_tag_inside_a_project_may_name_its_revision() -> None:
    assert within("build", "p", "my_tag@2") == "projects/p/builds/my_tag@2"
    assert within("training", "p", "t") == "projects/p/trainings/t"
    with pytest.raises(InvalidArgument):
        within("training", "p", "t@2")
