"""Calls that are repeated until the mesh is back."""

from __future__ import annotations

import pytest

from noronha.client.connection import Mesh
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
