"""In which batches a prompt is read, and what they take of the memory for experts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import needed_budget
from localmoe.planning.memory import EngineSettings
from localmoe.planning.prefill import (
    LEAST,
    NODE,
    Batches,
    attention_work,
    batch_at,
    batches,
    choose_batches,
    least_budget,
    passing,
    stage_bytes,
)
from tests.planning.catalog import published

MIB = 1 << 20
SETTINGS = EngineSettings(context=8192, threads=16)


@pytest.fixture
def model(arch_file: Callable[[str], Path]) -> Model:
    return read_model(arch_file("qwen3moe"))


@pytest.fixture(scope="module")
def big() -> Model:
    return published("qwen3-30b-a3b")


def layers_of(model: Model) -> list[int]:
    return [layer.index for layer in model.layers if layer.expert_count]


def buffers(batch: int) -> int:
    """As that model's: 96, 192, 384 and 768 MiB."""
    return batch * 96 * MIB // 512


def test_two_projections_are_enough_for_a_large_batch(big: Model) -> None:
    """A layer takes some 340 MB, its largest projection half of that: with two of those and a
    token's experts a full batch is read. With less it is no smaller: the mapping serves it."""
    layers = layers_of(big)
    staged = stage_bytes(big, layers) + needed_budget(big, layers, 1)
    whole = 2 * needed_budget(big, layers, 512)
    assert staged < 0.6 * whole
    way = passing(big, layers, 512)
    assert (way.stages, way.layers) == (staged, whole)
    assert way.fits(staged) and not way.fits(staged - 1)
    assert choose_batches(big, layers, staged, SETTINGS) == Batches(512)
    assert choose_batches(big, layers, staged - 1, SETTINGS) == Batches(512)


def test_what_a_batch_leaves_alone_is_not_read(big: Model) -> None:
    """All memory but the stages, in the last batch all but two layers; more memory never means that
    less is found, and with room for all nothing passes."""
    way = passing(big, layers_of(big), 512)
    assert way.kept(4 * way.layers, last=False) == 4 * way.layers - way.stages
    assert way.kept(4 * way.layers, last=True) == 3 * way.layers
    for last in (False, True):
        found = [way.kept(room * MIB, last=last) for room in range(0, 20_000, 10)]
        assert found == sorted(found)
        assert found[0] == 0 and found[-1] == way.every


def test_larger_batches_where_their_buffers_cost_less_than_they_save(big: Model) -> None:
    """The more memory, the larger the batch; what its buffers take is lent, and leaves room for the
    experts that pass."""
    layers = layers_of(big)
    found = [
        choose_batches(big, layers, budget * MIB, SETTINGS, buffers)
        for budget in range(100, 12_000, 50)
    ]
    sizes = [batches.tokens for batches in found]
    assert sizes == sorted(sizes)
    assert {512, 1024, 2048, 4096} <= set(sizes)
    for batches_, budget in zip(found, range(100, 12_000, 50), strict=True):
        assert batches_.lent == max(0, buffers(batches_.tokens) - buffers(512)) * (
            batches_.tokens > 512
        )
        settings = dataclasses.replace(SETTINGS, ubatch=batches_.tokens, cache_lent=batches_.lent)
        fits = passing(big, layers, 512).fits(budget * MIB)
        assert not fits or least_budget(big, layers, settings) <= budget * MIB
    short = dataclasses.replace(SETTINGS, context=1024)
    assert choose_batches(big, layers, 12_000 * MIB, short, buffers).tokens <= 1024
    assert choose_batches(big, layers, 12_000 * MIB, SETTINGS).tokens == 512, "not asked for"
    two = dataclasses.replace(SETTINGS, threads=2)
    assert choose_batches(big, layers, 12_000 * MIB, two, buffers).tokens == 2048


def test_what_is_free_at_the_moment_does_not_change_the_batch(big: Model) -> None:
    """The batch is that of the machine with nothing else on it, wherever its buffers still fit."""
    layers, steady = layers_of(big), 12_000 * MIB
    whole = choose_batches(big, layers, steady, SETTINGS, buffers)
    assert whole.tokens == 4096
    for budget in range(1_300, 12_000, 100):
        assert choose_batches(big, layers, budget * MIB, SETTINGS, buffers, steady) == whole
    short = choose_batches(big, layers, 900 * MIB, SETTINGS, buffers, steady)
    assert 512 < short.tokens < 4096, "the buffers of the whole one leave no room for the stages"
    every = 40_000 * MIB
    kept = choose_batches(big, layers, 2_000 * MIB, SETTINGS, buffers, every)
    assert kept == Batches(512), "all experts would fit: the usual batch, as when they do"


def test_batches_follow_the_position(big: Model) -> None:
    """Each batch is the largest whose attention takes an interrupt's patience; where it begins says
    how large it is, whatever was read before."""
    attention = attention_work(big, SETTINGS)
    assert attention == 32 * (128 + 128)
    whole = batches(30_000, 2048, attention, 2)
    assert sum(size for size, _ in whole) == 30_000
    assert whole[0] == (2048, 0)
    sizes = [size for size, _ in whole[:-1]]
    assert sizes == sorted(sizes, reverse=True)
    for size, at in whole:
        assert size * (at + size) * attention <= 2 * NODE or size <= LEAST
    cut = whole[3][1]
    assert batches(30_000, 2048, attention, 2, start=cut) == whole[3:]
    assert max(batch_at(at, 512, attention, 16) for at in range(0, 8192, 512)) == 512
    assert batch_at(10**6, 512, attention, 1) == LEAST
    assert batch_at(10**6, 512, 0, 1) == 512, "a GPU attends"
    assert all(a[0] + a[1] == b[1] for a, b in itertools.pairwise(whole))
