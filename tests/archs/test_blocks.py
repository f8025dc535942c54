"""Random blocks decode, by gguf's own decoder, to the distribution that was asked for."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from tests.archs.blocks import random_rows, row_bytes
from tests.archs.recipe import Dims, Recipe, q4_k_m
from tests.archs.vocabulary import BYTE_TOKENS, NORMAL, SPECIAL, byte_characters, vocabulary

QUANTIZED = [Kind.Q8_0, Kind.Q6_K, Kind.Q5_K, Kind.Q4_K, Kind.Q2_K, Kind.Q4_0, Kind.IQ4_XS]


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, *QUANTIZED])
@pytest.mark.parametrize("deviation", [1.0, 0.03])
def test_blocks_have_the_asked_deviation(kind: Kind, deviation: float) -> None:
    """Mean 0, standard deviation within 3 %, nothing beyond six deviations."""
    rows = random_rows(np.random.default_rng(1), 64, 512, kind, deviation)
    dtype = {Kind.F32: np.float32, Kind.F16: np.float16}.get(kind)
    values = rows.view(dtype).astype(np.float32) if dtype else dequantize(rows, kind)
    assert values.shape == (64, 512)
    assert abs(values.mean()) < 0.03 * deviation
    assert values.std() == pytest.approx(deviation, rel=0.03)
    assert np.abs(values).max() < 6 * deviation


def test_mxfp4_is_right_within_its_power_of_two() -> None:
    """MXFP4 scales are powers of two, so the deviation is met within a factor √2."""
    rows = random_rows(np.random.default_rng(1), 64, 512, Kind.MXFP4, 0.05)
    deviation = dequantize(rows, Kind.MXFP4).std()
    assert 0.05 / 1.42 < deviation < 0.05 * 1.42


def test_rows_that_do_not_fill_blocks_are_refused() -> None:
    """A row of 100 values has no Q4_K form; the recipe falls back to one that fits."""
    with pytest.raises(ValueError, match="multiple"):
        row_bytes(100, Kind.Q4_K)
    recipe = Recipe("qwen3moe", q4_k_m)
    recipe.tensor("blk.0.attn_q.weight", 96, 4)
    recipe.tensor("blk.0.attn_k.weight", 100, 4)
    assert [spec.kind for spec in recipe.tensors] == [Kind.Q8_0, Kind.F16]


def test_every_text_tokenises() -> None:
    """All bytes, only merges of earlier tokens, specials last, ids unique, size as asked."""
    words = vocabulary(Dims().vocab)
    assert len(words.tokens) == len(set(words.tokens)) == len(words.types) == 512
    assert set(byte_characters()) == set(words.tokens[:BYTE_TOKENS])
    known = set(byte_characters())
    for merge in words.merges:
        left, right = merge.split(" ")
        assert left in known and right in known
        known.add(left + right)
    assert words.tokens[-len(SPECIAL) :] == SPECIAL
    assert words.types.count(NORMAL) == 512 - len(SPECIAL)
