"""What runs amount to: speeds over equal windows, spreads, and the distance from two bounds. Pure.

Own bound: computing with everything resident, plus the bytes that this run fetched ÷ the disk's
speed. Stretch bound: the greater of computing and what the best possible cache of the same size
would have to fetch ÷ the disk's speed (reading fully hidden behind computing).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from localmoe.bench.records import RESIDENT, Run


@dataclass(frozen=True, slots=True)
class Window:
    """The first decode steps of a run."""

    steps: int
    seconds: float
    read: int | None  # bytes fetched from the disk; None where that is not counted

    @property
    def tps(self) -> float:
        return self.steps / self.seconds


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, lowest and highest value of several runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None


@dataclass(frozen=True, slots=True)
class Summary:
    """The runs of one regime under one memory limit. Speeds are tokens per second."""

    regime: str
    memory: int | None
    runs: int
    shared: Spread | None  # over the window that all regimes have
    decode: Spread | None  # over all steps of these runs
    steps: int  # of ``decode``
    prefill: Spread | None
    first_s: Spread | None
    ttft_s: Spread | None
    load_s: Spread | None
    hit_rate: Spread | None
    bytes_per_token: Spread | None
    bytes_per_prompt_token: Spread | None
    disk: Spread | None  # bytes per second around the runs
    own_bound: Spread | None  # share of it that was reached
    stretch: Spread | None
    first_share: Spread | None  # first token: seconds ÷ those of reading what it needs
    anonymous_peak: int
    locked_peak: int
    charged_peak: int | None
    planned: int
    ran: tuple[str, ...]  # what was chosen or stepped down to
    errors: tuple[str, ...]


def window(run: Run, steps: int) -> Window | None:
    """The first ``steps`` decode steps; None for a run that did not get that far.

    All steps are timed by the worker; a part of them by when their text arrived.
    """
    if not run.ticks and run.decode_tps and steps == run.job.steps:  # a program told its speed
        return Window(steps, steps / run.decode_tps, None)
    if not run.ticks or steps < 1:
        return None
    first = run.ticks[0]
    began = first.seconds if first.tokens == 1 else run.ttft_s
    for tick in run.ticks:
        if tick.tokens > steps:
            done = tick.tokens - 1  # more, when the last tokens made no whole character
            seconds = (tick.seconds - began) * steps / done
            if steps == run.job.steps and run.decode_tps:
                seconds = steps / run.decode_tps
            return Window(steps, seconds, (tick.read - first.read) * steps // done)
    return None


def compute_seconds(runs: Sequence[Run], steps: int) -> float | None:
    """Seconds of computing per decode step.

    From runs with everything resident; without them from what the engine says that it did not
    wait for reading.
    """
    resident = [
        w.seconds / w.steps
        for run in runs
        if run.job.regime == RESIDENT and (w := window(run, min(steps, run.job.steps)))
    ]
    if resident:
        return statistics.median(resident)
    busy = [
        (w.seconds - run.stall_s) / w.steps
        for run in runs
        if run.stall_s is not None and (w := window(run, run.job.steps)) and w.seconds > run.stall_s
    ]
    return min(busy, default=None)


def own_share(run: Run, compute_s: float | None) -> float | None:
    """How much of its own bound a run reached, over all of its steps."""
    found = window(run, run.job.steps)
    if found is None or found.read is None or compute_s is None or not run.disk:
        return None
    return (found.steps * compute_s + found.read / run.disk) / found.seconds


def stretch_share(run: Run, compute_s: float | None, least_read: int | None) -> float | None:
    """How much of the stretch bound a run reached; ``least_read``: bytes the best cache fetches."""
    found = window(run, run.job.steps)
    if found is None or compute_s is None or least_read is None or not run.disk:
        return None
    return max(found.steps * compute_s, least_read / run.disk) / found.seconds


def first_share(run: Run, needed: int | None) -> float | None:
    """How many times longer than reading ``needed`` bytes the first token took."""
    return run.first_s * run.disk / needed if needed and run.disk else None


def summarize(
    runs: Sequence[Run],
    *,
    shared: int,
    compute_s: float | None = None,
    least_read: Callable[[int], int | None] = lambda _: None,
    first_bytes: int | None = None,
) -> Summary:
    """One line of the table. ``runs``: of one regime and one limit; ``shared``: steps.

    ``least_read``: what the best cache of so many bytes would have to fetch; ``first_bytes``: what
    the first token needs from the disk.
    """
    good = [run for run in runs if not run.error]
    job = runs[0].job
    windows = [w for run in good if (w := window(run, run.job.steps))]
    charged = [run.charged_peak for run in good if run.charged_peak is not None]
    return Summary(
        regime=job.regime,
        memory=job.memory,
        runs=len(good),
        shared=Spread.of(w.tps for run in good if (w := window(run, shared))),
        decode=Spread.of(w.tps for w in windows),
        steps=job.steps,
        prefill=Spread.of(run.prefill_tps or None for run in good),
        first_s=Spread.of(run.first_s for run in good),
        ttft_s=Spread.of(run.ttft_s for run in good),
        load_s=Spread.of(run.load_s for run in good),
        hit_rate=Spread.of(_hit_rate(run) for run in good),
        bytes_per_token=Spread.of(w.read / w.steps for w in windows if w.read is not None),
        bytes_per_prompt_token=Spread.of(
            run.prompt_read / run.job.prompt_tokens
            for run in good
            if run.prompt_read is not None and run.job.prompt_tokens
        ),
        disk=Spread.of(run.disk or None for run in good),
        own_bound=Spread.of(own_share(run, compute_s) for run in good),
        stretch=Spread.of(
            stretch_share(run, compute_s, least_read(run.cache_bytes)) for run in good
        ),
        first_share=Spread.of(first_share(run, first_bytes) for run in good),
        anonymous_peak=max((run.anonymous_peak for run in good), default=0),
        locked_peak=max((run.locked_peak for run in good), default=0),
        charged_peak=max(charged, default=None),
        planned=max((run.planned for run in runs), default=0),
        ran=tuple(dict.fromkeys(run.regime for run in good if run.regime)),
        errors=tuple(dict.fromkeys(run.error for run in runs if run.error)),
    )


def ratios(summaries: Sequence[Summary], base: str = "plain") -> dict[str, float]:
    """Median speed of each regime ÷ that of ``base``, over the window that both have."""
    speed = {s.regime: s.shared.median for s in summaries if s.shared is not None}
    if base not in speed:
        return {}
    return {name: value / speed[base] for name, value in speed.items() if name != base}


def _hit_rate(run: Run) -> float | None:
    if run.hits is None or run.misses is None or not run.hits + run.misses:
        return None
    return run.hits / (run.hits + run.misses)
