"""Tables and pairs that fit a screen of any width. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from localmoe.text import clean_line

LEAST_FIRST = 24  # cells that the first column is folded to, at least


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of strings under ``columns``; ``right`` names the columns of numbers.

    ``spare``: columns that are left out where the screen is too narrow, the first one first. Where
    that is not enough, the first column is folded; where it would be too narrow for that, each row
    becomes a short list.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    right: Sequence[str] = ()
    spare: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for gone in range(len(self.spare) + 1):
            grid = self._grid(self.spare[:gone])
            wanted = Measurement.get(console, options.update(max_width=10_000), grid).maximum
            if wanted <= options.max_width:
                yield grid
                return
        first_column = (self.columns[0], *(row[0] for row in self.rows))
        room = options.max_width - (wanted - max(cell(text).cell_len for text in first_column))
        if room >= LEAST_FIRST:
            grid.columns[0].max_width = room
            yield grid
            return
        for row in self.rows:
            first, *rest = (cell(value) for value in row)
            named = zip(self.columns[1:], rest, strict=True)
            facts = [Text.assemble((f"{name} ", "dim"), value) for name, value in named]
            yield Text.assemble(first, style="bold")
            yield indented(Text(" · ", "dim").join(facts))

    def _grid(self, left_out: Sequence[str]) -> Table:
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        shown = [i for i, name in enumerate(self.columns) if name not in left_out]
        for name in (self.columns[i] for i in shown):
            numbers = name in self.right
            grid.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
        for row in self.rows:
            grid.add_row(*(cell(row[i]) for i in shown))
        return grid


def pairs(rows: Iterable[tuple[str, str | Text]]) -> Padding:
    """Labels and values, side by side."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(Text(label), cell(value))
    return indented(grid)


def cell(value: str | Text) -> Text:
    """Untrusted text becomes one clean line; a ``Text`` is taken as it is."""
    return value if isinstance(value, Text) else Text(clean_line(value), overflow="fold")


def indented(renderable: RenderableType) -> Padding:
    """Two cells to the right, no wider than it needs to be."""
    return Padding(renderable, (0, 0, 0, 2), expand=False)
