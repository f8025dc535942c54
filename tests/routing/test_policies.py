"""Cache policies and the replay."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray

from localmoe.routing import capacity, policies, simulate
from localmoe.routing.policies import Accesses, belady, lfu, lru, pinned, replay
from localmoe.routing.records import Trace
from localmoe.routing.trace import read_trace
from tests.routing import traces


@pytest.fixture(scope="module")
def real() -> Trace:
    """The decoded tokens of the real trace, so that every cache starts cold."""
    trace = read_trace(traces.QWEN3_TRACE)
    return trace.select(trace.decode)


@pytest.fixture(scope="module")
def skewed() -> Trace:
    """Three layers of 12 experts, top-3, popular experts and a drift: no closed form."""
    rng = np.random.default_rng(5)
    ids = []
    for _ in range(3):
        popularity = rng.gamma(0.5, size=12)
        noise = rng.gumbel(size=(200, 12)) + np.log(np.roll(popularity, 3)) * 0.7
        noise[:100] += np.log(popularity)
        ids.append(np.argsort(-noise, axis=1)[:, :3])
    return traces.trace(ids, experts=12)


def rate(hits: NDArray[np.bool_], trace: Trace) -> float:
    return float(hits.sum() / sum(ids.size for ids in trace.layer_ids))


def rooms(trace: Trace, each: int) -> NDArray[np.int64]:
    return np.full(len(trace.layers), each)


def test_the_facts_of_the_real_trace(real: Trace) -> None:
    """Per-layer LRU from cold, one lookup after the other: .52 .80 .90 .91 at 10 25 40 50 %."""
    curves = capacity.lru_curves(real, at_once=False)
    got = [
        round(curves.hit_rate(capacity.even_capacities(real, f)), 2) for f in (0.1, 0.25, 0.4, 0.5)
    ]
    assert got == [0.52, 0.8, 0.9, 0.91]


def test_half_of_the_experts_are_touched(real: Trace) -> None:
    """One session touches about half of a layer's experts: no more than that is compulsory."""
    counts = capacity.counts_of(real)
    assert (counts > 0).mean() == pytest.approx(0.5, abs=0.02)
    outcome = simulate.simulate(real, capacity.even_capacities(real, 1.0), lru, "LRU")
    assert outcome.compulsory == (counts > 0).sum() == outcome.lookups - outcome.hits


def naive_lru(ids: NDArray[np.int16], room: int) -> int:
    """Hits of one layer, with an ordered dictionary; a token's experts are looked up at once."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for row in ids.tolist():
        hits += sum(expert in cache for expert in row)
        for expert in reversed(row):
            cache.pop(expert, None)
            cache[expert] = None
        while len(cache) > room:
            cache.popitem(last=False)
    return hits


@pytest.mark.parametrize("room", [3, 4, 6, 9, 12])
def test_lru_is_lru(skewed: Trace, room: int) -> None:
    """The replay, the stack distances and an ordered dictionary count the same hits."""
    expected = sum(naive_lru(ids, room) for ids in skewed.layer_ids)
    hits = replay(Accesses.of(skewed), rooms(skewed, room), lru)
    assert int(hits.sum()) == expected
    assert int(capacity.lru_curves(skewed).hits[:, room].sum()) == expected


def best_possible(ids: list[tuple[int, ...]], room: int) -> int:
    """The most hits any cache can have, by trying every eviction."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for row in ids:
        reached: dict[frozenset[int], int] = {}
        for cache, hits in states.items():
            have = hits + len(cache & set(row))
            everything = cache | set(row)
            excess = max(0, len(everything) - room)
            for gone in itertools.combinations(everything - set(row), excess):
                kept = everything - set(gone)
                reached[kept] = max(reached.get(kept, 0), have)
        states = reached
    return max(states.values())


def test_belady_is_the_optimum() -> None:
    """On short random traces it equals the best of all possible evictions, and LRU is below it."""
    rng = np.random.default_rng(2)
    below = 0
    for _ in range(20):
        ids = traces.random_ids(rng, 12, 6, 2)
        trace = traces.trace([ids], experts=6)
        best = best_possible([tuple(row) for row in ids.tolist()], 3)
        accesses = Accesses.of(trace)
        assert int(replay(accesses, rooms(trace, 3), belady).sum()) == best
        below += int(replay(accesses, rooms(trace, 3), lru).sum()) < best
    assert below > 5


@pytest.mark.parametrize("room", [3, 5, 8])
def test_no_policy_beats_the_optimum(skewed: Trace, room: int) -> None:
    """And none has fewer misses than first uses."""
    accesses = Accesses.of(skewed)
    best = rate(replay(accesses, rooms(skewed, room), belady), skewed)
    others: list[policies.Policy] = [*policies.POLICIES.values(), partial(lfu, half_life=8)]
    for policy in others:
        assert rate(replay(accesses, rooms(skewed, room), policy), skewed) <= best
    first = simulate.first_uses(accesses).sum() / (3 * 200 * 3)
    assert best <= 1 - first


def test_a_periodic_trace() -> None:
    """Experts 0 1 2 3 0 1 2 3 …, room for three: LRU never hits, LFU and the optimum do."""
    trace = traces.trace([np.arange(80).reshape(-1, 1) % 4], experts=4)
    accesses = Accesses.of(trace)
    assert not replay(accesses, rooms(trace, 3), lru).any()
    assert replay(accesses, rooms(trace, 3), belady).sum() == pytest.approx(76 * 2 / 3, abs=2)
    assert replay(accesses, rooms(trace, 4), lru).sum() == 76


def test_lfu_keeps_what_is_used_often() -> None:
    """A scan of rare experts pushes the popular one out of an LRU and not out of an LFU."""
    ids = np.array([[7]] * 10 + [[0], [1], [2], [3]] + [[7]])
    trace = traces.trace([ids])
    accesses = Accesses.of(trace)
    assert not replay(accesses, rooms(trace, 2), lru)[-1].any()
    assert replay(accesses, rooms(trace, 2), lfu)[-1].all()
    fading = partial(lfu, half_life=1)
    assert not replay(accesses, rooms(trace, 2), fading)[-1].any()


def test_pinned_experts_stay() -> None:
    """The profile's busiest expert survives a scan that is longer than the cache."""
    ids = np.array([[7], [0], [1], [2], [3], [4], [7]])
    trace = traces.trace([ids])
    counts = np.zeros((1, 8))
    counts[0, 7] = 5
    policy = partial(pinned, counts=counts, share=0.5)
    assert replay(Accesses.of(trace), rooms(trace, 2), policy)[-1].all()
    assert not replay(Accesses.of(trace), rooms(trace, 2), lru)[-1].any()


def test_a_warm_start_saves_first_uses() -> None:
    """What is loaded before the first token is no compulsory miss."""
    trace = traces.trace([np.array([[0, 1], [0, 2]])])
    start = np.zeros((1, 8), bool)
    start[0, [0, 5]] = True
    cold = simulate.simulate(trace, rooms(trace, 4), lru, "LRU")
    warm = simulate.simulate(trace, rooms(trace, 4), lru, "LRU", start=start)
    assert (cold.hits, cold.compulsory) == (1, 3)
    assert (warm.hits, warm.compulsory) == (2, 2)
    assert warm.bytes_per_token == 100


def test_prefill_warms_and_does_not_count() -> None:
    """Only decoded tokens are counted, from a cache that the prompt has filled."""
    ids = np.array([[0, 1], [2, 3], [0, 2], [4, 5]])
    outcome = simulate.simulate(traces.trace([ids], prefill=2), np.array([8]), lru, "LRU")
    assert (outcome.tokens, outcome.lookups, outcome.hits, outcome.compulsory) == (2, 4, 2, 2)


def test_one_cache_for_all_layers_below_one_token(real: Trace) -> None:
    """Shared LRU hits nothing with room for less than a token's experts; other ways keep some."""
    budget = capacity.budget_bytes(real, 0.04)  # a token uses 6 of 128: 4.7 %
    shared = simulate.simulate_shared(real, budget, cyclic=False)
    cyclic = simulate.simulate_shared(real, budget, cyclic=True)
    split = simulate.simulate(real, capacity.even_capacities(real, 0.04), lru, "LRU")
    assert shared.hits == 0
    assert 0.19 < cyclic.hit_rate < 0.38
    assert 0.19 < split.hit_rate < 0.38


def test_shared_caches_hold_no_more_than_their_budget() -> None:
    """Two layers in turn, room for one expert of 100 bytes each way: counted by hand."""
    ids = [np.array([[0], [0], [0]]), np.array([[1], [1], [1]])]
    trace = traces.trace(ids)
    assert simulate.simulate_shared(trace, 100, cyclic=False).hits == 0
    assert simulate.simulate_shared(trace, 199, cyclic=True).hits == 0
    assert simulate.simulate_shared(trace, 200, cyclic=False).hits == 4


def test_room_goes_where_it_gains() -> None:
    """A layer that uses two experts gets two; the one that cycles through six gets the rest."""
    ids = [np.tile([[0, 1]], (60, 1)), np.arange(120).reshape(-1, 2) % 6]
    trace = traces.trace(ids)
    curves = capacity.lru_curves(trace)
    sizes = capacity.expert_sizes(trace)
    room = capacity.capacities_by_gain(curves, sizes, 800, np.array([2, 2]))
    assert room.tolist() == [2, 6]
    assert capacity.capacities_by_gain(curves, sizes, 1600, np.array([2, 2])).tolist() == [8, 8]
    assert capacity.capacities_by_gain(curves, sizes, 200, np.array([2, 2])).tolist() == [1, 1]


def test_room_by_gain_keeps_to_the_budget(real: Trace) -> None:
    """Whatever the sizes of a layer's experts; and no less hits on the trace it was made from."""
    curves = capacity.lru_curves(real)
    sizes = capacity.expert_sizes(real)
    for fraction in (0.06, 0.1, 0.3, 0.7):
        budget = capacity.budget_bytes(real, fraction)
        room = capacity.capacities_by_gain(curves, sizes, budget, rooms(real, 6))
        assert budget - sizes.max() < int((room * sizes).sum()) <= budget
        even = np.floor(np.full(48, 128) * fraction).astype(np.int64)
        assert curves.hit_rate(room) >= curves.hit_rate(even)


def test_layers_of_different_sizes() -> None:
    """Top-1 of 4 beside top-3 of 12: padding neither hits nor counts."""
    rng = np.random.default_rng(0)
    ids = [traces.random_ids(rng, 50, 4, 1), traces.random_ids(rng, 50, 12, 3)]
    trace = traces.trace(ids, experts=12)
    outcome = simulate.simulate(trace, np.array([12, 12]), lru, "LRU")
    assert outcome.lookups == 200
    assert outcome.lookups - outcome.hits == outcome.compulsory == 16


def test_speed() -> None:
    """Reading after computing adds up; reading meanwhile costs the longer of the two."""
    assert simulate.tokens_per_second(0.1, 1e8, 1e9, hidden=0) == pytest.approx(5)
    assert simulate.tokens_per_second(0.1, 1e8, 1e9, hidden=1) == pytest.approx(10)
    assert simulate.tokens_per_second(0.1, 4e8, 1e9, hidden=0.5) == pytest.approx(1 / 0.45)
    assert simulate.tokens_per_second(0.1, 0, 1e9, hidden=0.5) == pytest.approx(10)
