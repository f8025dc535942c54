"""The best possible cache, against an exhaustive search and against what others would do."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.bench.bounds import imposed_part, least_read
from localmoe.routing.trace import DECODE, PREFILL, Trace, TraceHeader, TraceLayer


def trace_of(tokens: list[list[list[int]]], prompt: int, experts: int = 4) -> Trace:
    """``tokens``[token][layer] = ids; the first ``prompt`` tokens are read."""
    layers, k = len(tokens[0]), len(tokens[0][0])
    count = len(tokens)
    return Trace(
        header=TraceHeader("m", "a", tuple(TraceLayer(i, experts, k) for i in range(layers))),
        phase=np.array([PREFILL] * prompt + [DECODE] * (count - prompt), np.uint8),
        batch=np.arange(count, dtype=np.int32),
        tokens=np.full(count, -1, np.int32),
        segment=np.zeros(count, np.int32),
        labels=("",),
        layer_ids=tuple(np.array([t[i] for t in tokens], np.int16) for i in range(layers)),
    )


def fewest_misses(sequence: list[tuple[int, int]], counted_from: int, room: int) -> int:
    """By trying every eviction. One expert per access; ``room`` ≥ 1."""

    @cache
    def best(at: int, held: frozenset[tuple[int, int]]) -> int:
        if at == len(sequence):
            return 0
        item = sequence[at]
        if item in held:
            return best(at + 1, held)
        cost = int(at >= counted_from)
        if len(held) < room:
            return cost + best(at + 1, held | {item})
        return cost + min(best(at + 1, held - {out} | {item}) for out in held)

    return best(0, frozenset())


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6),
    st.integers(1, 5),
)
def test_no_cache_misses_less(tokens: list[tuple[int, int]], room: int) -> None:
    """Two layers, one expert each per token: as few misses as any sequence of evictions has."""
    trace = trace_of([[[a], [b]] for a, b in tokens], prompt=1)
    sequence = [(layer, pair[layer]) for pair in tokens for layer in (0, 1)]
    assert least_read(trace, {0: 10, 1: 10}, room * 10) == 10 * fewest_misses(sequence, 2, room)


def test_room_for_everything_leaves_first_uses() -> None:
    """Each expert that the prompt did not bring is fetched once, at its layer's size."""
    trace = trace_of([[[0, 1], [0, 1]], [[1, 2], [0, 1]], [[2, 3], [2, 0]]], prompt=1)
    assert least_read(trace, {0: 10, 1: 7}, 10_000) == 10 + 10 + 7


def test_layers_that_the_model_lacks_do_not_count() -> None:
    """A trace of more layers than the model has is read as far as it goes."""
    trace = trace_of([[[0], [0]], [[1], [1]]], prompt=1)
    assert least_read(trace, {0: 10}, 10_000) == 10


def test_part_of_a_trace() -> None:
    """As many tokens of the prompt and of the answer as are asked for, the first of each."""
    trace = trace_of([[[i]] for i in range(4)] + [[[i]] for i in range(3)], prompt=4)
    part = imposed_part(trace, 2, 1)
    assert part.ids(0)[:, 0].tolist() == [0, 1, 0]
    assert part.decode.tolist() == [False, False, True]
