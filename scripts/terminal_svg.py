"""What a program wrote to a terminal → the screen it makes → a picture as SVG.

Text stays text: each run of one style is placed by its column and stretched to its cells, so that
columns line up in whatever monospaced font the reader has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

import pyte

CELL, LINE, SIZE = 8.4, 19, 14  # pixels: width of a cell, height of a line, height of the font
MARGIN, BASE = 16, 14  # around the text; from the top of a line to its base line
FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"
GROUND, INK = "#1b1e24", "#d7dae0"
COLOURS = {
    "black": "#3b4048", "red": "#e06c75", "green": "#98c379", "brown": "#e5c07b",
    "blue": "#61afef", "magenta": "#c678dd", "cyan": "#56b6c2", "white": INK,
    "brightblack": "#868d99", "brightred": "#ef8289", "brightgreen": "#aad98b",
    "brightbrown": "#f0d399", "brightblue": "#7fc1f5", "brightmagenta": "#d79be6",
    "bfightmagenta": "#d79be6", "brightcyan": "#7accd6", "brightwhite": "#ffffff",
}  # fmt: skip

Cell = Any  # pyte's Char: data, fg, bg, bold, italics, underscore, strikethrough, reverse
Line = Sequence[Cell]

_STYLE = re.compile(r"\x1b\[([\d;]*)m")


def screen_of(raw: str, columns: int, rows: int) -> list[Line]:
    """The lines that a terminal of that size shows in the end, blank ones at the end left out."""
    screen = pyte.Screen(columns, rows)
    pyte.Stream(screen).feed(_STYLE.sub(_dim_as_grey, raw))
    lines: list[Line] = [[screen.buffer[y][x] for x in range(columns)] for y in range(rows)]
    while lines and not text_of(lines[-1]).strip():
        lines.pop()
    return lines


def text_of(line: Line) -> str:
    return "".join(cell.data for cell in line).rstrip()


def _dim_as_grey(found: re.Match[str]) -> str:
    """pyte knows no dimmed text: it gets a colour instead, unless it has one."""
    codes = found[1].split(";")
    if codes[0] in ("38", "48"):
        return found[0]
    return f"\x1b[{';'.join('90' if code == '2' else code for code in codes)}m"


def typed(line: str, columns: int) -> list[Line]:
    """A shell's prompt with a command line, as lines of a screen."""
    return screen_of(f"\x1b[92m$\x1b[0m {line}", columns, 1 + len(line) // columns)


def svg(lines: Sequence[Line], columns: int, title: str) -> str:
    """A picture of the lines; ``title`` is for those who cannot see it."""
    width = round(2 * MARGIN + columns * CELL)
    height = 2 * MARGIN + len(lines) * LINE
    body = "\n".join(run for y, line in enumerate(lines) for run in _runs(line, y))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="{GROUND}"/>\n'
        f'<g font-family="{FONT}" font-size="{SIZE}" fill="{INK}" xml:space="preserve">\n'
        f"{body}\n</g>\n</svg>\n"
    )


def _runs(line: Line, y: int) -> Iterator[str]:
    """The runs of one style in a line; blanks without a ground are left out."""
    at = 0
    for style, cells in groupby(line, key=lambda cell: cell._replace(data="")):
        run = list(cells)
        yield from _run("".join(cell.data for cell in run), len(run), style, at, y)
        at += len(run)


def _run(text: str, cells: int, style: Cell, at: int, y: int) -> Iterator[str]:
    ink, ground = _colour(style.fg, INK), _colour(style.bg, "")
    if style.reverse:
        ink, ground = ground or GROUND, ink
    left, top = MARGIN + at * CELL, MARGIN + y * LINE
    if ground:
        yield (
            f'<rect x="{left:.1f}" y="{top}" width="{cells * CELL:.1f}" height="{LINE}" '
            f'fill="{ground}"/>'
        )
    start = len(text) - len(text.lstrip(" "))
    shown = text.strip(" ")
    if not shown:
        return
    room = cells - start - (len(text) - len(text.rstrip(" ")))
    looks = [f'fill="{ink}"'] if ink != INK else []
    looks += ['font-weight="bold"'] if style.bold else []
    looks += ['font-style="italic"'] if style.italics else []
    lines = ["underline"] * style.underscore + ["line-through"] * style.strikethrough
    looks += [f'text-decoration="{" ".join(lines)}"'] if lines else []
    yield (
        f'<text x="{left + start * CELL:.1f}" y="{top + BASE}" textLength="{room * CELL:.1f}" '
        f'lengthAdjust="spacingAndGlyphs"{"".join(f" {look}" for look in looks)}>'
        f"{escape(shown, quote=False)}</text>"
    )


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name) or f"#{name}"
