"""Speeds over equal windows and the two bounds, from invented runs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localmoe.bench.figures import (
    Spread,
    compute_seconds,
    own_share,
    ratios,
    stretch_share,
    summarize,
    window,
)
from localmoe.bench.records import RESIDENT, Job, Run, Tick

JOB = Job("m", 1000, "private", 400, 0, prompt_tokens=4, steps=8)


def steady(job: Job, seconds: float, read: int, **facts: object) -> Run:
    """A run whose every decode step takes ``seconds`` and fetches ``read`` bytes."""
    ticks = tuple(Tick(i + 1, 1.0 + i * seconds, 500 + i * read) for i in range(job.steps + 1))
    return replace(
        Run(
            job=job,
            ticks=ticks,
            ttft_s=1.0,
            decode_tps=1 / seconds,
            disk_before=90.0,
            disk_after=110.0,
        ),
        **facts,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("steps", [1, 5, 8])
def test_a_window_counts_its_own_steps_only(steps: int) -> None:
    """The first token and what the prompt fetched are not part of it."""
    found = window(steady(JOB, 0.25, 40), steps)
    assert found is not None
    assert found.tps == pytest.approx(4.0)
    assert found.read == 40 * steps


def test_no_window_beyond_the_end() -> None:
    """A run that stopped early has no figure for what it did not do."""
    run = steady(JOB, 0.25, 40)
    assert window(replace(run, ticks=run.ticks[:4]), 8) is None
    assert window(replace(run, ticks=()), 1) is None


def test_tokens_without_text_are_interpolated() -> None:
    """Half a character makes no event: the window ends between the two that there are."""
    run = steady(JOB, 0.25, 40)
    holes = tuple(tick for tick in run.ticks if tick.tokens not in (1, 4, 5))
    found = window(replace(run, ticks=holes), 3)
    assert found is not None and found.tps == pytest.approx(4.0)


def test_bounds() -> None:
    """Own: computing plus own reads; stretch: the greater of computing and the least reads."""
    run = steady(JOB, 2.0, 100)  # disk 100 bytes/s: one of two seconds is reading
    assert own_share(run, 0.5) == pytest.approx((0.5 + 1.0) / 2.0)
    assert stretch_share(run, 0.5, least_read=8 * 20) == pytest.approx(0.5 / 2.0)
    assert stretch_share(run, 0.5, least_read=8 * 80) == pytest.approx(0.8 / 2.0)
    assert own_share(run, None) is None
    assert stretch_share(run, 0.5, None) is None


def test_computing_is_what_resident_runs_take() -> None:
    """Their median; without them, what a run did not spend waiting for the disk."""
    resident = replace(JOB, regime=RESIDENT, memory=None)
    runs = [steady(resident, s, 0) for s in (0.1, 0.3, 0.2)]
    waiting = steady(JOB, 2.0, 100, stall_s=12.0)
    assert compute_seconds([*runs, waiting], 8) == pytest.approx(0.2)
    assert compute_seconds([waiting], 8) == pytest.approx(0.5)
    assert compute_seconds([], 8) is None


def test_ratios_compare_the_shared_window() -> None:
    """A plain run of fewer steps is held against the same steps of the others."""
    slow_start = replace(
        steady(JOB, 0.5, 0),
        ticks=tuple(Tick(i + 1, 1.0 + (i if i < 2 else 2 + 0.1 * (i - 2)), 0) for i in range(9)),
        decode_tps=8 / 2.6,
    )
    plain = steady(replace(JOB, regime="plain", steps=2), 4.0, 0)
    lines = [summarize([run], shared=2) for run in (plain, slow_start)]
    assert ratios(lines) == {"private": pytest.approx(4.0)}
    assert lines[1].decode is not None
    assert lines[1].decode.median == pytest.approx(8 / 2.6)


def test_failed_runs_are_told_and_not_counted() -> None:
    """Their errors are in the summary, their figures are not."""
    good, bad = steady(JOB, 0.5, 0), Run(job=JOB, error="killed")
    line = summarize([bad, good], shared=8)
    assert (line.runs, line.errors) == (1, ("killed",))
    assert line.decode == Spread(2.0, 2.0, 2.0)
    nothing = summarize([bad], shared=8)
    assert nothing.decode is None and nothing.runs == 0
