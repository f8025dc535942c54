"""What a cache of a given size would have done on a trace: hits, misses, bytes, speed. Pure.

Tokens of prompts fill the cache like all others, but by default only decoded tokens are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localmoe.routing.capacity import expert_sizes
from localmoe.routing.overlap import together
from localmoe.routing.policies import Accesses, Capacities, Policy, replay
from localmoe.routing.records import Mask, Trace

LAST_TO_GO = 1e300  # the rank of what the layer at work uses: evicted when nothing else is left


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of one replay."""

    policy: str
    room: int  # experts that fit, all layers together
    tokens: int
    lookups: int
    hits: int
    compulsory: int  # misses of experts never used before: no policy avoids them on a cold start
    bytes_missed: int  # 0 when the trace has no expert sizes
    layer_hit_rates: tuple[float, ...]

    @property
    def hit_rate(self) -> float:
        return self.hits / self.lookups if self.lookups else 0.0

    @property
    def bytes_per_token(self) -> float:
        return self.bytes_missed / self.tokens if self.tokens else 0.0


def simulate(
    trace: Trace,
    capacities: Capacities,
    policy: Policy,
    name: str,
    *,
    counted: Mask | None = None,
    start: Mask | None = None,
) -> Outcome:
    """Replay ``trace`` with room for ``capacities`` i64[layers] experts.

    ``counted`` bool[n]: whose lookups count, the decoded tokens by default. ``start``
    bool[layers, experts]: what is loaded before the first token.
    """
    accesses = Accesses.of(trace)
    hits = replay(accesses, capacities, policy, start)
    return _outcome(trace, accesses, hits, name, int(capacities.sum()), counted, start)


def simulate_shared(
    trace: Trace,
    budget: int,
    *,
    cyclic: bool,
    counted: Mask | None = None,
) -> Outcome:
    """One cache for all layers, of ``budget`` bytes.

    Plain LRU evicts the experts of the layers that come next, since they were used longest ago.
    ``cyclic`` evicts from the layer that will come last instead, which is the one just done; in it
    the least recently used (the idea of Least-Stale: Hoang et al., SpecMD, arXiv:2602.03921).
    """
    accesses = Accesses.of(trace)
    hits = _replay_shared(accesses, expert_sizes(trace), budget, cyclic)
    name = "shared, least stale" if cyclic else "shared, LRU"
    room = int(budget / expert_sizes(trace).mean())
    return _outcome(trace, accesses, hits, name, room, counted, None)


def _replay_shared(accesses: Accesses, sizes: NDArray[np.int64], budget: int, cyclic: bool) -> Mask:
    layers, width = accesses.shape
    used = np.full(layers * width, np.inf)  # when a resident expert was used last
    bytes_of = np.repeat(sizes, width)
    number = np.repeat(np.arange(layers), width)
    hits = np.zeros(accesses.ids.shape, bool)
    held, clock = 0, 0
    # Layers until the next visit, from each: the one just done has the longest way to go.
    away = [((number - layer - 1) % layers) * 1e9 if cyclic else 0.0 for layer in range(layers)]
    for step, ids in enumerate(accesses.ids):
        for layer in range(layers):
            slots = np.nonzero(ids[layer] >= 0)[0]
            wanted = layer * width + ids[layer, slots]
            is_new = np.isinf(used[wanted])
            hits[step, layer, slots] = ~is_new
            held += int(sizes[layer]) * len(set(wanted[is_new].tolist()))
            clock += 1
            used[wanted] = clock
            if held <= budget:
                continue
            rank = used - away[layer]
            rank[wanted] = LAST_TO_GO
            while held > budget:
                evicted = int(rank.argmin())  # of equals the first, on every machine
                rank[evicted] = used[evicted] = np.inf
                held -= int(bytes_of[evicted])
    return hits


def _outcome(
    trace: Trace,
    accesses: Accesses,
    hits: Mask,
    name: str,
    room: int,
    counted: Mask | None,
    start: Mask | None,
) -> Outcome:
    counted = trace.decode if counted is None else counted
    looked = accesses.ids >= 0
    first = first_uses(accesses)
    if start is not None:
        layers = np.arange(len(start))[None, :, None]
        first &= ~(start[layers, accesses.ids] & looked)
    hits, looked, first = hits[counted], looked[counted], first[counted]
    per_layer = looked.sum(axis=(0, 2))
    layer_hits = hits.sum(axis=(0, 2))
    missed = (per_layer - layer_hits) * [layer.expert_bytes for layer in trace.header.layers]
    return Outcome(
        policy=name,
        room=room,
        tokens=int(counted.sum()),
        lookups=int(per_layer.sum()),
        hits=int(layer_hits.sum()),
        compulsory=int((first & ~hits).sum()),
        bytes_missed=int(missed.sum()),
        layer_hit_rates=tuple((layer_hits / np.maximum(per_layer, 1)).tolist()),
    )


def first_uses(accesses: Accesses) -> Mask:
    """bool[steps, layers, k]: lookups of experts that were never used before."""
    first = np.zeros(accesses.ids.shape, bool)
    for layer in range(accesses.ids.shape[1]):
        ids = accesses.ids[:, layer].reshape(-1)
        known, at = np.unique(ids, return_index=True)
        flat = np.zeros(len(ids), bool)
        flat[at[known >= 0]] = True
        first[:, layer] = flat.reshape(len(accesses.ids), -1)
    return first


def tokens_per_second(
    compute_seconds: float, bytes_per_token: float, bandwidth: float, *, hidden: float
) -> float:
    """Tokens/s when misses are read at ``bandwidth`` bytes/s, the share ``hidden`` of the shorter
    one of computing and reading at the same time as the other.
    """
    reading = bytes_per_token / bandwidth if bandwidth > 0 else 0.0
    seconds = together(compute_seconds, reading, hidden)
    return 1 / seconds if seconds > 0 else 0.0
