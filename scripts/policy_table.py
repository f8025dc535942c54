"""Hit rates of cache policies on recorded routings, as Markdown.

    python scripts/policy_table.py NAME=TRACE … > docs/policies.md

Pure replay: no engine, no model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.routing.capacity import (
    budget_bytes,
    capacities_by_gain,
    counts_of,
    even_capacities,
    expert_sizes,
    lru_curves,
)
from localmoe.routing.policies import POLICIES, Policy, belady, busiest, lfu, lru, pinned
from localmoe.routing.records import Trace
from localmoe.routing.simulate import Outcome, simulate, simulate_shared
from localmoe.routing.trace import read_trace

SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.4, 0.5, 0.75)
HEAD = """\
# Cache policies on recorded routings

Share of the expert lookups that hit, in percent, by the share of the routed experts that fits in
memory. Written by `scripts/policy_table.py`; pure replays (`localmoe/routing/policies.py`), so the
figures are the same on every machine.

**Cold**: the decoded tokens alone, from an empty cache. The first use of an expert can hit in no
cache; the line "no cache can" says how much that leaves. **With a profile**: the second half of the
decoded tokens, after the first half has filled the cache or made the profile, so no policy is
judged on what it was made from.

- *LRU*, *LFU* and *optimum*: a cache per layer, the same share of each. *Half-life n*: counts fade
  by half in n tokens. The optimum (Belady, 1966) knows the future.
- *Shared*: one cache for all layers. Plain LRU hits nothing below one token's experts: it evicts
  what the next layers need. *Least stale* evicts from the layer that comes last in the cycle, which
  is the one just done, its least recently used (the idea of Hoang et al., SpecMD,
  arXiv:2602.03921).
- *Pinned*: the profile's busiest experts are loaded first and never evicted; *half pinned*: they
  take half of the room, LRU the rest. *LRU, warm*: they are loaded first, then LRU. *By gain*: room
  per layer where the profile says that the next expert gains most.

The optimum is that of equal shares per layer; caches that divide the room otherwise can pass it.
"""


def main(arguments: Sequence[str]) -> None:
    if not arguments or any("=" not in word for word in arguments):
        raise SystemExit(__doc__)
    print(HEAD)
    for word in arguments:
        name, _, path = word.partition("=")
        print("\n".join(section(name, read_trace(path))))


def section(name: str, trace: Trace) -> Iterator[str]:
    """One trace: what it is, and its two tables."""
    decoded = trace.select(trace.decode)
    layers = trace.header.layers
    least = max(layer.used / layer.experts for layer in layers)
    shares = [share for share in SHARES if share >= least]
    yield f"## {name}\n"
    yield (
        f"{len(layers)} layers, {layers[0].used} of {layers[0].experts} experts per token "
        f"({least:.1%}), {len(decoded):,} decoded tokens.\n"
    )
    yield "Cold:\n"
    yield from table(shares, dict(cold(decoded, shares)))
    yield "\nWith a profile:\n"
    yield from table(shares, dict(profiled(decoded, shares)))
    yield ""


def table(shares: Sequence[float], rows: dict[str, list[float]]) -> Iterator[str]:
    yield "| policy | " + " | ".join(f"{share:.0%}" for share in shares) + " |"
    yield "|---" * (len(shares) + 1) + "|"
    for name, rates in rows.items():
        yield f"| {name} | " + " | ".join(f"{100 * rate:.1f}" for rate in rates) + " |"


def cold(trace: Trace, shares: Sequence[float]) -> Iterator[tuple[str, list[float]]]:
    for cyclic, name in ((False, "shared, LRU"), (True, "shared, least stale")):
        budgets = [budget_bytes(trace, share) for share in shares]
        yield name, [simulate_shared(trace, b, cyclic=cyclic).hit_rate for b in budgets]
    outcome: Outcome | None = None
    for name, policy in POLICIES.items():
        rates = []
        for share in shares:
            outcome = simulate(trace, even_capacities(trace, share), policy, name)
            rates.append(outcome.hit_rate)
        yield name, rates
    everything = simulate(trace, even_capacities(trace, 1.0), lru, "LRU")
    most = 1 - everything.compulsory / everything.lookups
    yield "no cache can hit more than", [most] * len(shares)


def profiled(trace: Trace, shares: Sequence[float]) -> Iterator[tuple[str, list[float]]]:
    half = np.arange(len(trace)) >= len(trace) // 2
    later = trace.select(half)
    counts = counts_of(trace, ~half)
    curves = lru_curves(trace, counted=~half)
    used = np.array([layer.used for layer in trace.header.layers])
    rows: dict[str, list[float]] = {}
    for share in shares:
        room = even_capacities(trace, share)
        gained = capacities_by_gain(curves, expert_sizes(trace), budget_bytes(trace, share), used)
        hot = busiest(counts, room)
        keep = partial(pinned, counts=counts)
        continued: dict[str, tuple[np.ndarray, Policy]] = {
            "LRU": (room, lru),
            "LFU, half-life 32": (room, partial(lfu, half_life=32)),
            "LRU, room by gain": (gained, lru),
            "LFU, half-life 32, by gain": (gained, partial(lfu, half_life=32)),
            "optimum (Belady)": (room, belady),
        }
        begun: dict[str, Policy] = {
            "LRU, warm": lru,
            "pinned": keep,
            "half pinned, half LRU": partial(pinned, counts=counts, share=0.5),
        }
        for name, (capacities, policy) in continued.items():
            hit = simulate(trace, capacities, policy, name, counted=half).hit_rate
            rows.setdefault(name, []).append(hit)
        for name, policy in begun.items():
            hit = simulate(later, room, policy, name, start=hot).hit_rate
            rows.setdefault(name, []).append(hit)
    yield from rows.items()


if __name__ == "__main__":
    main(sys.argv[1:])
