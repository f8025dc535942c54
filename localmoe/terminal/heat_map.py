"""A heat map of layers × experts that fits the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from localmoe.routing.svg import LEGEND, hex_colour

SHADES = " ░▒▓█"
EDGES = (0.0, 0.25, 0.75, 2.0)  # load ÷ mean above which the next darker shade is used
PIPE_COLUMNS = 100


@dataclass(frozen=True, slots=True)
class HeatMap:
    """``rows``: a label, and each expert's load ÷ the mean load of its layer.

    Where there are more experts than columns, a column shows the busiest of several. On a terminal
    with colours two layers share a line.
    """

    rows: Sequence[tuple[str, Sequence[float]]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        labels = max((len(label) for label, _ in self.rows), default=0)
        width = options.max_width if console.is_terminal else min(options.max_width, PIPE_COLUMNS)
        space = max(width - labels - 1, 1)
        experts = max((len(loads) for _, loads in self.rows), default=1)
        step = math.ceil(experts / space)
        rows = [(label, folded(loads, step)) for label, loads in self.rows]
        coloured = console.color_system in ("256", "truecolor")
        if coloured:
            for top, bottom in zip(rows[::2], [*rows[1::2], None], strict=False):
                yield from _pair(top, bottom, labels)
        else:
            for label, loads in rows:
                yield Text(f"{label:>{labels}} " + "".join(map(shade, loads)), no_wrap=True)
        yield self._legend(step, coloured)

    def _legend(self, step: int, coloured: bool) -> Text:
        per = f"{step} experts, the busiest shown" if step > 1 else "an expert"
        text = Text(style="dim")
        if coloured:
            text.append("load ÷ mean ")
            for ratio in LEGEND:
                text.append("█", style=_style(ratio))
                text.append(f" {ratio:g} ")
        else:
            text.append("load ÷ mean  ' ' 0  ░ to 0.25  ▒ to 0.75  ▓ to 2  █ above ")
        return text.append(f" · one column: {per}")


def folded(loads: Sequence[float], step: int) -> list[float]:
    """The busiest of every ``step`` experts."""
    return [max(loads[i : i + step]) for i in range(0, len(loads), step)]


def shade(ratio: float) -> str:
    """One of five shades; the first is for experts that were never used."""
    return SHADES[sum(ratio > edge for edge in EDGES)]


def _pair(
    top: tuple[str, Sequence[float]], bottom: tuple[str, Sequence[float]] | None, labels: int
) -> RenderResult:
    yield Segment(f"{top[0]:>{labels}} ", Style(dim=True))
    for at, ratio in enumerate(top[1]):
        if bottom is None or at >= len(bottom[1]):
            yield Segment("▀", Style(color=hex_colour(ratio)))
        else:
            yield Segment("▀", Style(color=hex_colour(ratio), bgcolor=hex_colour(bottom[1][at])))
    yield Segment.line()


def _style(ratio: float) -> Style:
    return Style(color=hex_colour(ratio))
