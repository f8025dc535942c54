"""A plan drawn on a terminal: what each tier of memory holds, and the layers one by one.

``TIER_STYLE``: the colour of each tier, wherever it is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from localmoe.app.tiers import tier_names
from localmoe.planning.places import is_remote
from localmoe.planning.plan import LayerPlacement, Plan
from localmoe.text import clean_line, format_bytes

TIER_STYLE = {"gpu": "green", "ram": "cyan", "disk": "yellow"}
BAR_FROM_COLUMNS = 60
GLYPHS = {"gpu": "█", "ram": "▓", "disk": "░"}  # different without colours, too
CELLS = (8, 6, 4, 2)  # widths of a layer's bar; the first with which all layers fit the screen
OTHER_LINES = 4  # lines of a terminal that are not for layers
GAP = "   "


@dataclass(frozen=True, slots=True)
class TierBars:
    """Bytes used per tier, of those that may be used, with bars on a wide terminal."""

    plan: Plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plan = self.plan
        bars = console.is_terminal and options.max_width >= BAR_FROM_COLUMNS
        grid = Table.grid(padding=(0, 2, 0, 0))
        for numbers in (False, True, False, False):
            grid.add_column(justify="right" if numbers else "left")
        names = tier_names(plan.settings.devices)
        gpus = [("gpu", names["gpu"], plan.tiers.gpu, plan.vram_budget)]
        if len(plan.gpu_budgets) > 1 or plan.settings.remotes:
            gpus = [
                ("gpu", clean_line(device), plan.memory.on(device).total, budget)
                for device, budget in plan.gpu_budgets
            ]
        tiers = (
            *gpus,
            ("ram", names["ram"], plan.tiers.ram, plan.ram_budget),
            ("disk", names["disk"], plan.tiers.disk, 0),
        )
        for tier, label, used, budget in tiers:
            if not used and not budget:
                continue
            of = f"of {format_bytes(budget)} to use" if tier != "disk" else "read as needed"
            if tier == "ram" and not budget:
                kept = format_bytes(plan.ram_reserve)
                of = f"none to use: {kept} are kept for the system" if plan.ram_reserve else "none"
            bar = _used_bar(used, budget, TIER_STYLE[tier]) if bars and budget else Text()
            name = Text(label, style=TIER_STYLE[tier])
            grid.add_row(name, Text(format_bytes(used)), Text(of, "dim"), bar)
        yield grid


def _used_bar(used: int, budget: int, style: str, width: int = 20) -> Text:
    filled = min(width, -(-used * width // budget))
    color = style if used <= budget else "red"
    return Text("█" * filled, style=color).append("░" * (width - filled), style="dim")


@dataclass(frozen=True, slots=True)
class LayerMap:
    """One row per layer, coloured by tier; several columns of bars where there are too many rows.

    ``devices``: those of the plan; several, or other machines', are called by their names.
    """

    layers: Sequence[LayerPlacement]
    devices: Sequence[str] = ()

    @property
    def _names(self) -> dict[str, str]:
        return tier_names(self.devices)

    @property
    def _named(self) -> bool:
        return len(self.devices) > 1 or any(map(is_remote, self.devices))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bars = console.is_terminal
        rows = list(self._rows(bars))
        widest = max((cell_len(row.plain) for row in rows), default=0)
        high = bars and len(rows) > max(1, console.height - OTHER_LINES)
        if high or widest > options.max_width:
            rows = list(self._folded(options.max_width, console.height if bars else None))
            yield _legend(self.layers, self._names)
        else:
            yield Text("  layer  dense, then experts", style="bold")
        yield from rows

    def _rows(self, bars: bool) -> Iterator[Text]:
        dense = [(self._dense(row), format_bytes(row.dense_bytes)) for row in self.layers]
        names = max((cell_len(name) for name, _ in dense), default=0)
        sizes = max((cell_len(size) for _, size in dense), default=0)
        for row, (name, size) in zip(self.layers, dense, strict=True):
            line = Text(f"  {row.index:>5}  ", style="dim", no_wrap=True)
            line.append(f"{name:<{names}} ", TIER_STYLE[row.dense])
            line.append(f"{size:>{sizes}}  ", "default")
            if bars:
                line.append(_bar(row, CELLS[0])).append("  ")
            yield line.append(self._experts(row))

    def _dense(self, row: LayerPlacement) -> str:
        if row.dense == "ram":
            return self._names["ram"]
        return clean_line(row.device) if self._named else self._names["gpu"]

    def _experts(self, row: LayerPlacement) -> Text:
        """``RAM 1.6 GiB``, ``GPU 800 MiB + disk 800 MiB``, and how many of them a token needs."""
        if row.experts is None:
            return Text("no experts", "dim")
        names = self._names
        if self._named and row.dense == "gpu":
            names["gpu"] = clean_line(row.device)
        shown = [
            Text(f"{names[tier]} ", TIER_STYLE[tier]).append(format_bytes(count), "default")
            for tier, count in _tiers(row)
            if count
        ]
        text = Text(" + ").join(shown)
        return text.append(f" · {row.expert_used} of {row.expert_count}", "dim")

    def _folded(self, width: int, height: int | None) -> Iterator[Text]:
        """Bars with their layers' numbers, in as few columns as fit the height."""
        count = len(self.layers)
        lines = max(1, (height or count) - OTHER_LINES)
        for cells in CELLS:
            wide = len("999 █ ") + cells + len(GAP)
            most = max(1, (width - 2 + len(GAP)) // wide)
            if -(-count // most) <= lines:
                break
        columns = min(most, max(1, -(-count // lines)))
        tall = -(-count // columns)
        drawn = [_cell(row, cells) for row in self.layers]
        for first in range(tall):
            yield Text("  ").append(Text(GAP).join(drawn[first::tall]))


def _legend(layers: Sequence[LayerPlacement], names: dict[str, str]) -> Text:
    """What the bars mean: a glyph for each tier that the plan uses."""
    line = Text("  layer, dense, experts: ", style="dim")
    for tier in names:
        total = sum(dict(_tiers(row))[tier] for row in layers)
        dense = any(row.dense == tier for row in layers)
        if total or dense:
            line.append(f"{GLYPHS[tier]} ", TIER_STYLE[tier])
            line.append(f"{names[tier]}  ", "default")
    return line


def _cell(row: LayerPlacement, cells: int) -> Text:
    """``17 █ ▓▓▓▓▓▓▓▓``: number, dense part, experts."""
    line = Text(f"{row.index:>3} ", style="dim")
    line.append(GLYPHS[row.dense], TIER_STYLE[row.dense]).append(" ")
    return line.append(_bar(row, cells))


def _bar(row: LayerPlacement, cells: int) -> Text:
    """A layer's experts by tier; every tier that holds some gets one cell at least."""
    line = Text()
    if row.experts is None:
        return line.append("·" * cells, "dim")
    tiers = [(tier, count) for tier, count in _tiers(row) if count]
    left, bytes_left = cells, sum(count for _, count in tiers)
    for number, (tier, count) in enumerate(tiers):
        later = len(tiers) - number - 1
        share = left if not later else round(left * count / bytes_left)
        width = min(max(1, share), left - later)
        line.append(GLYPHS[tier] * width, TIER_STYLE[tier])
        left, bytes_left = left - width, bytes_left - count
    return line


def _tiers(row: LayerPlacement) -> tuple[tuple[str, int], ...]:
    return (("gpu", row.experts_gpu), ("ram", row.experts_ram), ("disk", row.experts_disk))
