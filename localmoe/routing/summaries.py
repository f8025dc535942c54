"""Statistics of traces in sentences and tables of text, for a screen or a page. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from localmoe.routing.compare import Comparison, Specialist
from localmoe.routing.outlook import BY_GAIN, OPTIMUM, RECENCY, SHIPPED, Row
from localmoe.routing.records import Trace
from localmoe.routing.report import Table
from localmoe.routing.stats import LayerStats, Pair, mean_of
from localmoe.text import clean_line, format_bytes

NOTHING = "–"
SHORT = {SHIPPED: "as shipped"}  # policy → title of its column
SHOWN_PAIRS = 6
SHOWN_SPECIALISTS = 12
SPARE_OF_LAYERS = (
    *("1.25", "2.0", "64", "z", "near", "8", "dropped 1.0", "margin", "CV", "distance", "next"),
    "mass",
)


def model_name(trace: Trace) -> str:
    """The model that was traced, as far as the trace says."""
    return clean_line(trace.header.model) or "a model"


def facts(trace: Trace) -> list[str]:
    """Architecture, layers, experts and tokens of a trace."""
    header = trace.header
    counts = sorted({(layer.experts, layer.used) for layer in header.layers})
    experts = ", ".join(f"{used} of {count}" for count, used in counts)
    layers = len(header.layers)
    decoded = int(trace.decode.sum())
    return [
        *([clean_line(header.architecture)] if header.architecture else []),
        f"{layers} MoE layer{'s' if layers > 1 else ''}",
        f"{experts} experts per token",
        f"{len(trace) - decoded:,} tokens read, {decoded:,} written",
    ]


def ratios(layer: LayerStats) -> list[float]:
    """Load ÷ mean load of every expert."""
    mean = sum(layer.load) / layer.experts
    return [load / mean if mean else 0.0 for load in layer.load]


def findings(layers: Sequence[LayerStats]) -> list[tuple[str, str]]:
    """Subject and sentence: means over the layers, and the extremes."""
    return [
        ("balance", _balance(layers)),
        ("capacity", _capacity(layers)),
        ("unused", _unused(layers)),
        *_router(layers),
        ("reuse", _reuse(layers)),
        *_next_layer(layers),
    ]


def _balance(layers: Sequence[LayerStats]) -> str:
    busiest = max(layers, key=lambda e: e.balance.busiest)
    return (
        f"entropy {_mean(layers, 'entropy')} of 1, variation {_mean(layers, 'variation')}, "
        f"busiest ÷ mean {_mean(layers, 'busiest')} "
        f"(layer {busiest.layer}: {busiest.balance.busiest:.2f})"
    )


def _capacity(layers: Sequence[LayerStats]) -> str:
    dropped = mean_of([e.balance.dropped[1.25] for e in layers])
    return f"{_percent(dropped)} of the assignments dropped at a capacity factor of 1.25"


def _unused(layers: Sequence[LayerStats]) -> str:
    dead = sum(e.balance.dead for e in layers)
    near = sum(e.balance.near_dead for e in layers)
    experts = sum(e.experts for e in layers)
    by_chance = sum(e.balance.dead_by_chance for e in layers)
    return (
        f"{dead:,} of {experts:,} experts never, {near:,} below a tenth of an even share; "
        f"an even router would leave {by_chance:,.0f} unused in as many tokens"
    )


def _router(layers: Sequence[LayerStats]) -> list[tuple[str, str]]:
    known = [e.confidence for e in layers if e.confidence is not None]
    if not known:
        return []
    mass = _percent(mean_of([c.top_mass for c in known]))
    margin, z = mean_of([c.margin for c in known]), mean_of([c.z for c in known])
    text = f"top-k mass {mass}, margin to the first loser {margin:.2f} (logits), z {z:.1f}"
    return [("router", text)]


def _reuse(layers: Sequence[LayerStats]) -> str:
    before = _percent(mean_of([e.reuse.at_lag[1] for e in layers]))
    by_chance = _percent(mean_of([e.reuse.by_chance for e in layers]))
    far = _percent(mean_of([e.reuse.at_lag[64] for e in layers]))
    return (
        f"{before} of a token's experts were used by the token before "
        f"({by_chance} if tokens were independent), {far} by the one 64 before"
    )


def _next_layer(layers: Sequence[LayerStats]) -> list[tuple[str, str]]:
    known = [e.next_layer for e in layers if e.next_layer is not None]
    if not known:
        return []
    text = (
        f"{_percent(mean_of([p.from_layer for p in known]))} of its experts follow from "
        f"this layer's, {_percent(mean_of([p.from_previous for p in known]))} from the "
        f"token before, {_percent(mean_of([p.from_popularity for p in known]))} from "
        "popularity alone"
    )
    return [("next layer", text)]


def layer_table(layers: Sequence[LayerStats]) -> Table:
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
    spare = [name for name in SPARE_OF_LAYERS if name in shown]
    return Table(tuple(shown), rows, numbers=tuple(shown), spare=spare)


def pair_table(layers: Sequence[LayerStats]) -> Table:
    """The pairs of experts that fire together most beyond their loads, over all layers."""
    found = [(e.layer, pair) for e in layers for pair in e.pairs]
    found.sort(key=lambda item: -(item[1].together * math.log(item[1].lift)))
    columns = ("layer", "experts", "together", "× chance")
    rows = [_pair(layer, pair) for layer, pair in found[:SHOWN_PAIRS]]
    return Table(columns, rows, numbers=("layer", "together", "× chance"))


def _pair(layer: int, pair: Pair) -> tuple[str, ...]:
    return str(layer), f"{pair.a} + {pair.b}", f"{pair.together:,}", f"{pair.lift:.1f}"


def verdict(result: Comparison) -> str:
    """One sentence: whether the domains differ, and what that was tested against."""
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


def divergence_table(result: Comparison) -> Table:
    """Per layer, the divergence of the domains (bits), and that of shuffled domains."""
    columns = ("layer", "divergence", "by chance", "95 % below", "p")
    rows = [
        (
            str(e.layer),
            f"{e.divergence:.3f}",
            f"{e.chance_mean:.3f}",
            f"{e.chance_high:.3f}",
            f"{e.p:.3f}",
        )
        for e in result.layers
    ]
    return Table(columns, rows, numbers=columns)


def specialists_table(result: Comparison, texts: Mapping[int, str]) -> Table:
    """The experts that specialise most; ``texts``: token → its text."""
    return Table(
        ("domain", "layer", "expert", "share", "elsewhere", "z", "fires on"),
        [_specialist(e, texts) for e in result.specialists[:SHOWN_SPECIALISTS]],
        numbers=("layer", "expert", "share", "elsewhere", "z"),
        spare=("elsewhere", "z", "share"),
    )


def _specialist(expert: Specialist, texts: Mapping[int, str]) -> tuple[str, ...]:
    return (
        clean_line(expert.domain),
        str(expert.layer),
        str(expert.expert),
        _percent(expert.share),
        _percent(expert.elsewhere),
        f"{expert.z:.1f}",
        " ".join(_token_text(token, texts) for token, _, _ in expert.fires_on) or NOTHING,
    )


def _token_text(token: int, texts: Mapping[int, str]) -> str:
    """``“␣the”``: quoted, with white space visible; ``#1234`` for a token without text."""
    if token not in texts or "\ufffd" in texts[token]:  # unknown, or part of a character
        return f"#{token}"
    visible = texts[token].replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")
    return f"“{clean_line(visible)}”"


def memory_table(rows: Sequence[Row]) -> Table:
    """One row per memory budget: hit rate per policy, reads and tokens per second."""
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
    return Table(columns, table, numbers=columns, spare=[*spare, "read per token"])


def _mean(layers: Sequence[LayerStats], name: str) -> str:
    return _number(mean_of([getattr(e.balance, name) for e in layers]), 2)


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{100 * value:.0f} %"
