"""Cache policies as pure functions, replayed on the expert ids of a trace.

Every policy here ranks experts by their uses alone, not by what the cache holds. So a policy is a
function from the accesses to one array of priorities per step, and the replay evicts the experts
with the lowest. The optimum, which knows the future (Belady), is a function of the same kind.

A step is one token: the router names all its k experts at once, so none of them is evicted to make
room for another of the same token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from localmoe.routing.records import ABSENT, Mask, Trace

Priorities: TypeAlias = NDArray[np.float64]  # [layers, experts], the lowest is evicted first
Capacities: TypeAlias = NDArray[np.int64]  # [layers], experts that a layer may keep

COLD = np.iinfo(np.int32).max  # stack distance of an expert that was not used before
NEVER = 1e12  # steps until an expert that is not used again
_IN_USE = 1e15  # added to the priorities of the experts that are being used


@dataclass(frozen=True, slots=True, eq=False)
class Accesses:
    """The experts that each token used: ``ids`` i64[steps, layers, k], padded with -1.

    ``experts`` i64[layers]: how many the layers have.
    """

    ids: NDArray[np.int64]
    experts: NDArray[np.int64]

    @classmethod
    def of(cls, trace: Trace) -> Accesses:
        """Of all tokens of a trace, one step each; tokens of prompts too."""
        width = max(layer.used for layer in trace.header.layers)
        ids = np.full((len(trace), len(trace.layers), width), ABSENT, np.int64)
        for at, layer_ids in enumerate(trace.layer_ids):
            ids[:, at, : layer_ids.shape[1]] = layer_ids
        return cls(ids, np.array([layer.experts for layer in trace.header.layers]))

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, experts of the layer with most of them)."""
        return len(self.experts), int(self.experts.max())

    def used(self, step: int) -> Mask:
        """bool[layers, experts]: what one step needs."""
        mask = np.zeros(self.shape, bool)
        layer, slot = np.nonzero(self.ids[step] >= 0)
        mask[layer, self.ids[step][layer, slot]] = True
        return mask


Policy: TypeAlias = Callable[[Accesses, Capacities], Iterator[Priorities]]


def lru(accesses: Accesses, capacities: Capacities) -> Iterator[Priorities]:
    """Least recently used; within a step the router's last choice goes first."""
    last = np.full(accesses.shape, -1.0)
    for step, ids in enumerate(accesses.ids):
        layer, slot = np.nonzero(ids >= 0)
        last[layer, ids[layer, slot]] = step + 1 - (slot + 1) / (ids.shape[1] + 1)
        yield last


def lfu(
    accesses: Accesses, capacities: Capacities, *, half_life: float | None = None
) -> Iterator[Priorities]:
    """Least frequently used. ``half_life``: steps after which a use counts half; None: all count.

    Of experts used equally often the least recently used goes first.
    """
    counts = np.zeros(accesses.shape)
    fade = 0.5 ** (1 / half_life) if half_life else 1.0
    for step, recent in enumerate(lru(accesses, capacities)):
        counts = counts * fade + accesses.used(step)
        yield counts + recent * 1e-9


def belady(accesses: Accesses, capacities: Capacities) -> Iterator[Priorities]:
    """The optimum: evicts the expert whose next use is farthest away (Belady, 1966)."""
    following = np.full(accesses.shape, NEVER)
    next_use = np.full(accesses.ids.shape, NEVER)
    for step in range(len(accesses.ids) - 1, -1, -1):
        ids = accesses.ids[step]
        layer, slot = np.nonzero(ids >= 0)
        next_use[step, layer, slot] = following[layer, ids[layer, slot]]
        following[layer, ids[layer, slot]] = step
    for step, ids in enumerate(accesses.ids):
        layer, slot = np.nonzero(ids >= 0)
        following[layer, ids[layer, slot]] = next_use[step, layer, slot]
        yield -following


def pinned(
    accesses: Accesses, capacities: Capacities, *, counts: NDArray[np.float64], share: float = 1.0
) -> Iterator[Priorities]:
    """A profile's busiest experts always stay, in ``share`` of each layer's room; LRU in the rest.

    ``counts`` f64[layers, experts]: uses in the profile.
    """
    keep = busiest(counts, np.floor(capacities * share).astype(np.int64))
    for recent in lru(accesses, capacities):
        yield recent + keep * NEVER


def busiest(counts: NDArray[np.float64], capacities: Capacities) -> Mask:
    """bool[layers, experts]: each layer's most used experts, ``capacities`` of them at most."""
    rank = np.argsort(np.argsort(-counts, axis=1, kind="stable"), axis=1)
    return np.less(rank, capacities[:, None]) & (counts > 0)


POLICIES: dict[str, Policy] = {
    "LRU": lru,
    "LFU": lfu,
    "LFU, half-life 32": partial(lfu, half_life=32),
    "LFU, half-life 128": partial(lfu, half_life=128),
    "optimum (Belady)": belady,
}


def replay(
    accesses: Accesses, capacities: Capacities, policy: Policy, start: Mask | None = None
) -> Mask:
    """Which lookups find their expert in the cache: bool[steps, layers, k], False for padding.

    ``start`` bool[layers, experts]: the experts in the cache at first, none by default.
    """
    layers = np.arange(len(accesses.experts))[:, None]
    resident = np.zeros(accesses.shape, bool) if start is None else start.copy()
    hits = np.zeros(accesses.ids.shape, bool)
    for step, priority in enumerate(policy(accesses, capacities)):
        ids = accesses.ids[step]
        hits[step] = resident[layers, ids] & (ids >= 0)
        used = accesses.used(step)
        resident |= used
        _evict(resident, capacities, priority + _IN_USE * used)
    return hits


def _evict(resident: Mask, capacities: Capacities, priority: Priorities) -> None:
    """Removes the experts of lowest priority from every layer that holds too many."""
    excess = resident.sum(axis=1) - capacities
    rows = np.nonzero(excess > 0)[0]
    if not len(rows):
        return
    ranked = np.where(resident[rows], priority[rows], np.inf)
    order = np.argsort(ranked, axis=1)
    for row, many, victims in zip(rows, excess[rows], order, strict=True):
        resident[row, victims[:many]] = False


def stack_distances(accesses: Accesses, *, at_once: bool = True) -> NDArray[np.int32]:
    """How many other experts of the layer were used since: i32[steps, layers, k].

    An LRU cache of c experts hits exactly the lookups with distance < c (Mattson et al., 1970), so
    one pass gives every budget. ``COLD`` marks first uses, -1 padding. ``at_once``: a token's
    experts are looked up together; else one after the other, as if each could evict the next.
    """
    last = np.full(accesses.shape, -1.0)
    result = np.full(accesses.ids.shape, -1, np.int32)
    width = accesses.ids.shape[2]
    for step, ids in enumerate(accesses.ids):
        for slot in range(width):
            layer = np.nonzero(ids[:, slot] >= 0)[0]
            expert = ids[layer, slot]
            mark = last[layer, expert]
            newer = (last[layer] > mark[:, None]).sum(axis=1)
            result[step, layer, slot] = np.where(mark < 0, COLD, newer)
            if not at_once:
                last[layer, expert] = step + (slot + 1) / (width + 1)
        if at_once:
            layer, slots = np.nonzero(ids >= 0)
            last[layer, ids[layer, slots]] = step + 1 - (slots + 1) / (width + 1)
    return result
