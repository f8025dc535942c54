"""Which settings are tried, and when a difference counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localmoe.bench.variants import (
    TURN_READ,
    TURN_WRITTEN,
    Gain,
    Sample,
    Variant,
    best_of_each,
    gain,
    variants,
)
from localmoe.planning.memory import EngineSettings

SETTINGS = EngineSettings(context=2048, batch=512, ubatch=512, threads=4)
THREADS = Variant("threads", 4, 8)


def tried(regime: str = "resident", **how: object) -> set[str]:
    how = {"settings": SETTINGS, "cores": (4, 8), "prompt": 1024} | how
    return {str(v) for v in variants(regime=regime, **how)}  # type: ignore[arg-type]


def samples(*seconds: float) -> list[Sample]:
    """Runs that make a turn take so long, half of it reading."""
    return [Sample(2 * TURN_READ / s, 2 * TURN_WRITTEN / s) for s in seconds]


def test_what_is_tried() -> None:
    """Fewer and more threads, other batches, a smaller KV cache."""
    assert tried() == {
        "threads 8", "threads 3", "threads 2", "batch 1024", "batch 256", "kv-type q8_0",
        "repack on",
    }  # fmt: skip


def test_the_other_regime_only_where_experts_do_not_fit() -> None:
    assert "cache page" in tried("private") and "cache private" in tried("page")
    assert not any(name.startswith("cache") for name in tried("resident") | tried("none"))


def test_repacking_only_where_all_weights_are_in_ram() -> None:
    gpu = replace(SETTINGS, devices=("CUDA0",))
    assert not any("repack on" in tried(regime) for regime in ("private", "page", "off", "none"))
    assert "repack on" not in tried(settings=gpu) | tried(settings=replace(SETTINGS, repack=True))


def test_nothing_that_a_trial_could_not_show() -> None:
    """A batch larger than the prompt changes nothing; one core has no other number of threads."""
    assert "batch 1024" not in tried(prompt=512)
    alone = tried(settings=replace(SETTINGS, threads=1), cores=(1, 1))
    assert not any(name.startswith("threads") for name in alone)


def test_what_somebody_has_chosen_stays() -> None:
    assert tried(fixed=("threads", "batch")) == {"kv-type q8_0", "repack on"}
    assert "kv-type q8_0" not in tried(settings=replace(SETTINGS, type_k="q4_0"))


def test_a_turn() -> None:
    """Reading and writing both count, each by its own speed."""
    assert Sample(100, 10).turn_s == pytest.approx(TURN_READ / 100 + TURN_WRITTEN / 10)


@pytest.mark.parametrize(
    ("before", "after", "factor"),
    [
        ((10, 10.2, 9.9), (8, 8.1, 7.9), 1.25),  # clearly faster
        ((10, 10.2, 9.9), (8, 9.95, 7.9), None),  # one run after is as slow as one before
        ((10, 10.2, 9.9), (9.8, 9.81, 9.82), None),  # always faster, and not worth it
        ((10, 10.2, 9.9), (12, 12, 12), None),
        ((10, 10.2), (8, 8.1), None),  # too few runs
    ],
)
def test_only_what_is_outside_the_noise(
    before: tuple[float, ...], after: tuple[float, ...], factor: float | None
) -> None:
    """Each run after beats each one before, by enough to be worth it."""
    found = gain((THREADS,), samples(*before), samples(*after))
    assert (found and found.factor) == (factor and pytest.approx(factor))


def test_the_best_value_of_each_setting() -> None:
    """Of two numbers of threads one can be kept; the greatest gain comes first."""
    slow, other = Sample(50, 5), Variant("threads", 4, 3)
    kv, batch, cache = (Variant(name, 0, 1) for name in ("kv-type", "batch", "cache"))
    gains = [
        Gain((variant,), slow, Sample(50 * factor, 5 * factor))
        for variant, factor in (
            (other, 1.1),
            (kv, 1.2),
            (THREADS, 1.5),
            (batch, 1.3),
            (cache, 1.06),
        )
    ]
    assert best_of_each(gains) == (THREADS, batch, kv)
