"""The page of docs/speed.md from the lines of ``scripts/speed_table.py``."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localmoe.text import format_bytes
from scripts.speed_cases import CASES

FIGURES = {
    "decode": "Decode, tok/s",
    "prefill": "Prompt of 512 tokens, tok/s",
    "prefill_middle": "Prompt of 2,048 tokens, tok/s",
    "prefill_long": "Prompt of 8,192 tokens, tok/s",
    "loaded": "First token of a loaded model, s",
    "cold": "First token from a cold start, s",
}
PLACES = {"experts in RAM": False, "experts on the disk": True}
HEAD = """\
# Speed: predicted and measured

Written by `scripts/speed_table.py`, on 2 virtual cores ({processor}) with 24 GiB and no GPU.
By an earlier forecast, on another machine: [speed-xeon.md](speed-xeon.md). Each model is
generated (random weights, the shapes and types of the architecture named, a few layers), and run
{rounds} in a fresh process, out of the page cache before: it reads a prompt of 512 tokens, one of
2,048, some one of 8,192 ({long}), then other 512, and writes 48. Before each run the machine was
measured anew, as `localmoe doctor --measure` does, and the speed forecast from that: what a shared
machine does changes within minutes. Both figures are medians of the runs. None of the models was
used to choose a constant of the forecast; those are in `CALIBRATION` of `scripts/speed_cases.py`.
Forecasts are without experience of earlier runs, which would narrow them.

Where a size of memory is named it is a hard limit, and the other experts are read from the disk.
Routers have favourites about as much as those of a real trace. What a token will miss is forecast
from that trace or, where it says *profile*, from an earlier session of the model too.

"""


@dataclass(frozen=True, slots=True)
class Line:
    """What was forecast and measured of one case; lists are of rounds."""

    name: str
    share: float | None
    quantization: str
    size: int
    learned: bool
    forecast: dict[str, Any]
    measured: dict[str, list[float]]

    @property
    def key(self) -> tuple[str, float | None]:
        return self.name, self.share


def together(lines: Sequence[Line]) -> Line:
    """One line of the rounds of a case: all runs, and the median of the forecasts."""
    told = {
        name: {
            bound: statistics.median(line.forecast[name][bound] for line in lines)
            for bound in ("low", "expected", "high")
        }
        for name in lines[0].forecast
    }
    found = {
        name: [run for line in lines for run in line.measured.get(name, ())] for name in FIGURES
    }
    runs = {name: values for name, values in found.items() if values}
    return replace(lines[0], forecast=told, measured=runs)


def compared(line: Line) -> Iterator[tuple[str, list[float], dict[str, float]]]:
    """(figure, its runs, its forecast) of what was measured."""
    for name in FIGURES:
        if line.measured.get(name):
            yield name, line.measured[name], line.forecast[name]


def summary(lines: Sequence[Line]) -> dict[str, dict[str, dict[str, float]]]:
    """Per place of the experts and figure: models, share inside the range, median error."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for place, limited in PLACES.items():
        for name in FIGURES:
            rows = [
                (statistics.median(runs), told)
                for line in lines
                if (line.share is not None) is limited
                for what, runs, told in compared(line)
                if what == name
            ]
            if rows:
                result.setdefault(place, {})[name] = {
                    "models": len(rows),
                    "inside": statistics.mean(t["low"] <= real <= t["high"] for real, t in rows),
                    "median_error": statistics.median(
                        abs(told["expected"] / real - 1) for real, told in rows
                    ),
                }
    return result


def page(lines: Sequence[Line], processor: str) -> str:
    """Markdown: the sums, then one table per figure."""
    times = {"rounds": _rounds(lines, "decode"), "long": _rounds(lines, "prefill_long")}
    parts = [HEAD.format(processor=processor, **times)]
    if len(lines) < len(CASES):
        parts.append(f"**Not complete: {len(lines)} of {len(CASES)} have been measured.**\n\n")
    parts.append(
        "| figure | where | models | inside the range | median error |\n|---|---|--:|--:|--:|\n"
    )
    for place, sums in summary(lines).items():
        for name, told in sums.items():
            parts.append(
                f"| {FIGURES[name]} | {place} | {told['models']} | {told['inside']:.0%} "
                f"| {told['median_error']:.1%} |\n"
            )
    for name, title in FIGURES.items():
        rows = [line for line in lines if name in line.measured]
        if rows:
            parts.append(
                f"\n## {title}\n\n"
                "| model | type | size | memory | low | expected | high | measured | error |\n"
                "|---|---|--:|---|--:|--:|--:|--:|--:|\n"
                + "".join(_row(line, name) for line in rows)
            )
    return "".join(parts)


def _rounds(lines: Sequence[Line], figure: str) -> str:
    """How often each model was run for a figure."""
    counts = {len(line.measured[figure]) for line in lines if figure in line.measured}
    if not counts or counts == {1}:
        return "once"
    low, high = min(counts), max(counts)
    return f"{low} times" if low == high else f"{low} to {high} times"


def _row(line: Line, name: str) -> str:
    told, runs = line.forecast[name], line.measured[name]
    real = statistics.median(runs)
    figures = [f"{told[key]:.3g}" for key in ("low", "expected", "high")]
    spread = f" ({min(runs):.3g}–{max(runs):.3g})" if len(runs) > 1 else ""
    inside = "" if told["low"] <= real <= told["high"] else " **outside**"
    memory = "all" if line.share is None else format_bytes(int(line.share * line.size))
    cells = [
        line.name.partition(",")[0],
        line.quantization,
        format_bytes(line.size),
        memory + ", profile" * line.learned,
        *figures,
        f"{real:.3g}{spread}{inside}",
        f"{told['expected'] / real - 1:+.0%}",
    ]
    return f"| {' | '.join(cells)} |\n"
