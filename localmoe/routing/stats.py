"""What the literature measures about a router, per layer. Pure; docs/routing.md has the formulas.

Figures that need the router's logits are None when a trace has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localmoe.routing.policies import COLD, Accesses, stack_distances
from localmoe.routing.records import Floats, Ids, Mask, Trace

CAPACITY_FACTORS = (1.0, 1.25, 2.0)
LAGS = (1, 2, 4, 8, 16, 32, 64)
NEAR_DEAD = 0.1  # an expert with less than this part of an even share is near dead
MIN_TOGETHER = 5  # pairs that fire together less often are left out: that may be chance
PAIRS = 5  # pairs per layer that are listed

Load = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Balance:
    """How evenly tokens are spread over one layer's experts."""

    entropy: float  # of the load, ÷ log(experts): 1 even, 0 one expert
    variation: float  # standard deviation ÷ mean of the load
    busiest: float  # largest load ÷ mean
    dropped: Mapping[float, float]  # capacity factor → share of assignments over capacity
    dead: int  # experts never used
    near_dead: int  # used, but under a tenth of an even share
    dead_by_chance: float  # never used, expected under an even router with as many tokens


@dataclass(frozen=True, slots=True)
class Confidence:
    """How clearly the router prefers the experts that it chooses, from its logits."""

    top_mass: float  # softmax probability of the chosen experts together, mean
    margin: float  # lowest chosen logit minus highest other, mean
    z: float  # mean squared log-sum-exp


@dataclass(frozen=True, slots=True)
class Reuse:
    """How soon experts are used again."""

    median_distance: float | None  # distinct other experts used since; None: nothing came back
    first_uses: float  # share of lookups that were the first of their expert
    at_lag: Mapping[int, float]  # lag → share of a token's experts that the token lag before used
    by_chance: float  # that share if tokens were independent, with the same load


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts of a layer that are chosen together ``lift`` times as often as by chance."""

    a: int
    b: int
    together: int
    lift: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Recall with k guesses of the next MoE layer's experts.

    Learnt on the first half of the tokens, tested on the second.
    """

    from_layer: float  # guessed from the experts of this layer
    from_previous: float  # … from those that the token before used in the next layer
    from_popularity: float  # … from how often each was used so far


@dataclass(frozen=True, slots=True)
class LayerStats:
    layer: int
    experts: int
    used: int
    load: tuple[int, ...]  # assignments per expert
    balance: Balance
    confidence: Confidence | None
    reuse: Reuse
    pairs: tuple[Pair, ...]
    next_layer: Prediction | None  # None for the last MoE layer, or with too few tokens


def layer_stats(trace: Trace) -> tuple[LayerStats, ...]:
    """Statistics of every MoE layer over all tokens of ``trace`` (``select`` some beforehand)."""
    accesses = Accesses.of(trace)
    distances = stack_distances(accesses)
    result = []
    for at, layer in enumerate(trace.header.layers):
        ids = trace.layer_ids[at]
        logits = trace.layer_logits[at] if trace.layer_logits else None
        following = at + 1 < len(trace.header.layers)
        result.append(
            LayerStats(
                layer=layer.index,
                experts=layer.experts,
                used=layer.used,
                load=tuple(load_of(ids, layer.experts).tolist()),
                balance=balance(load_of(ids, layer.experts), _tokens(ids)),
                confidence=confidence(ids, logits) if logits is not None else None,
                reuse=_reuse(ids, distances[:, at], trace.segment, layer.experts),
                pairs=co_activations(ids, layer.experts),
                next_layer=next_layer(trace, at) if following else None,
            )
        )
    return tuple(result)


def load_of(ids: Ids, experts: int) -> Load:
    """Assignments per expert, i64[experts]."""
    return np.bincount(ids[ids >= 0], minlength=experts).astype(np.int64)


def balance(load: Load, tokens: int) -> Balance:
    """How even ``load`` i64[experts] of ``tokens`` tokens is; NaN or 0 for an empty load."""
    total, experts = int(load.sum()), len(load)
    if not total:
        nothing = dict.fromkeys(CAPACITY_FACTORS, math.nan)
        return Balance(math.nan, math.nan, math.nan, nothing, experts, 0, float(experts))
    share = load / total
    used = share[share > 0]
    entropy = float(-(used * np.log(used)).sum() / math.log(experts)) if experts > 1 else 1.0
    mean = total / experts
    chosen = min(1.0, total / max(tokens, 1) / experts)  # k / experts
    return Balance(
        entropy=max(entropy, 0.0),
        variation=float(load.std() / mean),
        busiest=float(load.max() / mean),
        dropped={
            factor: float(np.maximum(load - factor * mean, 0).sum() / total)
            for factor in CAPACITY_FACTORS
        },
        dead=int((load == 0).sum()),
        near_dead=int(((load > 0) & (share < NEAR_DEAD / experts)).sum()),
        dead_by_chance=experts * (1 - chosen) ** tokens,
    )


def confidence(ids: Ids, logits: Floats) -> Confidence | None:
    """None when no token has both experts and logits."""
    rows = (ids >= 0).all(axis=1) & np.isfinite(logits).all(axis=1)
    if not rows.any():
        return None
    chosen, values = ids[rows].astype(np.int64), logits[rows].astype(np.float64)
    top = values.max(axis=1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(values - top).sum(axis=1))
    winners = np.take_along_axis(values, chosen, axis=1)
    losers = values.copy()
    np.put_along_axis(losers, chosen, -np.inf, axis=1)
    margin = winners.min(axis=1) - losers.max(axis=1)
    return Confidence(
        top_mass=float(np.exp(winners - log_sum[:, None]).sum(axis=1).mean()),
        margin=float(margin[np.isfinite(margin)].mean()) if np.isfinite(margin).any() else math.nan,
        z=float((log_sum**2).mean()),
    )


def one_hot(ids: Ids, experts: int) -> Mask:
    """bool[n, experts]: which experts a token used."""
    mask = np.zeros((len(ids), experts), bool)
    token, slot = np.nonzero(ids >= 0)
    mask[token, ids[token, slot]] = True
    return mask


def lag_reuse(ids: Ids, segment: NDArray[np.int32], experts: int, lag: int) -> float:
    """Share of the experts that were used ``lag`` tokens before, in the same prompt; NaN if none
    is that long."""
    if lag >= len(ids):
        return math.nan
    used = one_hot(ids, experts)
    now, then = used[lag:], used[:-lag]
    valid = (segment[lag:] == segment[:-lag]) & now.any(axis=1) & then.any(axis=1)
    lookups = int(now[valid].sum())
    return float((now & then)[valid].sum() / lookups) if lookups else math.nan


def reuse_at_lag(trace: Trace, lag: int) -> float:
    """``lag_reuse``, mean over the layers."""
    shares = [
        lag_reuse(ids, trace.segment, layer.experts, lag)
        for ids, layer in zip(trace.layer_ids, trace.header.layers, strict=True)
    ]
    known = [share for share in shares if not math.isnan(share)]
    return sum(known) / len(known) if known else math.nan


def _reuse(
    ids: Ids, distances: NDArray[np.int32], segment: NDArray[np.int32], experts: int
) -> Reuse:
    looked = distances[distances >= 0]
    back = looked[looked != COLD]
    rate = load_of(ids, experts) / max(_tokens(ids), 1)
    total = rate.sum()
    return Reuse(
        median_distance=float(np.median(back)) if len(back) else None,
        first_uses=float((looked == COLD).mean()) if len(looked) else math.nan,
        at_lag={lag: lag_reuse(ids, segment, experts, lag) for lag in LAGS},
        by_chance=float((rate**2).sum() / total) if total else math.nan,
    )


def co_activations(ids: Ids, experts: int) -> tuple[Pair, ...]:
    """The pairs that fire together most beyond what their loads explain.

    Ranked by (observed - expected) / sqrt(expected), with expected = n · rate(a) · rate(b).
    """
    used = one_hot(ids, experts).astype(np.float32)
    tokens = _tokens(ids)
    if tokens == 0:
        return ()
    together = used.T @ used
    expected = np.outer(together.diagonal(), together.diagonal()) / tokens
    surprise = np.where(
        together >= MIN_TOGETHER, (together - expected) / np.sqrt(np.maximum(expected, 1e-9)), 0
    )
    a, b = np.triu_indices(experts, 1)
    best = np.argsort(-surprise[a, b], kind="stable")[:PAIRS]
    return tuple(
        Pair(int(i), int(j), int(together[i, j]), float(together[i, j] / expected[i, j]))
        for i, j in zip(a[best], b[best], strict=True)
        if surprise[i, j] > 0
    )


def next_layer(trace: Trace, at: int) -> Prediction | None:
    """How well the experts of layer ``at`` + 1 follow from those of layer ``at`` (positions in the
    trace). None with fewer than 16 tokens that have both."""
    here, there = trace.header.layers[at], trace.header.layers[at + 1]
    both = (trace.layer_ids[at] >= 0).any(axis=1) & (trace.layer_ids[at + 1] >= 0).any(axis=1)
    if both.sum() < 16:
        return None
    given = one_hot(trace.layer_ids[at][both], here.experts).astype(np.float64)
    wanted = one_hot(trace.layer_ids[at + 1][both], there.experts)
    half = len(given) // 2
    popularity = wanted[:half].mean(axis=0)
    # P(b | a), drawn towards b's popularity where a was rare.
    joint = given[:half].T @ wanted[:half] + popularity
    conditional = joint / (given[:half].sum(axis=0) + 1)[:, None]
    scores = given[half:] @ conditional
    tested, k = wanted[half:], there.used
    popular = np.broadcast_to(popularity, tested.shape)
    return Prediction(
        from_layer=recall(scores, tested, k),
        from_previous=float((wanted[half - 1 : -1] & tested).sum() / tested.sum()),
        from_popularity=recall(popular, tested, k),
    )


def recall(scores: NDArray[np.float64], wanted: Mask, k: int) -> float:
    """Share of the wanted experts among the k best scored of each token."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(wanted, best, axis=1).sum() / wanted.sum())


def mean_of(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN when there is none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _tokens(ids: Ids) -> int:
    return int((ids >= 0).any(axis=1).sum())
