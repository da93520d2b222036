"""Fixtures of Store's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .rig import Rig, running


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """A Store that the tests of a module share; each brings bytes of its own."""
    with running() as made:
        yield made


@pytest.fixture
def own_rig() -> Iterator[Rig]:
    """A Store that a test may kill, corrupt and fill."""
    with running() as made:
        yield made
