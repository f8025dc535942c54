"""The time of a multiplication by timed rates, worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest

from localmoe.facts.bandwidth import TypeRate
from localmoe.planning.kernels import TIMED, UNPACK, multiplying
from localmoe.planning.work import Matrices

EXPERTS, USED, WEIGHTS = 512, 8, 512 * 1000
RATE = TypeRate(
    vector=((1.0, 5e9),), row=((1.0, 5e9),), dense=((1.0, 60e9),), experts=((1.0, 50e9),)
)
TYPES = {"Q4_K": RATE, "Q8_0": RATE}
Q4_K = Matrices("CPU", "Q4_K", WEIGHTS // 2, WEIGHTS, EXPERTS, USED)


def seconds(m: Matrices, tokens: int, *, tiles: bool = True) -> float:
    return multiplying(m, tokens, TYPES, 1, tiles=tiles)


def test_one_token_takes_its_experts_bytes_from_memory() -> None:
    """8 of 512 experts of 500 bytes, at 5 GB/s, in tiles or not."""
    told = pytest.approx(USED * 500 / 5e9)
    assert seconds(Q4_K, 1) == seconds(Q4_K, 1, tiles=False) == told
    fast = dataclasses.replace(RATE, dense=((1.0, 6e13),), experts=((1.0, 5e13),))
    assert multiplying(Q4_K, 1, {"Q4_K": fast}, 1, tiles=True) == told  # many cores, one memory


def test_few_tokens_of_an_expert_are_multiplied_one_by_one() -> None:
    """Of 64 tokens an expert that is chosen has 1.6: none of them is spared the weights."""
    assert seconds(Q4_K, 64) == pytest.approx(64 * seconds(Q4_K, 1))
    assert seconds(Q4_K, 64) > 1.2 * seconds(Q4_K, 64, tiles=False)


def test_some_tokens_of_an_expert_pay_for_its_unpacking() -> None:
    """With 16 tokens each: unpacking and the 16; as many weights are multiplied faster where each
    expert has as many tokens as it was timed with.
    """
    told = WEIGHTS / 50e9 * TIMED * (UNPACK + 16) / (UNPACK + TIMED)
    assert seconds(Q4_K, 1024) == pytest.approx(told, rel=0.01)
    assert seconds(Q4_K, 512) > 1.3 * seconds(Q4_K, 512, tiles=False)  # 8 each
    few = dataclasses.replace(Q4_K, experts=64, used=1)
    assert seconds(few, 1024) == pytest.approx(told, rel=0.01)


def test_many_tokens_of_an_expert_are_those_of_a_matrix() -> None:
    """Of 65,536 tokens each expert has 1,024: unpacking counts no more."""
    assert seconds(Q4_K, 65536) == pytest.approx(WEIGHTS * 1024 / 60e9)


def test_types_without_tiles_read_the_weights_once() -> None:
    """Q8_0: the first token from memory, each further one at the rate of a batch."""
    q8_0 = dataclasses.replace(Q4_K, kind="Q8_0", nbytes=WEIGHTS)
    assert seconds(q8_0, 1024) == pytest.approx(WEIGHTS / 5e9 + WEIGHTS * 15 / 50e9, rel=0.01)
