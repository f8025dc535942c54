"""The search for faster settings, on invented machines: what it finds, and in what time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest

from localmoe.bench.tuning import AS_IT_IS, Changed, Tuning
from localmoe.bench.variants import Sample, Variant
from localmoe.errors import EngineError

THREADS, FEWER = Variant("threads", 2, 4), Variant("threads", 2, 1)
BATCH, KV = Variant("batch", 512, 1024), Variant("kv-type", "f16", "q8_0")
ALL = (THREADS, FEWER, BATCH, KV)
TRIAL = 6.0  # seconds


class Machine:
    """Settings multiply its speed, each run by a little noise; a run takes TRIAL seconds."""

    def __init__(self, factors: dict[Variant, float], noise: float = 0.02, seed: int = 1) -> None:
        self.factors = factors
        self.now = 0.0
        self.order: list[Changed] = []
        self._noise = noise
        self._random = random.Random(seed)

    def __call__(self, changed: Changed) -> Sample:
        self.now += TRIAL
        self.order.append(changed)
        speed = 1 + self._random.uniform(-self._noise, self._noise)
        for variant in changed:
            speed *= self.factors.get(variant, 1.0)
        return Sample(100 * speed, 10 * speed)


def searched(
    measure: Machine | Callable[[Changed], Sample],
    seconds: float = 1e6,
    machine: Machine | None = None,
) -> Tuning:
    clock = machine or measure
    assert isinstance(clock, Machine)
    found = Tuning(measure, seconds, clock=lambda: clock.now)
    found.run(ALL)
    return found


def test_finds_what_is_faster() -> None:
    """Two settings that help are found, and their gain together is measured anew."""
    found = searched(Machine({THREADS: 1.4, FEWER: 0.6, BATCH: 1.2, KV: 0.98}))
    assert found.complete and found.confirmed is not None
    assert found.confirmed.variants == (THREADS, BATCH)
    assert found.confirmed.factor == pytest.approx(1.4 * 1.2, rel=0.05)
    assert [g.factor for g in found.single] == pytest.approx([1.4, 1.2], rel=0.05)


def test_runs_are_made_in_turn() -> None:
    """Between two runs of a variant there is one with the settings as they are."""
    machine = Machine({THREADS: 1.4, BATCH: 1.2})
    searched(machine)
    for variant in ALL:
        at = [i for i, changed in enumerate(machine.order) if changed == (variant,)]
        for first, second in itertools.pairwise(at):
            assert AS_IT_IS in machine.order[first:second]
    assert machine.order[-1] == (THREADS, BATCH) and machine.order[-2] == AS_IT_IS


def test_what_is_slower_is_tried_once() -> None:
    machine = Machine({THREADS: 1.4, FEWER: 0.5, BATCH: 0.8, KV: 0.7})
    searched(machine)
    for slower in (FEWER, BATCH, KV):
        assert machine.order.count((slower,)) == 1


def test_noise_is_no_gain() -> None:
    """On a machine where nothing helps, hardly ever anything is found, however noisy it is."""
    wrong = sum(searched(Machine({}, noise=0.15, seed=s)).confirmed is not None for s in range(200))
    assert wrong <= 2


def test_two_that_do_not_go_together() -> None:
    """When the best ones together gain nothing, the best one alone is looked at again."""
    machine = Machine({THREADS: 1.4, BATCH: 1.2})

    def measure(changed: Changed) -> Sample:
        sample = machine(changed)
        return Sample(50, 5) if len(changed) > 1 else sample

    found = searched(measure, machine=machine)
    assert found.confirmed is not None and found.confirmed.variants == (THREADS,)


@pytest.mark.parametrize("seconds", [0.0, 10.0, 31.0, 60.0, 100.0])
def test_ends_in_time(seconds: float) -> None:
    """No trial is begun that would end too late; but one is always made."""
    machine = Machine({THREADS: 1.4, BATCH: 1.2})
    found = searched(machine, seconds)
    assert machine.now <= max(seconds, TRIAL)
    assert found.took == machine.now
    if seconds < 18 * TRIAL:
        assert not found.complete and found.confirmed is None


def test_what_does_not_work_is_left_out() -> None:
    """A setting that the engine refuses is forgotten; that nothing works is told."""
    machine = Machine({BATCH: 1.3})

    def refuses(changed: Changed) -> Sample:
        if THREADS in changed:
            raise EngineError("no")
        return machine(changed)

    found = searched(refuses, machine=machine)
    assert found.confirmed is not None and found.confirmed.variants == (BATCH,)

    def broken(changed: Changed) -> Sample:
        raise EngineError("no")

    with pytest.raises(EngineError):
        searched(broken, machine=machine)


def test_an_interrupt_keeps_what_is_known() -> None:
    """Ctrl-C passes; what was found by then can still be told."""
    machine = Machine({THREADS: 1.4}, noise=0)

    def measure(changed: Changed) -> Sample:
        if len(machine.order) == 9:
            raise KeyboardInterrupt
        return machine(changed)

    found = Tuning(measure, 1e6, clock=lambda: machine.now)
    with pytest.raises(KeyboardInterrupt):
        found.run(ALL)
    assert [g.variants for g in found.single] == [(THREADS,)]
    assert not found.complete and found.confirmed is None
