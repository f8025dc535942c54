"""Summaries of traces → what a person sees. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from localmoe.routing import summaries
from localmoe.routing.compare import Comparison
from localmoe.routing.outlook import Row, Speeds, expert_total
from localmoe.routing.records import Trace
from localmoe.routing.report import Table
from localmoe.routing.stats import LayerStats
from localmoe.terminal.heat_map import HeatMap
from localmoe.terminal.tables import Rows, pairs
from localmoe.text import clean_line, format_bytes


def show(trace: Trace, layers: Sequence[LayerStats]) -> Iterator[RenderableType]:
    """The answer of ``experts show``."""
    yield _heading(trace)
    if trace.header.gating:
        yield Text(f"gating: {clean_line(trace.header.gating)}")
    if trace.cut:
        yield Text("the recording broke off: whole steps only", style="yellow")
    yield Text()
    yield HeatMap([(str(e.layer), summaries.ratios(e)) for e in layers])
    yield Text()
    yield pairs(summaries.findings(layers))
    yield Text()
    yield _rows(summaries.layer_table(layers))
    together = summaries.pair_table(layers)
    if together.rows:
        yield Text()
        yield Text("experts that fire together most beyond their loads", style="bold")
        yield _rows(together)


def compare(result: Comparison, texts: Mapping[int, str]) -> Iterator[RenderableType]:
    """The answer of ``experts compare``; ``texts``: token → its text."""
    names = ", ".join(f"{clean_line(k)} ({n:,})" for k, n in result.domains.items())
    yield Text.assemble(("domains (tokens): ", "bold"), names)
    yield Text(summaries.verdict(result))
    yield Text()
    yield _rows(summaries.divergence_table(result))
    yield Text()
    count, shown = len(result.specialists), summaries.SHOWN_SPECIALISTS
    if not count:
        yield Text("no expert stands out from what shuffled domains show")
        return
    yield Text(
        f"{count} expert{'s' if count > 1 else ''} used by one domain more than chance explains"
        + (f", the clearest {shown}" if count > shown else ""),
        style="bold",
    )
    yield _rows(summaries.specialists_table(result, texts))


def simulate(
    trace: Trace, rows: Sequence[Row], speeds: Speeds | None, sentences: Sequence[str]
) -> Iterator[RenderableType]:
    """The answer of ``experts simulate``."""
    yield _heading(trace)
    total = expert_total(trace)
    if total:
        facts = f"experts {format_bytes(total)}"
        if trace.header.dense_bytes:
            facts += f", everything else {format_bytes(trace.header.dense_bytes)}"
        if speeds is not None:
            how = "measured" if speeds.measured else "estimated from the bandwidth of the RAM"
            facts += (
                f" · disk {speeds.disk / 1e9:.2f} GB/s · all in RAM "
                f"{speeds.resident_tps:.1f} tok/s, {how}"
            )
        yield Text(facts)
    yield Text()
    yield _rows(summaries.memory_table(rows))
    yield Text()
    yield Text(
        "Hits of the decoded tokens, after their prompts. As shipped: each layer evicts what was "
        "used least, a use counting half after 32 tokens. tok/s: the misses are read beside "
        "computing, as far as they can be predicted; hidden: wholly.",
        style="dim",
    )
    for sentence in sentences:
        yield Text(f"→ {sentence}", style="bold")


def _heading(trace: Trace) -> Text:
    text = Text(summaries.model_name(trace), style="bold")
    return text.append(" · " + " · ".join(summaries.facts(trace)), style="not bold")


def _rows(table: Table) -> Rows:
    return Rows(table.columns, table.rows, right=table.numbers, spare=table.spare)
