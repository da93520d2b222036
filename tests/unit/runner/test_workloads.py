"""From records to workloads: names, variables, what may be asked for."""

from __future__ import annotations

import pytest
from google.protobuf import duration_pb2

from noronha.rpc.errors import InvalidArgument
from noronha.runner import admission, workloads
from noronha.runner.backend import TASK_COMMAND
from noronha.v1 import build_pb2, deployment_pb2, mount_pb2, replica_pb2, resources_pb2, training_pb2


def training(name: str = "projects/iris/trainings/first", made: int = 1) -> training_pb2.Training:
    record = training_pb2.Training(
        name=name,
        environment={"A": "b=c"},
        mounts=[mount_pb2.Mount(source="/a", target="/b")],
        timeout=duration_pb2.Duration(seconds=90),
        build_snapshot=build_pb2.Build(artifact=build_pb2.Artifact(environment_digest="sha256:" + "a" * 64)),
        resources=resources_pb2.Resources(limits=resources_pb2.Resources.Amount(memory_mb=1536)),
    )
    record.create_time.FromNanoseconds(made)
    return record


def test_a_training_becomes_a_workload() -> None:
    record = training()
    made = workloads.of_training(record, id="x", address="unix:/s", token="t", grace=3.0)
    assert made.command == TASK_COMMAND
    assert made.resource == record.name
    assert made.environment == {"A": "b=c", "AM_I_ON_BOARD": "Yes", "CONTAINER_PURPOSE": "nha-train"}
    assert (made.timeout, made.grace, made.port) == (90.0, 3.0, 0)
    assert made.resources.limits.memory_mb == 1536
    assert [each.target for each in made.mounts] == ["/b"]
    assert made.artifact.environment_digest.endswith("aaa")


def test_a_replica_becomes_a_workload() -> None:
    replica = replica_pb2.Replica(name="projects/p/deployments/d/replicas/r1-abc", revision=1)
    made = workloads.of_replica(replica, deployment_pb2.DeploymentSpec(environment={"A": "1"}), id="x")
    assert made.environment == {
        "A": "1", "AM_I_ON_BOARD": "Yes", "CONTAINER_PURPOSE": "nha-depl", "IS_IT_OPEN_SEA": "Yes",
    }  # fmt: skip
    assert made.port == 8080


def test_ids_belong_to_one_record_of_one_tenant() -> None:
    ids = {
        workloads.training_id(training(), "default"),
        workloads.training_id(training(made=2), "default"),
        workloads.training_id(training(), "other"),
        workloads.training_id(training("projects/a/trainings/b-c"), "default"),
        workloads.training_id(training("projects/a-b/trainings/c"), "default"),
        workloads.training_id(training("projects/Iris/trainings/First"), "default"),
    }
    assert len(ids) == 6
    for id in ids:
        assert len(id) <= 32
        assert id == id.lower() and id.replace("-", "").isalnum()
    assert workloads.training_id(training(), "default") == workloads.training_id(training(), "default")


@pytest.mark.parametrize(
    "name", ["PATH", "PYTHONPATH", "LD_PRELOAD", "AM_I_ON_BOARD", "CONTAINER_PURPOSE", "NHA_X", "NORONHA_TASK_DIR",
             "1A", "A-B", "A B", "A=B", "", "A\n", "é"],
)  # fmt: skip
def test_variables_that_cannot_be_given(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        admission.check_environment({name: "x", "FINE": "y"}, "training.environment")
    assert caught.value.reason == "BAD_ENVIRONMENT"
    assert len(caught.value.violations) == 1


def test_variables_are_given_as_they_are() -> None:
    given = {"A": "b=c", "B": "", "_c9": "line\nline\t$HOME '\""}
    assert admission.check_environment(given, "e") == given
    with pytest.raises(InvalidArgument):
        admission.check_environment({"A": "x\0y"}, "e")
    with pytest.raises(InvalidArgument):
        admission.check_environment({"A": "x" * 100_000}, "e")


@pytest.mark.parametrize(
    ("path", "full"),
    [
        ("train", "train.ipynb"),
        ("notebooks/train", "notebooks/train.ipynb"),
        ("a/b.ipynb", "a/b.ipynb"),
        ("a b", "a b.ipynb"),
    ],
)
def test_notebooks_get_their_ending(path: str, full: str) -> None:
    assert admission.notebook_path(path, "notebook") == full


@pytest.mark.parametrize("path", ["", "/etc/x", "../x", "a/../../x", "a//b", "./x", "a\0b", "a\nb", "x" * 2000])
def test_notebooks_lie_inside_the_project(path: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        admission.notebook_path(path, "notebook")
    assert caught.value.reason == "BAD_NOTEBOOK"


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("limits", "cpu_milli", -1),
        ("limits", "memory_mb", -1),
        ("requests", "memory_mb", -5),
        ("limits", "cpu_milli", 1 << 50),
    ],
)
def test_resources_that_make_no_sense(part: str, field: str, value: int) -> None:
    resources = resources_pb2.Resources()
    setattr(getattr(resources, part), field, value)
    with pytest.raises(InvalidArgument) as caught:
        admission.check_resources(resources, "r")
    assert caught.value.violations[0][0] == f"r.{part}.{field}"


def test_more_asked_for_than_allowed() -> None:
    amount = resources_pb2.Resources.Amount
    with pytest.raises(InvalidArgument):
        admission.check_resources(
            resources_pb2.Resources(requests=amount(memory_mb=2), limits=amount(memory_mb=1)), "r"
        )
    admission.check_resources(resources_pb2.Resources(requests=amount(memory_mb=2)), "r")


@pytest.mark.parametrize("replicas", [-1, 1001, 10_000])
def test_replicas_are_bounded(replicas: int) -> None:
    with pytest.raises(InvalidArgument):
        admission.check_replicas(replicas)


@pytest.mark.parametrize("port", [-1, 65536])
def test_ports_are_ports(port: int) -> None:
    with pytest.raises(InvalidArgument):
        admission.check_port(port)
