"""Calls that are repeated until the mesh is back."""

from __future__ import annotations

import pytest

from noronha.client.connection import Mesh
from noronha.client.patience import Patience
from noronha.client.persistence import persistently
from noronha.rpc.errors import DeadlineExceeded, FailedPrecondition, NoronhaError, Unavailable


@pytest.mark.parametrize("error", [Unavailable("gone"), DeadlineExceeded("it stands still")])
def test_a_mesh_that_is_away_or_stands_still_is_asked_again(error: NoronhaError) -> None:
    failures = [error, error]

    def call() -> str:
        if failures:
            raise failures.pop()
        return "answered"

    with Mesh("unix:/nowhere") as mesh:
        assert persistently(mesh, call) == "answered"


@pytest.mark.parametrize(
    "error", [FailedPrecondition("no"), DeadlineExceeded("no", reason="ROUTES_LATE"), Unavailable("no", reason="NO_MESH")]
)
def test_what_a_repeat_does_not_change_is_raised_at_once(error: NoronhaError) -> None:
    asked = []

    def call() -> None:
        asked.append(1)
        raise error

    with Mesh("unix:/nowhere") as mesh, pytest.raises(type(error)):
        persistently(mesh, call)
    assert len(asked) == 1


def test_an_absence_that_lasts_is_told_once() -> None:
    told: list[str] = []
    gone = Unavailable("failed to connect")
    gone.address, gone.service = "127.0.0.1:9", "Store"

    def call() -> str:
        if not told:
            raise gone
        if len(failures) < 2:
            failures.append(gone)
            raise gone
        return "answered"

    failures: list[NoronhaError] = []
    with Mesh("unix:/nowhere") as mesh:
        assert persistently(mesh, call, notice=told.append) == "answered"
    assert told == ["Store at 127.0.0.1:9 does not answer; trying again for 1 minute"]


def test_each_absence_of_a_transfer_is_told_once() -> None:
    told: list[str] = []
    waiting = Patience(120.0, None, told.append)
    for count in (1, 2):
        waiting.bear(Unavailable("it is gone"))
        assert len(told) < count, "one that the first repeat gets over"
        while len(told) < count:
            waiting.bear(Unavailable("it is gone"))
        waiting.bear(Unavailable("it is gone"))
        waiting.moved()
    assert told == ["it is gone; trying again for 2 minutes"] * 2
