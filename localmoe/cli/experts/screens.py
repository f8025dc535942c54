"""Statistics of traces → what a person sees. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from rich.console import RenderableType
from rich.text import Text

from localmoe.routing.compare import Comparison, Specialist
from localmoe.routing.outlook import (
    BY_GAIN,
    OPTIMUM,
    RECENCY,
    SHIPPED,
    Row,
    Speeds,
    expert_total,
)
from localmoe.routing.records import Trace
from localmoe.routing.stats import LayerStats, Pair, mean_of
from localmoe.terminal.heat_map import HeatMap
from localmoe.terminal.tables import Rows, pairs
from localmoe.text import clean_line, format_bytes

NOTHING = "–"
SHORT = {SHIPPED: "as shipped"}  # columns
SHOWN_PAIRS = 6
SHOWN_SPECIALISTS = 12
SPARE = (  # columns of the table of layers that a narrow screen may lack, the first to go first
    *("1.25", "2.0", "64", "z", "near", "8", "dropped 1.0", "margin", "CV", "distance", "next"),
    "mass",
)


def heading(trace: Trace) -> Text:
    """Model, layers and tokens of a trace."""
    header = trace.header
    counts = sorted({(layer.experts, layer.used) for layer in header.layers})
    experts = ", ".join(f"{used} of {count}" for count, used in counts)
    facts = [clean_line(header.architecture)] if header.architecture else []
    count = len(header.layers)
    facts += [f"{count} MoE layer{'s' if count > 1 else ''}", f"{experts} experts per token"]
    decoded = int(trace.decode.sum())
    facts.append(f"{len(trace) - decoded:,} tokens read, {decoded:,} written")
    text = Text(clean_line(header.model) or "a model", style="bold")
    return text.append(" · " + " · ".join(facts), style="not bold")


def show(trace: Trace, layers: Sequence[LayerStats]) -> Iterator[RenderableType]:
    """The answer of ``experts show``."""
    yield heading(trace)
    if trace.header.gating:
        yield Text(f"gating: {clean_line(trace.header.gating)}")
    if trace.cut:
        yield Text("the recording broke off: whole steps only", style="yellow")
    yield Text()
    yield HeatMap([(str(e.layer), ratios(e)) for e in layers])
    yield Text()
    yield pairs(findings(layers))
    yield Text()
    yield layer_table(layers)
    found = strongest_pairs(layers)
    if found:
        yield Text()
        yield Text("experts that fire together most beyond their loads", style="bold")
        yield Rows(
            ("layer", "experts", "together", "× chance"),
            [(str(n), f"{p.a} + {p.b}", f"{p.together:,}", f"{p.lift:.1f}") for n, p in found],
            right=("layer", "together", "× chance"),
        )


def ratios(layer: LayerStats) -> list[float]:
    """Load ÷ mean of every expert."""
    mean = sum(layer.load) / layer.experts
    return [load / mean if mean else 0.0 for load in layer.load]


def findings(layers: Sequence[LayerStats]) -> list[tuple[str, str]]:
    """The sentences at the top: means over the layers, and the extremes."""
    busiest = max(layers, key=lambda e: e.balance.busiest)
    dead = sum(e.balance.dead for e in layers)
    chance = sum(e.balance.dead_by_chance for e in layers)
    near = sum(e.balance.near_dead for e in layers)
    experts = sum(e.experts for e in layers)
    drop = mean_of([e.balance.dropped[1.25] for e in layers])
    rows = [
        (
            "balance",
            f"entropy {_mean(layers, 'entropy')} of 1, variation {_mean(layers, 'variation')}, "
            f"busiest ÷ mean {_mean(layers, 'busiest')} "
            f"(layer {busiest.layer}: {busiest.balance.busiest:.2f})",
        ),
        ("capacity", f"{_percent(drop)} of the assignments dropped at a capacity factor of 1.25"),
        (
            "unused",
            f"{dead:,} of {experts:,} experts never, {near:,} below a tenth of an even share; "
            f"an even router would leave {chance:,.0f} unused in as many tokens",
        ),
    ]
    confident = [e.confidence for e in layers if e.confidence is not None]
    if confident:
        mass = mean_of([c.top_mass for c in confident])
        margin = mean_of([c.margin for c in confident])
        z = mean_of([c.z for c in confident])
        rows.append(
            (
                "router",
                f"top-k mass {_percent(mass)}, margin to the first loser {margin:.2f} "
                f"(logits), z {z:.1f}",
            )
        )
    lag, by_chance = (
        mean_of([e.reuse.at_lag[1] for e in layers]),
        mean_of([e.reuse.by_chance for e in layers]),
    )
    rows.append(
        (
            "reuse",
            f"{_percent(lag)} of a token's experts were used by the token before "
            f"({_percent(by_chance)} if tokens were independent), "
            f"{_percent(mean_of([e.reuse.at_lag[64] for e in layers]))} by the one 64 before",
        )
    )
    known = [e.next_layer for e in layers if e.next_layer is not None]
    if known:
        rows.append(
            (
                "next layer",
                f"{_percent(mean_of([p.from_layer for p in known]))} of its experts follow from "
                f"this layer's, {_percent(mean_of([p.from_previous for p in known]))} from the "
                f"token before, {_percent(mean_of([p.from_popularity for p in known]))} from "
                "popularity alone",
            )
        )
    return rows


def layer_table(layers: Sequence[LayerStats]) -> Rows:
    """One row per layer; columns that no layer has are left out."""
    columns = {
        "layer": [str(e.layer) for e in layers],
        "entropy": [_number(e.balance.entropy, 3) for e in layers],
        "CV": [_number(e.balance.variation, 2) for e in layers],
        "busiest": [_number(e.balance.busiest, 2) for e in layers],
        "dropped 1.0": [_percent(e.balance.dropped[1.0]) for e in layers],
        "1.25": [_percent(e.balance.dropped[1.25]) for e in layers],
        "2.0": [_percent(e.balance.dropped[2.0]) for e in layers],
        "dead": [str(e.balance.dead) for e in layers],
        "near": [str(e.balance.near_dead) for e in layers],
        "mass": [_percent(e.confidence.top_mass) if e.confidence else NOTHING for e in layers],
        "margin": [_number(e.confidence.margin, 2) if e.confidence else NOTHING for e in layers],
        "z": [_number(e.confidence.z, 1) if e.confidence else NOTHING for e in layers],
        "reuse 1": [_percent(e.reuse.at_lag[1]) for e in layers],
        "8": [_percent(e.reuse.at_lag[8]) for e in layers],
        "64": [_percent(e.reuse.at_lag[64]) for e in layers],
        "distance": [_number(e.reuse.median_distance, 0) for e in layers],
        "next": [_percent(e.next_layer.from_layer) if e.next_layer else NOTHING for e in layers],
    }
    shown = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    rows = list(zip(*shown.values(), strict=True))
    return Rows(tuple(shown), rows, right=tuple(shown), spare=[n for n in SPARE if n in shown])


def strongest_pairs(layers: Sequence[LayerStats]) -> list[tuple[int, Pair]]:
    """Layer and pair, the pairs that stand out most over all layers."""
    everything = [(e.layer, pair) for e in layers for pair in e.pairs]
    everything.sort(key=lambda item: -(item[1].together * math.log(item[1].lift)))
    return everything[:SHOWN_PAIRS]


def compare(result: Comparison, texts: Mapping[int, str]) -> Iterator[RenderableType]:
    """The answer of ``experts compare``."""
    names = ", ".join(f"{clean_line(k)} ({n:,})" for k, n in result.domains.items())
    yield Text.assemble(("domains (tokens): ", "bold"), names)
    yield Text(verdict(result))
    yield Text()
    yield Rows(
        ("layer", "divergence", "by chance", "95 % below", "p"),
        [
            (
                str(e.layer),
                f"{e.divergence:.3f}",
                f"{e.chance_mean:.3f}",
                f"{e.chance_high:.3f}",
                f"{e.p:.3f}",
            )
            for e in result.layers
        ],
        right=("layer", "divergence", "by chance", "95 % below", "p"),
    )
    yield Text()
    if not result.specialists:
        yield Text("no expert stands out from what shuffled domains show")
        return
    count = len(result.specialists)
    yield Text(
        f"{count} expert{'s' if count > 1 else ''} used by one domain more than chance explains"
        + (f", the clearest {SHOWN_SPECIALISTS}" if count > SHOWN_SPECIALISTS else ""),
        style="bold",
    )
    yield specialists_table(result, texts)


def specialists_table(result: Comparison, texts: Mapping[int, str]) -> Rows:
    """The experts that stand out most."""
    return Rows(
        ("domain", "layer", "expert", "share", "elsewhere", "z", "fires on"),
        [_specialist(e, texts) for e in result.specialists[:SHOWN_SPECIALISTS]],
        right=("layer", "expert", "share", "elsewhere", "z"),
        spare=("elsewhere", "z", "share"),
    )


def verdict(result: Comparison) -> str:
    """One plain sentence: is there a difference, and against what was it held."""
    against = (
        f"{result.divergence:.3f} bits between the domains, mean over the layers; with the "
        f"{result.units} {result.unit} shuffled it is {result.chance_mean:.3f}, "
        f"below {result.chance_high:.3f} in 95 of 100 shuffles (p = {result.p:.3f})"
    )
    if not result.differs:
        return f"no specialisation beyond chance: {against}"
    caution = (
        ""
        if result.unit == "prompts"
        else "; too few prompts to shuffle, so two texts of one domain might differ as much"
    )
    return f"the domains use different experts: {against}{caution}"


def simulate(
    trace: Trace, rows: Sequence[Row], speeds: Speeds | None, sentences: Sequence[str]
) -> Iterator[RenderableType]:
    """The answer of ``experts simulate``."""
    yield heading(trace)
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
    yield simulation_table(rows)
    yield Text()
    yield Text(
        "Hits of the decoded tokens, after their prompts. As shipped: each layer evicts what was "
        "used least, a use counting half after 32 tokens. tok/s: the misses are read after "
        "computing; hidden: wholly behind it.",
        style="dim",
    )
    for sentence in sentences:
        yield Text(f"→ {sentence}", style="bold")


def simulation_table(rows: Sequence[Row]) -> Rows:
    policies = list(rows[0].outcomes)
    sized = any(row.budget for row in rows)
    fast = any(row.tps is not None for row in rows)
    columns = ["in memory", *(SHORT.get(name, name) for name in policies)]
    columns += ["read per token"] if sized else []
    columns += ["tok/s", "hidden"] if fast else []
    table = []
    for row in rows:
        size = f"{format_bytes(row.budget)} ({row.share:.0%})" if row.budget else f"{row.share:.0%}"
        cells = [size, *(f"{100 * row.outcomes[name].hit_rate:.1f} %" for name in policies)]
        cells += [format_bytes(row.outcomes[SHIPPED].bytes_per_token)] if sized else []
        if fast:
            cells += [_number(row.tps, 1), _number(row.tps_hidden, 1)]
        table.append(cells)
    spare = [name for name in (BY_GAIN, "hidden", RECENCY, OPTIMUM) if name in columns]
    return Rows(columns, table, right=columns, spare=[*spare, "read per token"])


def _specialist(expert: Specialist, texts: Mapping[int, str]) -> tuple[str, ...]:
    return (
        clean_line(expert.domain),
        str(expert.layer),
        str(expert.expert),
        _percent(expert.share),
        _percent(expert.elsewhere),
        f"{expert.z:.1f}",
        " ".join(token_text(token, texts) for token, _, _ in expert.fires_on) or NOTHING,
    )


def token_text(token: int, texts: Mapping[int, str]) -> str:
    """A token as it can be told from its neighbours: quoted, white space visible."""
    if token not in texts or "\ufffd" in texts[token]:  # unknown, or part of a character
        return f"#{token}"
    visible = texts[token].replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return f"“{clean_line(visible)}”"


def _mean(layers: Sequence[LayerStats], name: str) -> str:
    return _number(mean_of([getattr(e.balance, name) for e in layers]), 2)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{100 * value:.0f} %"
