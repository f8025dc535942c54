"""Measurements → what a person sees. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

from localmoe.app.bench_documents import limit_name
from localmoe.bench.figures import Spread, Summary, compute_seconds, ratios, window
from localmoe.bench.measurement import PLAIN, Schedule
from localmoe.bench.records import RESIDENT, Job, Run
from localmoe.cli.render import title
from localmoe.terminal.tables import Rows
from localmoe.text import clean_line, format_bytes, format_duration

NOTHING = "–"


def screen(
    wanted: Schedule, runs: Sequence[Run], summaries: Sequence[Summary]
) -> Iterator[RenderableType]:
    """A heading, then one table per memory limit."""
    yield title(wanted.model)
    job = wanted.jobs[0]
    routing = f" · routing imposed: {clean_line(job.replay)}" if job.replay else ""
    yield Text(
        f"{job.prompt_tokens} tokens read, {job.steps} written, model not in memory before{routing}"
    )
    seconds = compute_seconds(runs, job.steps)
    if seconds is not None:
        resident = any(run.job.regime == RESIDENT for run in runs)
        how = "all in memory" if resident else "not waiting for the disk"
        yield Text(f"computing alone: {1 / seconds:.2f} tok/s ({how})")
    for limit in dict.fromkeys(summary.memory for summary in summaries):
        group = [summary for summary in summaries if summary.memory == limit]
        limited = {run.limited_by for run in runs if run.job.memory == limit and not run.error}
        yield Text("")
        yield Text(f"memory {limit_name(limit, job.size)} ({', '.join(sorted(limited))})")
        yield _table(group, wanted.shared)
        for summary in group:
            for error in summary.errors:
                yield Text(f"{summary.regime}: {clean_line(error)}", style="red")


def _table(group: Sequence[Summary], shared: int) -> Rows:
    against = ratios(group)
    right = (
        "tok/s",
        f"first {shared}",
        "vs plain",
        "first token",
        "÷ reading",
        "load",
        "prefill",
        "hits",
        "read/token",
        "disk",
        "own bound",
        "stretch",
        "peak",
    )
    rows = [
        (
            _regime(summary),
            spread(summary.decode, ".2f"),
            spread(summary.shared, ".2f"),
            f"{against[summary.regime]:.1f} ×" if summary.regime in against else NOTHING,
            spread(summary.first_s, ".1f", " s"),
            median(summary.first_share, ".2f"),
            median(summary.load_s, ".1f", " s"),
            median(summary.prefill, ".1f"),
            median(summary.hit_rate, ".3f"),
            NOTHING
            if summary.bytes_per_token is None
            else format_bytes(int(summary.bytes_per_token.median)),
            NOTHING if summary.disk is None else f"{summary.disk.median / 1e9:.2f} GB/s",
            median(summary.own_bound, ".2f"),
            median(summary.stretch, ".2f"),
            format_bytes(summary.anonymous_peak + summary.locked_peak),
        )
        for summary in group
    ]
    return Rows(("regime", *right), rows, right=right)


def _regime(summary: Summary) -> str:
    """The regime asked for, and the one that ran where ``auto`` chose or memory was short."""
    ran = [name for name in summary.ran if name != summary.regime]
    if summary.regime == PLAIN or not ran:
        return summary.regime
    return f"{summary.regime} ({', '.join('resident' if n == 'off' else n for n in ran)})"


def spread(values: Spread | None, form: str, unit: str = "") -> str:
    """``4.51 (4.40–4.62)``, median and range; the median alone where there is no range."""
    if values is None:
        return NOTHING
    if values.low == values.high:
        return f"{values.median:{form}}{unit}"
    return f"{values.median:{form}}{unit} ({values.low:{form}}–{values.high:{form}})"


def median(values: Spread | None, form: str, unit: str = "") -> str:
    return NOTHING if values is None else f"{values.median:{form}}{unit}"


def waiting_line(job: Job, rest: float | None) -> str:
    """What is being run. ``rest``: seconds to the end of the last run, None where nobody knows."""
    left = "" if rest is None else f" · some {format_duration(rest)} left"
    return f"{_where(job)}: running{left}"


def run_line(run: Run) -> str:
    """One run, in one line."""
    where = _where(run.job)
    if run.error:
        return f"{where}: {clean_line(run.error)}"
    found = window(run, run.job.steps)
    speed = f"{found.tps:.2f} tok/s" if found else "no speed"
    warm = "" if run.cold or run.job.regime == RESIDENT else " · the model was in memory before"
    return f"{where}: {speed} · first token after {run.first_s:.1f} s{warm}"


def _where(job: Job) -> str:
    return f"{job.regime} · {limit_name(job.memory, job.size)}"
