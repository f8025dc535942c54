"""Statistics of hand-made traces, whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from localmoe.routing import stats
from localmoe.routing.trace import read_trace
from tests.routing import traces


def only_layer(ids: object, experts: int = 8, **more: object) -> stats.LayerStats:
    return stats.layer_stats(traces.trace([np.asarray(ids)], experts=experts, **more))[0]  # type: ignore[arg-type]


def test_a_uniform_load() -> None:
    """Every expert equally often: entropy 1, no variation, nothing over capacity, none dead."""
    layer = only_layer(np.arange(80).reshape(-1, 2) % 8)
    b = layer.balance
    assert layer.load == (10,) * 8
    assert b.entropy == pytest.approx(1)
    assert (b.variation, b.busiest) == (0, 1)
    assert b.dropped == {1.0: 0, 1.25: 0, 2.0: 0}
    assert (b.dead, b.near_dead) == (0, 0)


def test_a_collapsed_router() -> None:
    """One expert takes all: entropy 0, busiest 8 times the mean, 7 dead, 7/8 dropped at 1.0."""
    layer = only_layer(np.zeros((50, 1), int))
    b = layer.balance
    assert (b.entropy, b.busiest, b.dead) == (0, 8, 7)
    assert b.variation == pytest.approx(math.sqrt(7))
    assert b.dropped == {
        1.0: pytest.approx(7 / 8),
        1.25: pytest.approx(1 - 1.25 / 8),
        2.0: pytest.approx(6 / 8),
    }
    assert b.dead_by_chance == pytest.approx(8 * (7 / 8) ** 50)


def test_the_capacity_factor_that_drops_nothing() -> None:
    """Busiest ÷ mean is where the share dropped reaches zero."""
    load = np.array([30, 10, 10, 10])
    b = stats.balance(load, 60)
    assert b.busiest == 2
    assert b.dropped[2.0] == 0
    assert b.dropped[1.25] == pytest.approx((30 - 1.25 * 15) / 60)


def test_near_dead_is_less_than_a_tenth_of_an_even_share() -> None:
    """Of 1,000 assignments to 4 experts an even share is 250: 24 is nearly dead, 25 is not."""
    assert stats.balance(np.array([951, 25, 24, 0]), 1000).near_dead == 1
    assert stats.balance(np.array([951, 25, 24, 0]), 1000).dead == 1


def test_dead_by_chance_with_few_tokens() -> None:
    """Ten tokens of top-2 of 64 leave most experts unused, however good the router."""
    rng = np.random.default_rng(4)
    layers = [traces.random_ids(rng, 10, 64, 2) for _ in range(200)]
    dead = np.mean([stats.balance(stats.load_of(ids, 64), 10).dead for ids in layers])
    assert stats.balance(stats.load_of(layers[0], 64), 10).dead_by_chance == pytest.approx(
        float(dead), rel=0.02
    )


def test_router_confidence() -> None:
    """Known logits: mass of the chosen, margin to the first loser, squared log-sum-exp."""
    probabilities = np.array([[0.5, 0.3, 0.15, 0.05]])
    shift = 2.0  # log-sum-exp of log-probabilities is 0: shifted, it is the shift
    layer = only_layer([[0, 1]], 4, logits=[np.log(probabilities) + shift])
    assert layer.confidence is not None
    assert layer.confidence.top_mass == pytest.approx(0.8, abs=1e-6)
    assert layer.confidence.margin == pytest.approx(math.log(0.3 / 0.15), abs=1e-6)
    assert layer.confidence.z == pytest.approx(shift**2, abs=1e-5)


def test_confidence_needs_logits() -> None:
    """Without logits there is no figure, rather than a wrong one."""
    assert only_layer([[0, 1]]).confidence is None


def test_a_periodic_trace_comes_back_at_its_period() -> None:
    """Experts 0 … 3 in turn: nothing at lags 1 and 2, everything at 4, distance 3."""
    reuse = only_layer(np.arange(200).reshape(-1, 1) % 4, 4).reuse
    assert (reuse.at_lag[1], reuse.at_lag[2]) == (0, 0)
    assert all(reuse.at_lag[lag] == 1 for lag in (4, 8, 16, 32, 64))
    assert reuse.median_distance == 3
    assert reuse.first_uses == pytest.approx(4 / 200)
    assert reuse.by_chance == pytest.approx(0.25)


def test_reuse_by_chance_is_what_independent_tokens_have() -> None:
    """Independent tokens with uneven popularity: every lag is near the stated chance level."""
    rng = np.random.default_rng(7)
    noise = rng.gumbel(size=(20_000, 8)) + np.linspace(0, 2, 8)
    reuse = only_layer(np.argsort(-noise, axis=1)[:, :2]).reuse
    assert reuse.by_chance > 0.26  # 0.25 if all were equally popular
    for lag in stats.LAGS:
        assert reuse.at_lag[lag] == pytest.approx(reuse.by_chance, abs=0.01)


def test_reuse_does_not_reach_into_another_prompt() -> None:
    """The first token of a prompt has no token before it."""
    trace = traces.trace([np.array([[0], [0], [1], [1]])], segment=[0, 0, 1, 1])
    assert stats.reuse_at_lag(trace, 1) == 1
    one = traces.trace([np.array([[0], [0], [1], [1]])])
    assert stats.reuse_at_lag(one, 1) == pytest.approx(2 / 3)


def test_reuse_of_the_real_trace() -> None:
    """38 % of a token's experts were used by the token before."""
    trace = read_trace(traces.QWEN3_TRACE)
    assert stats.reuse_at_lag(trace.select(trace.decode), 1) == pytest.approx(0.38, abs=0.005)


def test_co_activation_finds_the_planted_pair() -> None:
    """Experts 2 and 5 always fire together, the others at random."""
    rng = np.random.default_rng(1)
    ids = traces.random_ids(rng, 400, 8, 2)
    ids = ids[~np.isin(ids, [2, 5]).any(axis=1)]
    ids[::4] = [2, 5]
    pairs = only_layer(ids).pairs
    assert (pairs[0].a, pairs[0].b) == (2, 5)
    count = len(ids[::4])
    assert pairs[0].together == count
    assert pairs[0].lift == pytest.approx(len(ids) / count)


def test_the_next_layer_can_be_known() -> None:
    """Layer 1 is a permutation of layer 0, which changes at random from token to token."""
    rng = np.random.default_rng(3)
    first = traces.random_ids(rng, 400, 8, 2)
    second = np.array([3, 1, 4, 0, 5, 7, 2, 6])[first]
    prediction = stats.layer_stats(traces.trace([first, second]))[0].next_layer
    assert prediction is not None
    assert prediction.from_layer == 1
    assert prediction.from_previous == pytest.approx(0.25, abs=0.05)
    assert prediction.from_popularity == pytest.approx(0.25, abs=0.06)


def test_the_next_layer_cannot_be_known() -> None:
    """Independent layers: no guess is better than popularity, which is k / experts here."""
    rng = np.random.default_rng(3)
    ids = [traces.random_ids(rng, 2000, 8, 2) for _ in range(2)]
    first, last = stats.layer_stats(traces.trace(ids))
    assert first.next_layer is not None and last.next_layer is None
    assert first.next_layer.from_layer == pytest.approx(0.25, abs=0.03)


def test_absent_rows_do_not_count() -> None:
    """A layer that did not run for a token has no load from it, and no reuse."""
    layer = only_layer([[-1, -1], [0, 1], [-1, -1], [0, 1]])
    assert layer.load[:2] == (2, 2)
    assert layer.balance.dead_by_chance == pytest.approx(8 * 0.75**2)
    assert math.isnan(layer.reuse.at_lag[1])
    assert layer.reuse.at_lag[2] == 1
