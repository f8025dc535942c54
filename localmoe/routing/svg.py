"""Plots as SVG text: lines, bands and heat maps, on a white ground, without any library.

Every text is escaped. One size for all plots, so that a page and a picture look the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from localmoe.text import clean_line

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 40, 46  # margins
LINES = ("#31688e", "#d1495b", "#2a9d5c", "#e08e1b", "#7b4ea3", "#5b5b5b")
SHADE_LEVELS = 24
HOTTEST = 8.0  # times the mean: the brightest colour
# Dark blue over violet and orange to pale yellow, even steps for the eye; black: never used.
COLOURS = (
    (24, 22, 60),
    (84, 24, 110),
    (150, 38, 103),
    (208, 72, 67),
    (242, 130, 30),
    (248, 235, 130),
)
UNUSED = (0, 0, 0)
_DASH = ' stroke-dasharray="5 4"'
LEGEND = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class Line:
    """Points of a curve; NaN breaks it."""

    name: str
    ys: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """A finished plot. ``name`` is a file name without ending, ``caption`` says what to see."""

    name: str
    title: str
    caption: str
    svg: str


def colour(ratio: float) -> tuple[int, int, int]:
    """Red, green, blue of a load ÷ mean; logarithmic from a tenth of the mean."""
    if not ratio > 0:
        return UNUSED
    low, high = math.log(0.1), math.log(HOTTEST)
    place = (min(max(math.log(ratio), low), high) - low) / (high - low) * (len(COLOURS) - 1)
    at = min(int(place), len(COLOURS) - 2)
    share = place - at
    red, green, blue = (
        round(a + (b - a) * share) for a, b in zip(COLOURS[at], COLOURS[at + 1], strict=True)
    )
    return red, green, blue


def hex_colour(ratio: float) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour(ratio))


def line_plot(
    title: str,
    x_name: str,
    y_name: str,
    xs: Sequence[float],
    lines: Sequence[Line],
    *,
    x_labels: Sequence[str] | None = None,
    percent: bool = False,
    y_top: float | None = None,
) -> str:
    """Curves over ``xs`` (ascending), up to the largest value or ``y_top``, and from 0.

    Where all values are close to ``y_top`` the axis begins just below them, and says so. Each point
    tells its value to who points at it. ``x_labels``: one text per x, shown as far as there is
    room, at even distances.
    """
    known = [y for line in lines for y in line.ys if math.isfinite(y)]
    top = y_top if y_top is not None else _ceiling(max(known, default=1.0))
    bottom = _floor(min(known, default=0.0), y_top)
    places = [float(i) for i in range(len(xs))] if x_labels else [float(x) for x in xs]
    low, high = min(places, default=0.0), max(places, default=1.0)
    span = (high - low) or 1.0
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x_at(place: float) -> float:
        return LEFT + (place - low) / span * inner_width

    def y_at(value: float) -> float:
        return TOP + inner_height * (1 - min(max((value - bottom) / (top - bottom), 0), 1))

    parts = [_text(LEFT, 18, title, "title")]
    for tick in _ticks(bottom, top):
        label = _number(tick, percent)
        parts.append(_rule(LEFT, y_at(tick), WIDTH - RIGHT, y_at(tick)))
        parts.append(_text(LEFT - 6, y_at(tick) + 4, label, "tick", "end"))
    if x_labels:
        every = max(1, math.ceil(len(places) / 16))
        marks = [(places[i], x_labels[i]) for i in range(0, len(places), every)]
    else:
        marks = [(low + span * i / 6, f"{low + span * i / 6:.3g}") for i in range(7)]
    for place, label in marks:
        parts.append(_text(x_at(place), HEIGHT - BOTTOM + 16, label, "tick", "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, x_name, "axis", "end"))
    shown_from = f", from {_number(bottom, percent)}" if bottom else ""
    parts.append(_text(LEFT, TOP - 8, y_name + shown_from, "axis"))
    for number, line in enumerate(lines):
        stroke = LINES[number % len(LINES)]
        pen = f'fill="none" stroke="{stroke}" stroke-width="2"{_DASH if line.dashed else ""}'
        for run in _runs(places, line.ys):
            drawn = [(x_at(x), y_at(y)) for x, y in run]
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in drawn)
            parts.append(f'<polyline points="{points}" {pen}/>')
            if len(drawn) == 1:
                x, y = drawn[0]
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{stroke}"/>')
            for (place, value), (x, y) in zip(run, drawn, strict=True):
                at = x_labels[int(place)] if x_labels else f"{place:.3g}"
                said = f"{line.name}, {x_name} {at}: {_number(value, percent)}"
                parts.append(_told(f'circle cx="{x:.1f}" cy="{y:.1f}" r="8"', said))
    parts += _key([line.name for line in lines], [line.dashed for line in lines])
    return _svg(WIDTH, HEIGHT, title, parts)


def heat_map(
    title: str, x_name: str, y_name: str, rows: Sequence[tuple[str, Sequence[float]]]
) -> str:
    """Cells coloured by their ratio to the mean: one row per label, the legend below."""
    left = max(LEFT, round(7.4 * max((len(label) for label, _ in rows), default=0)) + 16)
    columns = max((len(values) for _, values in rows), default=1)
    wide = (WIDTH - left - RIGHT) / columns
    tall = min(max(460 / max(len(rows), 1), 5.0), 26.0)
    bottom = TOP + tall * len(rows)
    height = math.ceil(bottom + 62)
    cells: dict[str, list[str]] = {}
    for number, (_, values) in enumerate(rows):
        y = TOP + number * tall
        for at, value in enumerate(values):
            cells.setdefault(_level(value), []).append(
                f"M{left + at * wide:.2f} {y:.2f}h{wide:.2f}v{tall:.2f}h-{wide:.2f}z"
            )
    parts = [_text(left, 18, title, "title")]
    parts += [
        f'<path d="{"".join(paths)}" fill="{fill}" shape-rendering="crispEdges"/>'
        for fill, paths in sorted(cells.items())
    ]
    for number, (label, values) in enumerate(rows):
        shape = f'x="{left}" y="{TOP + number * tall:.2f}" height="{tall:.2f}"'
        width = WIDTH - left - RIGHT
        parts.append(_told(f'rect {shape} width="{width}"', _row_told(y_name, label, values)))
    every = max(1, math.ceil(11 / tall))
    for number, (label, _) in enumerate(rows):
        if number % every == 0:
            y = TOP + (number + 0.5) * tall + 4
            parts.append(_text(left - 6, y, label, "tick", "end"))
    step = _round_step(columns / 8)
    for at in range(0, columns, step):
        parts.append(_text(left + (at + 0.5) * wide, bottom + 14, str(at), "tick", "middle"))
    parts.append(_text(WIDTH - RIGHT, bottom + 32, x_name, "axis", "end"))
    parts.append(_text(left, TOP - 8, y_name, "axis"))
    parts.append(_text(left, bottom + 50, "load ÷ mean", "tick"))
    for number, ratio in enumerate(LEGEND):
        x = left + 84 + number * 58
        fill = hex_colour(ratio)
        parts.append(f'<rect x="{x}" y="{bottom + 40:.1f}" width="14" height="12" fill="{fill}"/>')
        parts.append(_text(x + 19, bottom + 50, f"{ratio:g}", "tick"))
    return _svg(WIDTH, height, title, parts)


def _level(value: float) -> str:
    """The cell's colour, rounded to few levels: cells of one colour are drawn as one path."""
    if not value > 0:
        return hex_colour(0)
    low, high = math.log(0.1), math.log(HOTTEST)
    place = (min(max(math.log(value), low), high) - low) / (high - low)
    return hex_colour(math.exp(low + round(place * SHADE_LEVELS) / SHADE_LEVELS * (high - low)))


def _runs(xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _ceiling(value: float) -> float:
    """The smallest round number that is not below ``value``."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
    return next((power * step for step in steps if power * step >= value), value)


def _floor(least: float, top: float | None) -> float:
    """Where an axis up to a given ``top`` begins: 0, unless all values are in its upper half."""
    if not top or least <= top / 2:
        return 0.0
    steps = (0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
    return next((round(top * step, 10) for step in steps if top * step < least), 0.0)


def _ticks(bottom: float, top: float) -> list[float]:
    return [round(bottom + (top - bottom) * i / 5, 10) for i in range(6)]


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"


def _row_told(what: str, label: str, values: Sequence[float]) -> str:
    """``layer 3: at most 4.1 times the mean (expert 17), 5 never used``."""
    best = max(range(len(values)), key=lambda at: values[at], default=0)
    unused = sum(not value > 0 for value in values)
    never = f", {unused} never used" if unused else ""
    most = f"at most {values[best]:.2g} times the mean ({best})" if values else "nothing"
    return f"{what} {label}: {most}{never}"


def _told(shape: str, words: str) -> str:
    """An invisible shape that says something to who points at it."""
    told = f"<title>{escape(clean_line(words))}</title>"
    return f'<{shape} fill="transparent">{told}</{shape.split()[0]}>'


def _round_step(wanted: float) -> int:
    return next((step for step in (1, 2, 4, 8, 16, 32, 64, 128) if step >= wanted), 256)


def _key(names: Sequence[str], dashed: Sequence[bool]) -> list[str]:
    """Names of the lines, below the plot from the left: in sight in a narrow window too."""
    parts = []
    x = float(LEFT)
    for number, name in enumerate(names):
        dash = _DASH if dashed[number] else ""
        parts.append(
            f'<line x1="{x:.0f}" y1="{HEIGHT - 12}" x2="{x + 22:.0f}" y2="{HEIGHT - 12}" '
            f'stroke="{LINES[number % len(LINES)]}" stroke-width="2"{dash}/>'
        )
        parts.append(_text(x + 27, HEIGHT - 8, name, "tick"))
        x += 7.0 * len(name) + 46
    return parts


_STYLES = {
    "title": 'font-size="15" font-weight="bold" fill="#222"',
    "tick": 'font-size="11.5" fill="#444"',
    "axis": 'font-size="11.5" fill="#777"',
}


def _text(x: float, y: float, text: str, style: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}" {_STYLES[style]}>'
        f"{escape(clean_line(text))}</text>"
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} class="rule" stroke="#e3e3e3"/>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" '
        f'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">'
        f"<title>{escape(clean_line(title))}</title>"
        f'<rect width="{width}" height="{height}" class="ground" fill="#fff"/>'
        f"{''.join(parts)}</svg>"
    )
