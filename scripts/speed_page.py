"""The page of docs/speed.md from the lines of ``scripts/speed_table.py``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from localmoe.text import format_bytes
from scripts.speed_cases import CASES

NAMES = {
    "decode": "Decode, tok/s",
    "prefill": "Prefill of 256 tokens, tok/s",
    "first_token": "First token from a cold start, s",
}
HEAD = """\
# Speed: predicted and measured

Written by `scripts/speed_table.py`, on 2 virtual cores with 24 GiB and no GPU. Each model is
generated (random weights, the shapes and types of the architecture named), forecast, and run
three times in a fresh process, out of the page cache before: 256 tokens read, 48 written. None
was used to choose a constant of the forecast; those are in `CALIBRATION` of
`scripts/speed_cases.py`. Forecasts are without experience of earlier runs, which would narrow
them. They were made from one timing of the machine, for runs of several hours; before most of
the models that stay in memory the page cache was empty, before the others full of another file.
Three models of a first round showed that a prompt's last layer and delta nets were reckoned
wrongly, and one with experts on the disk that these were read faster than forecast; they are in
`CALIBRATION` since, others took their places, and the rest was forecast anew.

"The rest on disk" means a hard limit of memory at that share of the model. Its misses are forecast
with the profile of an earlier session with another prompt, or, where it says *prior*, without one:
there the routing of a real trace is imposed, the one that the prior was taken from. The two with a
profile were measured again after the next layer's experts began to be predicted, which the forecast
did not reckon with.

The figures below are older than the present forecast and are to be measured again. Since then
attention is timed with the kernel that prompts run on, first reads overlap with computing
(`FIRST_HIDDEN`), reads of a conversation are taken to be predicted (`MISS`), and a prompt's tokens
to share experts as those of the recorded trace do (`TOGETHER`). The first two constants were chosen
on the four lines with experts on the disk, which so are no test of them any more; imposed routings,
which nothing predicts, are now forecast too fast.

"""


@dataclass(frozen=True, slots=True)
class Line:
    """What was forecast and measured of one case; lists are of runs."""

    name: str
    architecture: str
    quantization: str
    size: int
    memory: int | None
    regime: str
    routing: str
    forecast: dict[str, Any]
    measured: dict[str, list[float]]


def page(lines: Sequence[Line], sums: dict[str, dict[str, float]]) -> str:
    """Markdown: one table per figure, with its sums."""
    parts = [HEAD]
    if len(lines) < len(CASES):
        parts.append(
            f"**Not complete: {len(lines)} of {len(CASES)} models have been measured.** The shares "
            "and errors below say little yet.\n\n"
        )
    for name, title in NAMES.items():
        rows = [line for line in lines if name != "prefill" or line.regime == "resident"]
        if not rows:
            continue
        told = sums[name]
        parts.append(
            f"## {title}\n\nInside the range: {told['inside']:.0%} of {told['models']} models; "
            f"median error of the expected value: {told['median_error']:.1%}.\n\n"
            "| model | quantization | size | memory | low | expected | high | measured | error |\n"
            "|---|---|---|---|---|---|---|---|---|\n"
            + "".join(_row(line, name) for line in rows)
            + "\n"
        )
    return "".join(parts)


def _row(line: Line, name: str) -> str:
    told, runs = line.forecast[name], line.measured[name]
    real = statistics.median(runs)
    figures = [f"{told[key]:.3g}" for key in ("low", "expected", "high")]
    inside = "" if told["low"] <= real <= told["high"] else " **outside**"
    cells = [
        line.name.partition(",")[0],
        line.quantization,
        format_bytes(line.size),
        "all" if line.memory is None else f"{format_bytes(line.memory)}{_source(line)}",
        *figures,
        f"{real:.3g} ({min(runs):.3g}–{max(runs):.3g}){inside}",
        f"{told['expected'] / real - 1:+.0%}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _source(line: Line) -> str:
    return ", prior" if line.routing == "trace" else ", profile"
