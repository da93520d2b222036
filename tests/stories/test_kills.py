"""A seeded sample of the kills that `make soak` does by the hundred."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import kills


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("target", "runs"), [("embedded", 12), ("five", 8)])
def test_a_sample_of_kills_loses_nothing(target: str, runs: int) -> None:
    seed = int(os.environ.get("NHA_TEST_SEED", random.randrange(1 << 31)))
    print(f"seed {seed}; again with NHA_TEST_SEED={seed}")
    with kills.world(target) as made:
        kills.Killer(made, seed).run(runs)
