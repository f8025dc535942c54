"""What more memory would buy: hit rates, reads and speed of a trace at several budgets. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from localmoe.errors import TraceFileError
from localmoe.routing.capacity import (
    budget_bytes,
    capacities_by_gain,
    even_capacities,
    expert_sizes,
    lru_curves,
)
from localmoe.routing.policies import belady, lfu, lru
from localmoe.routing.records import Trace
from localmoe.routing.simulate import Outcome, simulate, tokens_per_second

SHIPPED = "LFU, half-life 32"  # the engine's, localmoe/engine/native/expert_cache.h
RECENCY = "LRU"
BY_GAIN = "room by gain"  # the shipped policy, other shares per layer
OPTIMUM = "optimum"  # knows the future, with the better one of both ways to share the memory
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Speeds:
    """What a machine does, for this model."""

    disk: float  # bytes/s at which decoding gets experts that are not in memory
    hidden: float  # share of the shorter one of computing and reading that costs no time
    resident_tps: float  # tokens/s with every expert in RAM
    measured: bool  # resident_tps was measured with the model, not estimated from the bandwidth


@dataclass(frozen=True, slots=True)
class Row:
    """What one memory budget for experts gives. Speeds are None where the machine's or the sizes of
    the experts are unknown.
    """

    share: float  # of all routed experts
    budget: int  # bytes; 0 when sizes are unknown
    outcomes: Mapping[str, Outcome]  # by policy
    tps: float | None  # tokens/s that a forecast expects
    tps_hidden: float | None  # tokens/s when all reading is hidden behind computing


def expert_total(trace: Trace) -> int:
    """Bytes of all routed experts of the traced layers; 0 when sizes are unknown."""
    return sum(layer.experts * layer.expert_bytes for layer in trace.header.layers)


def active_bytes(trace: Trace) -> int:
    """Bytes of weights that one token reads."""
    routed = sum(layer.used * layer.expert_bytes for layer in trace.header.layers)
    return trace.header.dense_bytes + routed


def estimated_speeds(trace: Trace, ram: float, disk: float, hidden: float) -> Speeds:
    """An upper bound: tokens/s when nothing but ``ram`` bytes/s of memory limits decoding."""
    active = active_bytes(trace)
    return Speeds(disk, hidden, ram / active if active else 0.0, measured=False)


def outlook(
    trace: Trace, shares: Sequence[float] = SHARES, speeds: Speeds | None = None
) -> tuple[Row, ...]:
    """One row per share of the experts in memory; at 1.0 all are loaded before the first token.

    Shares that hold less than one token's experts are left out: no cache works there.

    Raises TraceFileError for a trace without decoded tokens.
    """
    if not trace.decode.any():
        raise TraceFileError(
            "no decoded tokens in this trace: nothing to simulate",
            hint="record some answers: localmoe experts record MODEL -n 64",
        )
    curves = lru_curves(trace)
    used = np.array([layer.used for layer in trace.header.layers], np.int64)
    sizes, total = expert_sizes(trace), expert_total(trace)
    whole = budget_bytes(trace, 1.0)
    everything = np.ones((len(used), max(layer.experts for layer in trace.header.layers)), bool)
    least = max(layer.used / layer.experts for layer in trace.header.layers)
    fading = partial(lfu, half_life=32)
    rows = []
    for share in (share for share in shares if share >= least):
        even = even_capacities(trace, share)
        gained = capacities_by_gain(curves, sizes, int(whole * share), used)
        start = everything if share >= 1 else None
        outcomes = {
            SHIPPED: simulate(trace, even, fading, SHIPPED, start=start),
            RECENCY: simulate(trace, even, lru, RECENCY, start=start),
            BY_GAIN: simulate(trace, gained, fading, BY_GAIN, start=start),
            OPTIMUM: max(
                (simulate(trace, room, belady, OPTIMUM, start=start) for room in (even, gained)),
                key=lambda outcome: outcome.hits,
            ),
        }
        read = outcomes[SHIPPED].bytes_per_token
        tps = hidden = None
        if speeds is not None and total and speeds.resident_tps > 0:
            compute = 1 / speeds.resident_tps
            tps = tokens_per_second(compute, read, speeds.disk, hidden=speeds.hidden)
            hidden = tokens_per_second(compute, read, speeds.disk, hidden=1.0)
        rows.append(Row(share, int(total * share), outcomes, tps, hidden))
    return tuple(rows)
