"""The plots of a report, from statistics. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from localmoe.routing.compare import Comparison, Group
from localmoe.routing.outlook import OPTIMUM, Row
from localmoe.routing.stats import CAPACITY_FACTORS, LAGS, LayerStats, load_of, mean_of
from localmoe.routing.svg import Line, Plot, heat_map, line_plot

UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
LABEL = 14  # characters of a domain's name


def layer_plots(layers: Sequence[LayerStats]) -> list[Plot]:
    """Load, balance, reuse, prediction and, where there are logits, confidence."""
    plots = [_load(layers), _balance(layers), _dropped(layers), _reuse(layers), _prediction(layers)]
    if any(e.confidence for e in layers):
        plots += [_confidence(layers), _margin(layers)]
    return plots


def _load(layers: Sequence[LayerStats]) -> Plot:
    title = "Load of every expert"
    return Plot(
        "load",
        title,
        "Each row is a layer, each column an expert; black experts were never used.",
        heat_map(title, "expert", "layer", [(str(e.layer), _ratios(e)) for e in layers]),
    )


def _balance(layers: Sequence[LayerStats]) -> Plot:
    title = "Balance of the load"
    lines = [Line("entropy", [e.balance.entropy for e in layers])]
    return Plot(
        "balance",
        title,
        "Entropy of the load ÷ log of the number of experts: 1 is an even load, 0 one expert.",
        _by_layer(layers, title, "normalized entropy", lines, y_top=1.0),
    )


def _dropped(layers: Sequence[LayerStats]) -> Plot:
    title = "What a fixed capacity would drop"
    lines = [
        Line(f"factor {factor:g}", [e.balance.dropped[factor] for e in layers])
        for factor in CAPACITY_FACTORS
    ]
    return Plot(
        "dropped",
        title,
        "Share of the assignments beyond capacity factor × mean load, if every expert had "
        "that capacity over the whole recording.",
        _by_layer(layers, title, "share of assignments", lines, percent=True),
    )


def _reuse(layers: Sequence[LayerStats]) -> Plot:
    title = "How soon experts come back"
    reused = [mean_of([e.reuse.at_lag[lag] for e in layers]) for lag in LAGS]
    independent = [mean_of([e.reuse.by_chance for e in layers])] * len(LAGS)
    return Plot(
        "reuse",
        title,
        "Share of a token's experts that the token so many steps before used; the dashed line "
        "is what independent tokens with the same loads would show.",
        line_plot(
            title,
            "tokens before",
            "mean over the layers",
            [float(lag) for lag in LAGS],
            [Line("reused", reused), Line("by chance", independent, dashed=True)],
            x_labels=[str(lag) for lag in LAGS],
            percent=True,
        ),
    )


def _prediction(layers: Sequence[LayerStats]) -> Plot:
    title = "How well the next layer's experts are foreseen"
    lines = [
        Line("from this layer", [_foreseen(e, "from_layer") for e in layers]),
        Line("token before", [_foreseen(e, "from_previous") for e in layers]),
        Line("popularity", [_foreseen(e, "from_popularity") for e in layers], dashed=True),
    ]
    return Plot(
        "prediction",
        title,
        "Recall with k guesses, learnt on the first half of the tokens, tested on the second.",
        _by_layer(layers, title, "recall", lines, percent=True, y_top=1.0),
    )


def _confidence(layers: Sequence[LayerStats]) -> Plot:
    title = "How decided the router is"
    mass = [e.confidence.top_mass if e.confidence else math.nan for e in layers]
    lines = [Line("top-k mass", mass)]
    return Plot(
        "confidence",
        title,
        "Softmax probability of the chosen experts together, mean over the tokens.",
        _by_layer(layers, title, "probability", lines, percent=True, y_top=1.0),
    )


def _margin(layers: Sequence[LayerStats]) -> Plot:
    title = "Margin to the first loser"
    margin = [e.confidence.margin if e.confidence else math.nan for e in layers]
    return Plot(
        "margin",
        title,
        "Lowest chosen logit minus the highest other, mean over the tokens.",
        _by_layer(layers, title, "logits", [Line("margin", margin)]),
    )


def _by_layer(
    layers: Sequence[LayerStats],
    title: str,
    y_name: str,
    lines: Sequence[Line],
    *,
    percent: bool = False,
    y_top: float | None = None,
) -> str:
    """Curves with one point per layer, as SVG."""
    return line_plot(
        title,
        "layer",
        y_name,
        [float(e.layer) for e in layers],
        lines,
        x_labels=[str(e.layer) for e in layers],
        percent=percent,
        y_top=y_top,
    )


def memory_plots(rows: Sequence[Row]) -> list[Plot]:
    """Hit rate and, where speeds are known, tokens/s against memory for experts."""
    sized = all(row.budget for row in rows)
    unit, size = _unit(max(row.budget for row in rows))
    xs = [row.budget / size if sized else 100 * row.share for row in rows]
    x_name = f"{unit} for experts" if sized else "% of the experts in memory"
    plots = [_hits(rows, xs, x_name)]
    if any(row.tps is not None for row in rows):
        plots.append(_speed(rows, xs, x_name))
    return plots


def _hits(rows: Sequence[Row], xs: Sequence[float], x_name: str) -> Plot:
    title = "Hit rate against memory"
    lines = [
        Line(policy, [row.outcomes[policy].hit_rate for row in rows], policy == OPTIMUM)
        for policy in rows[0].outcomes
    ]
    return Plot(
        "hits",
        title,
        "Expert lookups of the decoded tokens that find the expert in memory.",
        line_plot(title, x_name, "hits", xs, lines, percent=True, y_top=1.0),
    )


def _speed(rows: Sequence[Row], xs: Sequence[float], x_name: str) -> Plot:
    title = "What more memory would buy"
    lines = [
        Line("expected", [_known(row.tps) for row in rows]),
        Line("reading hidden", [_known(row.tps_hidden) for row in rows], dashed=True),
    ]
    return Plot(
        "speed",
        title,
        "Tokens per second on this machine: as expected, and with reading wholly hidden "
        "behind computing.",
        line_plot(title, x_name, "tok/s", xs, lines),
    )


def comparison_plots(result: Comparison, groups: Sequence[Group]) -> list[Plot]:
    """Divergence beside chance, and the domains' loads where they differ most."""
    return [_divergence(result), _domains(result, groups)]


def _divergence(result: Comparison) -> Plot:
    title = "Do experts specialise?"
    lines = [
        Line("domains", [e.divergence for e in result.layers]),
        Line("shuffled, mean", [e.chance_mean for e in result.layers], dashed=True),
        Line("shuffled, 95 %", [e.chance_high for e in result.layers], dashed=True),
    ]
    return Plot(
        "divergence",
        title,
        "Jensen-Shannon divergence between the domains' loads; dashed, what shuffled domains "
        "show in the mean and below what 95 of 100 shuffles stay.",
        line_plot(
            title,
            "layer",
            "bits",
            [float(e.layer) for e in result.layers],
            lines,
            x_labels=[str(e.layer) for e in result.layers],
        ),
    )


def _domains(result: Comparison, groups: Sequence[Group]) -> Plot:
    """Of the layer in which the divergence exceeds chance by most."""
    excess = [layer.divergence - layer.chance_high for layer in result.layers]
    at = excess.index(max(excess))
    layer = groups[0].trace.header.layers[at]
    rows = []
    for group in groups:
        load = load_of(group.trace.layer_ids[at][group.tokens], layer.experts)
        mean = load.sum() / layer.experts
        rows.append((group.label[:LABEL], (load / np.maximum(mean, 1e-9)).tolist()))
    title = f"Load by domain in layer {layer.index}"
    return Plot(
        "domains",
        title,
        "The layer in which the domains differ most beyond chance.",
        heat_map(title, "expert", "domain", rows),
    )


def _unit(largest: int) -> tuple[str, int]:
    return next((unit for unit in UNITS if largest >= unit[1]), UNITS[-1])


def _ratios(layer: LayerStats) -> list[float]:
    mean = sum(layer.load) / layer.experts
    return [load / mean if mean else 0.0 for load in layer.load]


def _foreseen(layer: LayerStats, name: str) -> float:
    return float(getattr(layer.next_layer, name)) if layer.next_layer else math.nan


def _known(value: float | None) -> float:
    return math.nan if value is None else value
