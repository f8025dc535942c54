"""How many experts each layer's cache may keep: evenly, or more where that gains more hits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.routing.policies import COLD, Accesses, Capacities, stack_distances
from localmoe.routing.records import Mask, Trace


def even_capacities(trace: Trace, fraction: float) -> Capacities:
    """Experts per layer when every layer keeps the same share, rounded to whole experts."""
    experts = np.array([layer.experts for layer in trace.header.layers], np.int64)
    room: Capacities = np.rint(experts * fraction).astype(np.int64)
    return room


def budget_bytes(trace: Trace, fraction: float) -> int:
    """``fraction`` of all routed experts, in bytes (in experts where sizes are unknown)."""
    experts = np.array([layer.experts for layer in trace.header.layers], np.int64)
    return int((experts * expert_sizes(trace)).sum() * fraction)


def expert_sizes(trace: Trace) -> NDArray[np.int64]:
    """Bytes of one expert per layer; 1 everywhere when the trace does not say."""
    sizes = np.array([layer.expert_bytes for layer in trace.header.layers], np.int64)
    return sizes if (sizes > 0).all() else np.ones(len(sizes), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Curves:
    """How often an LRU cache of each size would hit, per layer.

    ``hits`` i64[layers, experts + 1]: hits with room for 0, 1, 2 … experts; layers with fewer
    experts repeat their last value. ``lookups`` i64[layers].
    """

    hits: NDArray[np.int64]
    lookups: NDArray[np.int64]

    def hit_rate(self, capacities: Capacities) -> float:
        """Hits ÷ lookups of all layers together, with ``capacities`` experts kept per layer."""
        at = np.minimum(capacities, self.hits.shape[1] - 1)
        total = int(self.lookups.sum())
        return float(self.hits[np.arange(len(at)), at].sum() / total) if total else 0.0


def lru_curves(trace: Trace, *, counted: Mask | None = None, at_once: bool = True) -> Curves:
    """The hits of LRU caches of every size, from one pass over the trace (stack distances).

    ``counted`` bool[n]: whose lookups count, the decoded tokens by default. ``at_once``: see
    ``stack_distances``.
    """
    counted = trace.decode if counted is None else counted
    accesses = Accesses.of(trace)
    distances = stack_distances(accesses, at_once=at_once)[counted]
    most = int(accesses.experts.max())
    hits = np.zeros((len(accesses.experts), most + 1), np.int64)
    lookups = np.zeros(len(accesses.experts), np.int64)
    for layer in range(len(lookups)):
        here = distances[:, layer]
        found = here[(here >= 0) & (here != COLD)]
        hits[layer, 1:] = np.cumsum(np.bincount(found, minlength=most)[:most])
        lookups[layer] = (here >= 0).sum()
    return Curves(hits, lookups)


def capacities_by_gain(
    curves: Curves, sizes: NDArray[np.int64], budget: int, minimum: Capacities
) -> Capacities:
    """Experts per layer with which LRU caches hit most often within ``budget`` bytes.

    Each layer starts with ``minimum`` experts and gets more where the next bytes gain the most
    hits, in steps along the concave envelope of its curve (Stone, Turek and Wolf, 1992, on the
    optimal partitioning of caches). A budget below the minimum is shared out evenly.
    """
    experts = curves.hits.shape[1] - 1
    result: Capacities = np.minimum(minimum, experts).astype(np.int64)
    left = budget - int((result * sizes).sum())
    if left < 0:
        return minimum * budget // int((minimum * sizes).sum())
    steps: list[tuple[float, int, int, int]] = []  # gain per byte, layer, from, to
    for layer, curve in enumerate(curves.hits.astype(float)):
        at = int(result[layer])
        while at < experts:
            ahead = np.arange(at + 1, experts + 1)
            slopes = (curve[ahead] - curve[at]) / (ahead - at)
            to = int(ahead[len(slopes) - 1 - int(np.argmax(slopes[::-1]))])
            steps.append((float(slopes.max()) / float(sizes[layer]), layer, at, to))
            at = to
    for gain, layer, _, to in sorted(steps, key=lambda step: (-step[0], step[2], step[1])):
        if gain <= 0:
            break
        more = min(to - int(result[layer]), left // int(sizes[layer]))
        result[layer] += more
        left -= more * int(sizes[layer])
    # Bytes that gain no hit on this trace are still given out: another one may use them.
    while (open_ := np.nonzero((result < experts) & (sizes <= left))[0]).size:
        layer = int(open_[np.argmin(result[open_])])
        result[layer] += 1
        left -= int(sizes[layer])
    return result


def counts_of(trace: Trace, tokens: Mask | None = None) -> NDArray[np.float64]:
    """Uses of every expert, f64[layers, experts], by ``tokens`` bool[n]; None: by all tokens."""
    most = max(layer.experts for layer in trace.header.layers)
    rows: list[NDArray[Any]] = []
    for ids in trace.layer_ids:
        chosen = ids if tokens is None else ids[tokens]
        rows.append(np.bincount(chosen[chosen >= 0], minlength=most))
    return np.array(rows, np.float64)
