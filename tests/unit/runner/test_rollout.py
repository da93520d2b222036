"""What is done next about replicas, and how a deployment stands, by tables."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from google.rpc import status_pb2

from noronha.runner import rollout, sessions
from noronha.runner.rollout import Failures
from noronha.v1 import deployment_pb2
from noronha.v1.replica_pb2 import Replica

State = deployment_pb2.DeploymentStatus
S, R, D, F = Replica.STARTING, Replica.READY, Replica.DRAINING, Replica.FAILED


def deployment(revision: int = 1, replicas: int | None = 1, serving: int = 0) -> deployment_pb2.Deployment:
    made = deployment_pb2.Deployment(name="projects/p/deployments/d", revision=revision, generation=7, port=0)
    if replicas is not None:
        made.replicas = replicas
    made.status.serving_revision = serving
    return made


def replicas(*given: tuple[int, int]) -> list[Replica]:
    made = []
    for number, (revision, state) in enumerate(given):
        each = Replica(name=f"projects/p/deployments/d/replicas/r{number}", revision=revision, state=state)
        each.create_time.FromSeconds(number + 1)
        made.append(each)
    return made


def numbers(found: list[Replica]) -> list[int]:
    return [int(each.name[-1]) for each in found]


def failed(count: int, reason: str = "TASK_KILLED", retry_at: float = 0.0) -> Failures:
    return Failures(count, reason, sessions.failure(reason, "it broke"), retry_at)


@pytest.mark.parametrize(
    ("wanted", "given", "start", "drain", "stop"),
    [
        # From nothing.
        (deployment(replicas=None), [], {1: 1}, [], []),
        (deployment(replicas=3), [(1, S)], {1: 2}, [], []),
        (deployment(replicas=20), [], {1: rollout.AT_ONCE}, [], []),
        (deployment(replicas=2, serving=1), [(1, R), (1, R)], {}, [], []),
        # One has died.
        (deployment(replicas=2, serving=1), [(1, R)], {1: 1}, [], []),
        # Fewer: the youngest goes; one on its way before one that serves.
        (deployment(replicas=1, serving=1), [(1, R), (1, R)], {}, [1], []),
        (deployment(replicas=1, serving=1), [(1, S), (1, R)], {}, [], [0]),
        (deployment(replicas=0, serving=1), [(1, R), (1, S)], {}, [0], [1]),
        # A new revision: the old one stays until all of the new one is ready.
        (deployment(2, 2, 1), [(1, R), (1, R)], {2: 2}, [], []),
        (deployment(2, 2, 1), [(1, R), (1, R), (2, R), (2, S)], {}, [], []),
        (deployment(2, 2, 2), [(1, R), (1, R), (2, R), (2, R)], {}, [0, 1], []),
        (deployment(2, 2, 2), [(1, D), (1, R), (2, R), (2, R)], {}, [1], []),
        # An old one that dies meanwhile is made good.
        (deployment(2, 2, 1), [(1, R), (2, S), (2, S)], {1: 1}, [], []),
        # One between them that never served is given up.
        (deployment(3, 1, 1), [(1, R), (2, S)], {3: 1}, [], [1]),
        # The newest wants fewer: the old one keeps what it has until the newest is there.
        (deployment(2, 1, 1), [(1, R), (1, R), (2, S)], {}, [], []),
        (deployment(2, 1, 2), [(1, R), (1, R), (2, R)], {}, [0, 1], []),
        # None is wanted: nothing is kept.
        (deployment(2, 0, 1), [(1, R), (2, S)], {}, [0], [1]),
        # The first revision never served.
        (deployment(2, 1, 0), [(1, S)], {2: 1}, [], [0]),
    ],
)
def test_what_is_next(
    wanted: deployment_pb2.Deployment,
    given: list[tuple[int, int]],
    start: Mapping[int, int],
    drain: list[int],
    stop: list[int],
) -> None:
    plan = rollout.plan(wanted, replicas(*given), (), {}, 100.0)
    assert (dict(plan.start), numbers(plan.drain), numbers(plan.stop)) == (start, drain, stop)


def test_revisions_that_share_traffic_keep_their_replicas() -> None:
    plan = rollout.plan(deployment(3, 1, 3), replicas((3, R), (2, R), (1, R)), {1}, {}, 0.0)
    assert numbers(plan.drain) == [1]
    assert rollout.plan(deployment(3, 1, 3), replicas((3, R)), {1}, {}, 0.0).start == {1: 1}


@pytest.mark.parametrize(
    ("wanted", "given", "failed", "left"),
    [
        ({1: 1}, [], [(1, F)], [0]),
        # As many as are missing, the latest; nobody's place is taken when more are wanted.
        ({1: 2}, [(1, R)], [(1, F), (1, F)], [1]),
        ({1: 3}, [], [(1, F), (1, F)], [0, 1]),
        ({1: 1}, [(1, S)], [(1, F)], []),
        ({1: 1}, [(1, D)], [(1, F)], [0]),
        # Fewer are wanted, or none, or another revision.
        ({1: 1}, [(1, R)], [(1, F), (1, F)], []),
        ({1: 0}, [], [(1, F)], []),
        ({2: 1}, [], [(1, F)], []),
        ({2: 1, 1: 1}, [], [(1, F), (2, F), (1, F)], [1, 2]),
    ],
)
def test_a_place_is_taken_once(
    wanted: Mapping[int, int], given: list[tuple[int, int]], failed: list[tuple[int, int]], left: list[int]
) -> None:
    assert numbers(rollout.vacated(wanted, replicas(*given), replicas(*failed))) == left


def test_after_a_failure_one_is_tried_when_its_time_has_come() -> None:
    failures = {1: failed(2, retry_at=50.0)}
    waiting = rollout.plan(deployment(replicas=5), [], (), failures, 40.0)
    assert (waiting.start, waiting.retry_at) == ({}, 50.0)
    assert rollout.plan(deployment(replicas=5), [], (), failures, 50.0).start == {1: 1}


def test_pauses_grow_and_are_bounded() -> None:
    failures = Failures()
    pauses = []
    for _ in range(12):
        failures.add("TASK_KILLED", status_pb2.Status(), 1000.0, served=False)
        pauses.append(failures.retry_at - 1000.0)
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == rollout.MAX_PAUSE


def test_a_replica_that_served_is_replaced_at_once() -> None:
    failures = Failures()
    failures.add("TASK_KILLED", status_pb2.Status(), 1000.0, served=True)
    assert failures.retry_at == 1000.0
    failures.add("TASK_KILLED", status_pb2.Status(), 1000.0, served=True)
    assert failures.retry_at > 1000.0


@pytest.mark.parametrize(
    ("wanted", "given", "failures", "routed", "state", "availability"),
    [
        (deployment(), [], {}, True, State.PROGRESSING, 0.0),
        (deployment(), [(1, S)], {}, True, State.PROGRESSING, 0.0),
        (deployment(serving=1), [(1, R)], {}, False, State.PROGRESSING, 1.0),
        (deployment(serving=1), [(1, R)], {}, True, State.READY, 1.0),
        (deployment(replicas=2, serving=1), [(1, R), (1, S)], {}, True, State.PROGRESSING, 0.5),
        (deployment(replicas=2, serving=1), [(1, R), (1, S)], {1: failed(1)}, True, State.DEGRADED, 0.5),
        (deployment(replicas=2, serving=1), [(1, R), (1, R)], {1: failed(1)}, True, State.READY, 1.0),
        (deployment(), [], {1: failed(1)}, True, State.PROGRESSING, 0.0),
        (deployment(), [], {1: failed(3)}, True, State.FAILED, 0.0),
        (deployment(), [], {1: failed(1, "CELL_RAISED")}, True, State.FAILED, 0.0),
        (deployment(2, 1, 1), [(1, R)], {2: failed(1, "CELL_RAISED")}, True, State.DEGRADED, 1.0),
        (deployment(2, 1, 1), [(1, R), (2, S)], {}, True, State.PROGRESSING, 1.0),
        (deployment(2, 1, 2), [(1, D), (2, R)], {}, True, State.READY, 1.0),
        (deployment(2, 1, 2), [(1, R), (2, R)], {}, True, State.PROGRESSING, 1.0),
        (deployment(replicas=0), [(1, D)], {}, True, State.PROGRESSING, 0.0),
        (deployment(replicas=0), [], {}, True, State.STOPPED, 0.0),
    ],
)
def test_how_it_stands(
    wanted: deployment_pb2.Deployment,
    given: list[tuple[int, int]],
    failures: Mapping[int, Failures],
    routed: bool,
    state: int,
    availability: float,
) -> None:
    status = rollout.status_of(wanted, replicas(*given), (), failures, None, routed, "h:1", "")
    assert (State.State.Name(status.state), status.availability) == (State.State.Name(state), availability)
    assert status.observed_generation == 7
    assert bool(status.reason) == (state in (State.DEGRADED, State.FAILED))


def test_ready_but_not_routed_says_why() -> None:
    why = sessions.failure("PROXY_DOWN", "no proxy runs")
    status = rollout.status_of(deployment(serving=1), replicas((1, R)), (), {}, why, False, "h:1", "")
    assert (status.state, status.reason) == (State.DEGRADED, "PROXY_DOWN")


def test_each_revision_is_told_of() -> None:
    failures = {2: failed(1, "CELL_RAISED")}
    status = rollout.status_of(deployment(2, 2, 1), replicas((1, R), (1, R)), (), failures, None, True, "", "")
    assert [(each.revision, each.desired_replicas, each.ready_replicas) for each in status.revisions] == [
        (2, 2, 0), (1, 2, 2),
    ]  # fmt: skip
    assert status.revisions[0].error.message == "it broke"


def test_a_port_that_another_program_holds_degrades_it() -> None:
    wanted = deployment(serving=1)
    wanted.port = 9000
    status = rollout.status_of(wanted, replicas((1, R)), (), {}, None, True, "127.0.0.1:9000", "in use")
    assert (status.state, status.reason, status.address) == (State.DEGRADED, "PORT_IN_USE", "")
    assert status.port_error == "in use" and "through the router" in status.error.message
    status = rollout.status_of(wanted, replicas((1, R)), (), {}, None, True, "127.0.0.1:9000", "")
    assert (status.state, status.address) == (State.READY, "127.0.0.1:9000")
