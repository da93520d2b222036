"""What to do next about a deployment's replicas, and how it stands: decisions without any I/O."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from google.rpc import status_pb2

from noronha.runner.sessions import failure, reason_of
from noronha.v1 import deployment_pb2, replica_pb2

LIVE = frozenset({replica_pb2.Replica.STARTING, replica_pb2.Replica.READY})
"""States of replicas that count towards what is wanted."""

CERTAIN = frozenset(
    {
        "NOTEBOOK_NOT_FOUND", "NOTEBOOK_INVALID", "NOTEBOOK_LANGUAGE", "PARAMETERS_INVALID", "CELL_RAISED",
        "NOT_SERVING", "BUILD_NOT_HERE", "MOUNT_NOT_POSSIBLE", "MOUNT_NOT_READABLE",
    }
)  # fmt: skip
"""Reasons that the next attempt most likely meets again."""

PATIENCE = 3
"""Failures in a row after which a revision counts as failing, whatever their reason."""

STEADY = 30.0
"""Seconds for which a replica must have been ready before its revision's failures are forgotten."""

MAX_PAUSE = 300.0
"""Longest time in seconds between two attempts."""

AT_ONCE = 8
"""Replicas of one deployment that are on their way at the same time."""


@dataclass
class Failures:
    """How a revision's replicas failed since one was steady."""

    count: int = 0
    reason: str = ""
    error: status_pb2.Status = field(default_factory=status_pb2.Status)
    retry_at: float = 0.0
    """Time from which on another attempt is made."""

    def add(self, reason: str, error: status_pb2.Status, now: float, served: bool) -> None:
        """Counts a failure. The first one of a replica that had served is made good at once."""
        self.count += 1
        self.reason = reason
        self.error = error
        pause = 0.0 if served and self.count == 1 else min(2.0 ** (self.count - 1), MAX_PAUSE)
        self.retry_at = now + pause

    @property
    def failing(self) -> bool:
        """Whether the revision is given little hope."""
        return self.count >= PATIENCE or (self.count > 0 and self.reason in CERTAIN)


@dataclass(frozen=True)
class Plan:
    """What to do next."""

    start: Mapping[int, int]
    """Replicas to start, by revision."""
    drain: Sequence[replica_pb2.Replica]
    """Ready replicas that are no longer wanted: out of the routes first, then stopped."""
    stop: Sequence[replica_pb2.Replica]
    """Replicas that were never routed and are no longer wanted."""
    retry_at: float | None
    """Time at which to look again although nothing happened."""


def wanted_replicas(deployment: deployment_pb2.Deployment) -> int:
    """Returns how many replicas are wanted; 1 when nobody said."""
    return deployment.replicas if deployment.HasField("replicas") else 1


def ready(replicas: Collection[replica_pb2.Replica], revision: int | None = None) -> list[replica_pb2.Replica]:
    """Returns the replicas that are ready, of one revision or of all."""
    return [
        each
        for each in replicas
        if each.state == replica_pb2.Replica.READY and (revision is None or each.revision == revision)
    ]


def targets(
    deployment: deployment_pb2.Deployment, replicas: Collection[replica_pb2.Replica], shared: Collection[int]
) -> dict[int, int]:
    """Returns how many replicas of each revision there should be.

    Until the newest revision is all ready, the one that serves keeps all its replicas, also when the newest wants
    fewer. ``shared`` are the revisions that traffic is shared among.
    """
    count = wanted_replicas(deployment)
    serving = deployment.status.serving_revision
    revisions = {deployment.revision, *shared} | ({serving} if serving else set())
    wanted = {revision: count for revision in sorted(revisions, reverse=True) if revision}
    if serving and serving != deployment.revision and count:
        wanted[serving] = max(count, len(ready(replicas, serving)))
    return wanted


def vacated(
    wanted: Mapping[int, int],
    replicas: Collection[replica_pb2.Replica],
    failed: Sequence[replica_pb2.Replica],
) -> list[replica_pb2.Replica]:
    """Returns those of the failed replicas whose places are still to be taken.

    ``wanted`` is how many replicas of each revision there should be, ``failed`` those that failed, in that order. Of a
    revision the latest are returned, as many as it misses: a place that was taken, or that is not wanted any more, is
    forgotten, so that who comes with a new revision or by scaling takes nobody's.
    """
    found: list[replica_pb2.Replica] = []
    for revision, count in wanted.items():
        missing = count - sum(each.revision == revision and each.state in LIVE for each in replicas)
        places = [each for each in failed if each.revision == revision]
        found += places[max(0, len(places) - max(0, missing)) :]
    return found


def plan(
    deployment: deployment_pb2.Deployment,
    replicas: Collection[replica_pb2.Replica],
    shared: Collection[int],
    failures: Mapping[int, Failures],
    now: float,
) -> Plan:
    """Decides what to do next. ``deployment.status.serving_revision`` is to be as it is now."""
    wanted = targets(deployment, replicas, shared)
    on_their_way = sum(each.state == replica_pb2.Replica.STARTING for each in replicas)
    start: dict[int, int] = {}
    drain: list[replica_pb2.Replica] = []
    stop: list[replica_pb2.Replica] = []
    times: list[float] = []
    for revision, count in wanted.items():
        live = [each for each in replicas if each.revision == revision and each.state in LIVE]
        missing = count - len(live)
        failed = failures.get(revision)
        if missing > 0 and failed is not None and failed.retry_at > now:
            times.append(failed.retry_at)
        elif missing > 0:
            # One that has failed is tried alone: many would fail as one does.
            most = 1 if failed is not None and failed.count else AT_ONCE
            number = max(0, min(missing, most - on_their_way))
            if number:
                start[revision] = number
                on_their_way += number
        # The youngest go first, and those that do not serve yet before all.
        by_worth = sorted(live, key=_worth)
        for each in by_worth[count:]:
            (drain if each.state == replica_pb2.Replica.READY else stop).append(each)
    for each in replicas:
        if each.revision not in wanted and each.state in LIVE:
            (drain if each.state == replica_pb2.Replica.READY else stop).append(each)
    return Plan(start, drain, stop, min(times, default=None))


def _worth(replica: replica_pb2.Replica) -> tuple[bool, int]:
    return replica.state != replica_pb2.Replica.READY, replica.create_time.ToNanoseconds()


def status_of(
    deployment: deployment_pb2.Deployment,
    replicas: Collection[replica_pb2.Replica],
    shared: Collection[int],
    failures: Mapping[int, Failures],
    routing_error: status_pb2.Status | None,
    routed: bool,
    address: str,
    port_error: str,
) -> deployment_pb2.DeploymentStatus:
    """Returns how a deployment stands. ``routed`` says whether the proxy holds what is ready and nothing else."""
    State = deployment_pb2.DeploymentStatus
    before = deployment.status
    count = wanted_replicas(deployment)
    newest = deployment.revision
    all_ready = ready(replicas)
    newest_ready = len(ready(replicas, newest))
    status = deployment_pb2.DeploymentStatus(
        observed_generation=deployment.generation,
        ready_replicas=len(all_ready),
        availability=min(1.0, len(all_ready) / count) if count else 0.0,
        serving_revision=before.serving_revision,
        address=address if deployment.port and not port_error else "",
        port_error=port_error if deployment.port else "",
    )
    wanted = targets(deployment, replicas, shared)
    present = {each.revision for each in replicas if each.state in (*LIVE, replica_pb2.Replica.DRAINING)}
    for revision in sorted({*wanted, *present}, reverse=True):
        entry = status.revisions.add(
            revision=revision, desired_replicas=wanted.get(revision, 0), ready_replicas=len(ready(replicas, revision))
        )
        if (failed := failures.get(revision)) is not None and failed.count:
            entry.error.CopyFrom(failed.error)
    failed = failures.get(newest) or Failures()
    living = {each.revision for each in replicas if each.state in LIVE}
    settled = count > 0 and newest_ready >= count and living <= set(wanted)
    if count == 0:
        status.state = State.PROGRESSING if present else State.STOPPED
    elif settled and routed and status.port_error:
        status.state = State.DEGRADED
        why = f"{status.port_error}; predictions are answered through the router alone"
        _explain(status, "PORT_IN_USE", failure("PORT_IN_USE", why))
    elif settled and routed:
        status.state = State.READY
    elif settled and routing_error is not None:
        status.state = State.DEGRADED
        _explain(status, reason_of(routing_error), routing_error)
    elif not settled and failed.failing:
        status.state = State.DEGRADED if all_ready else State.FAILED
        _explain(status, failed.reason, failed.error)
    elif not settled and failed.count and all_ready and before.serving_revision == newest:
        status.state = State.DEGRADED
        _explain(status, failed.reason, failed.error)
    else:
        status.state = State.PROGRESSING
    return status


def _explain(status: deployment_pb2.DeploymentStatus, reason: str, error: status_pb2.Status) -> None:
    status.error.CopyFrom(error)
    status.reason = reason
