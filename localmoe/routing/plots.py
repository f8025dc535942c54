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
    labels = [str(e.layer) for e in layers]
    reused = [mean_of([e.reuse.at_lag[lag] for e in layers]) for lag in LAGS]
    independent = [mean_of([e.reuse.by_chance for e in layers])] * len(LAGS)
    xs = [float(e.layer) for e in layers]

    def per_layer(title: str, y: str, lines: Sequence[Line], **how: float | bool) -> str:
        return line_plot(title, "layer", y, xs, lines, x_labels=labels, **how)  # type: ignore[arg-type]

    plots = [
        Plot(
            "load",
            "Load of every expert",
            "Each row is a layer, each column an expert; black experts were never used.",
            heat_map(
                "Load of every expert",
                "expert",
                "layer",
                [(str(e.layer), _ratios(e)) for e in layers],
            ),
        ),
        Plot(
            "balance",
            "Balance of the load",
            "Entropy of the load ÷ log of the number of experts: 1 is an even load, 0 one expert.",
            per_layer(
                "Balance of the load",
                "normalized entropy",
                [Line("entropy", [e.balance.entropy for e in layers])],
                y_top=1.0,
            ),
        ),
        Plot(
            "dropped",
            "What a fixed capacity would drop",
            "Share of the assignments beyond capacity factor × mean load, if every expert had "
            "that capacity over the whole recording.",
            per_layer(
                "What a fixed capacity would drop",
                "share of assignments",
                [
                    Line(f"factor {factor:g}", [e.balance.dropped[factor] for e in layers])
                    for factor in CAPACITY_FACTORS
                ],
                percent=True,
            ),
        ),
        Plot(
            "reuse",
            "How soon experts come back",
            "Share of a token's experts that the token so many steps before used; the dashed line "
            "is what independent tokens with the same loads would show.",
            line_plot(
                "How soon experts come back",
                "tokens before",
                "mean over the layers",
                [float(lag) for lag in LAGS],
                [Line("reused", reused), Line("by chance", independent, dashed=True)],
                x_labels=[str(lag) for lag in LAGS],
                percent=True,
            ),
        ),
        Plot(
            "prediction",
            "How well the next layer's experts are foreseen",
            "Recall with k guesses, learnt on the first half of the tokens, tested on the second.",
            per_layer(
                "How well the next layer's experts are foreseen",
                "recall",
                [
                    Line("from this layer", [_foreseen(e, "from_layer") for e in layers]),
                    Line("token before", [_foreseen(e, "from_previous") for e in layers]),
                    Line("popularity", [_foreseen(e, "from_popularity") for e in layers], True),
                ],
                percent=True,
                y_top=1.0,
            ),
        ),
    ]
    if any(e.confidence for e in layers):
        mass = [e.confidence.top_mass if e.confidence else math.nan for e in layers]
        margin = [e.confidence.margin if e.confidence else math.nan for e in layers]
        plots.append(
            Plot(
                "confidence",
                "How decided the router is",
                "Softmax probability of the chosen experts together, mean over the tokens.",
                per_layer(
                    "How decided the router is",
                    "probability",
                    [Line("top-k mass", mass)],
                    percent=True,
                    y_top=1.0,
                ),
            )
        )
        plots.append(
            Plot(
                "margin",
                "Margin to the first loser",
                "Lowest chosen logit minus the highest other, mean over the tokens.",
                per_layer("Margin to the first loser", "logits", [Line("margin", margin)]),
            )
        )
    return plots


def memory_plots(rows: Sequence[Row]) -> list[Plot]:
    """Hit rate and, with speeds, tokens/s against memory."""
    sized = all(row.budget for row in rows)
    unit, size = _unit(max(row.budget for row in rows))
    xs = [row.budget / size if sized else 100 * row.share for row in rows]
    name = f"{unit} for experts" if sized else "% of the experts in memory"
    plots = [
        Plot(
            "hits",
            "Hit rate against memory",
            "Expert lookups of the decoded tokens that find the expert in memory.",
            line_plot(
                "Hit rate against memory",
                name,
                "hits",
                xs,
                [
                    Line(policy, [row.outcomes[policy].hit_rate for row in rows], policy == OPTIMUM)
                    for policy in rows[0].outcomes
                ],
                percent=True,
                y_top=1.0,
            ),
        )
    ]
    if any(row.tps is not None for row in rows):
        plots.append(
            Plot(
                "speed",
                "What more memory would buy",
                "Tokens per second on this machine: with reading after computing, and with "
                "reading wholly hidden behind it.",
                line_plot(
                    "What more memory would buy",
                    name,
                    "tok/s",
                    xs,
                    [
                        Line("read, then compute", [_known(row.tps) for row in rows]),
                        Line("reading hidden", [_known(row.tps_hidden) for row in rows], True),
                    ],
                ),
            )
        )
    return plots


def comparison_plots(result: Comparison, groups: Sequence[Group]) -> list[Plot]:
    """Divergence beside chance, and the domains' loads where they differ most."""
    at = max(
        range(len(result.layers)),
        key=lambda i: result.layers[i].divergence - result.layers[i].chance_high,
    )
    layer = groups[0].trace.header.layers[at]
    rows = []
    for group in groups:
        load = load_of(group.trace.layer_ids[at][group.tokens], layer.experts)
        mean = load.sum() / layer.experts
        rows.append((group.label[:LABEL], (load / np.maximum(mean, 1e-9)).tolist()))
    return [
        Plot(
            "divergence",
            "Do experts specialise?",
            "Jensen-Shannon divergence between the domains' loads; dashed, what shuffled domains "
            "show in the mean and below what 95 of 100 shuffles stay.",
            line_plot(
                "Do experts specialise?",
                "layer",
                "bits",
                [float(e.layer) for e in result.layers],
                [
                    Line("domains", [e.divergence for e in result.layers]),
                    Line("shuffled, mean", [e.chance_mean for e in result.layers], True),
                    Line("shuffled, 95 %", [e.chance_high for e in result.layers], True),
                ],
                x_labels=[str(e.layer) for e in result.layers],
            ),
        ),
        Plot(
            "domains",
            f"Load by domain in layer {layer.index}",
            "The layer in which the domains differ most beyond chance.",
            heat_map(f"Load by domain in layer {layer.index}", "expert", "domain", rows),
        ),
    ]


def _unit(largest: int) -> tuple[str, int]:
    return next((unit for unit in UNITS if largest >= unit[1]), UNITS[-1])


def _ratios(layer: LayerStats) -> list[float]:
    mean = sum(layer.load) / layer.experts
    return [load / mean if mean else 0.0 for load in layer.load]


def _foreseen(layer: LayerStats, name: str) -> float:
    return float(getattr(layer.next_layer, name)) if layer.next_layer else math.nan


def _known(value: float | None) -> float:
    return math.nan if value is None else value
