"""The laws of the forecast over many more machines than a test has time for."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tests.planning.test_laws import MODELS, WHAT, Box, better, broken, outcome
from tests.soak.conftest import Figures

pytestmark = pytest.mark.soak
STEPS = 9  # times that one machine is made better
ON_A_GPU = ("gpu", "second")  # what says nothing of a machine without one


def invented(rng: random.Random) -> Box:
    """A machine between a small board and a workstation with two GPUs."""
    return Box(
        ram=2 ** rng.uniform(0, 7),
        cores=rng.randint(1, 64),
        vram=rng.choice([0.0, 2 ** rng.uniform(0, 6.5)]),
        memory=2 ** rng.uniform(3, 9),
        kernel=2 ** rng.uniform(1, 4),
        batch=2 ** rng.uniform(4, 8),
        node=2 ** rng.uniform(-2, 2),
        disk=2 ** rng.uniform(-1, 3),
        gpu=2 ** rng.uniform(1, 5),
        context=rng.choice([None, 512, 4096, 8192, 32768]),
        second=rng.choice([0.0, 0.0, 2 ** rng.uniform(0, 6)]),
    )


def test_better_machines(
    under_way: Callable[[], bool], figures: Figures, pytestconfig: pytest.Config
) -> None:
    """A machine that is made better step by step never does worse with any published model."""
    rng = random.Random(pytestconfig.getoption("--soak-seed"))
    machines = 0
    while under_way():
        name, box = rng.choice(MODELS), invented(rng)
        before, machines = outcome(name, box), machines + 1
        for _ in range(STEPS):
            what = rng.choice([w for w in WHAT if box.vram or w not in ON_A_GPU])
            by = rng.choice([rng.uniform(0.0001, 0.1), rng.uniform(0, 1), rng.uniform(0, 4)])
            more = better(box, what, by)
            after, machines = outcome(name, more), machines + 1
            assert broken(before, after, what) == "", f"{name}, more {what}: {box} → {more}"
            before, box = after, more
            figures |= {"machines": machines}
