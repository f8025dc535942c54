"""The next layer's experts are read before its router has spoken; the answer stays the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings
from localmoe.routing.trace import DECODE, PREFILL, TraceHeader, TraceWriter
from scripts.make_standin import make_standin
from tests.archs import qwen
from tests.archs.families import Q8_0, Family
from tests.archs.recipe import Dims
from tests.engine.cache_matrix import BASE, FIRST, variants
from tests.engine.cached import Case, Ran, Turn, run_cases

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
STEPS = 48
MANY_STEPS = 160


def half(path: Path) -> EngineSettings:
    return dict(variants(path, dataclasses.replace(BASE, context=512)))["private, half"]


def random_routing(model: Model, path: Path) -> Path:
    """Any experts with equal chance: a prompt, then decoded tokens."""
    header = TraceHeader.of_model(model, weights=False)
    dice = np.random.default_rng(7)
    with TraceWriter(path, header) as writer:
        for n, phase in ((64, PREFILL), *((1, DECODE),) * MANY_STEPS):
            writer.append(
                phase,
                [
                    np.stack([dice.permutation(layer.experts)[: layer.used] for _ in range(n)])
                    for layer in header.layers
                ],
            )
    return path


def run_imposed(
    path: Path, routing: Path, accuracies: tuple[float, ...], steps: int = STEPS
) -> list[Ran]:
    settings = dataclasses.replace(half(path), replay=str(routing))
    turn = Turn(FIRST[:40], steps)
    return run_cases(
        path,
        [
            Case(dataclasses.replace(settings, predicted=accuracy), (turn,))
            for accuracy in accuracies
        ],
    )


@pytest.mark.parametrize(
    "architecture",  # plain; biased; biased for the choice only; another input
    ["qwen3moe", "gpt-oss", "deepseek4", "gemma4"],
)
def test_prediction_is_better_than_chance(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """Even in a small model of random weights; and the plain engine's logits, bit by bit."""
    path = arch_file(architecture)
    settings = half(path)
    turns = (Turn(FIRST, STEPS),)
    plain, ran = run_cases(
        path, [Case(dataclasses.replace(settings, cache="off"), turns), Case(settings, turns)]
    )
    layer = next(layer for layer in read_model(path).layers if layer.expert_count)
    chance = layer.expert_used / layer.expert_count
    assert ran.turns == plain.turns
    assert ran.counters["prefetched"] > STEPS
    assert ran.counters["prefetch_used"] > 1.2 * chance * ran.counters["prefetched"]


def test_foretold_experts_are_no_misses(arch_file: Callable[[str], Path], tmp_path: Path) -> None:
    """What a perfect prediction reads is all used, and most of what was missed is there."""
    path = arch_file("qwen3moe")
    routing = random_routing(read_model(path), tmp_path / "random.trace")
    none, perfect = run_imposed(path, routing, (0.0, 1.0))
    assert perfect.turns == none.turns
    assert none.counters["prefetched"] == 0
    assert perfect.counters["prefetch_used"] == perfect.counters["prefetched"] > STEPS
    assert perfect.counters["misses"] < none.counters["misses"] / 2


def test_a_prediction_that_is_wrong_is_given_up(
    arch_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Reading ahead what nobody uses ends soon: it costs what is needed its place on the disk.

    One in two guesses is right by chance here; that is not enough.
    """
    path = arch_file("qwen3moe")
    routing = random_routing(read_model(path), tmp_path / "random.trace")
    perfect, wrong = run_imposed(path, routing, (1.0, 0.01), MANY_STEPS)
    assert wrong.turns == perfect.turns
    assert wrong.counters["prefetched"] < perfect.counters["prefetched"] / 5


def test_wrong_predictions_for_short_prompts_are_given_up(tmp_path: Path) -> None:
    """Three new tokens a turn, too few for reading all of the next layer."""
    dims = Dims(layers=12, embd=256, heads=4, experts=64, used=2, expert_ff=64)
    family = Family(qwen.qwen3moe, dims, Q8_0)
    path = make_standin(family, tmp_path / "many.gguf", uniform=True)
    routing = random_routing(read_model(path), tmp_path / "random.trace")
    turns = tuple(Turn(FIRST[:length], 1) for length in range(3, 60, 3))
    settings = dataclasses.replace(half(path), replay=str(routing))
    perfect, wrong = run_cases(
        path,
        [Case(dataclasses.replace(settings, predicted=share), turns) for share in (1.0, 0.01)],
    )
    assert wrong.turns == perfect.turns
    assert wrong.counters["prefetched"] < perfect.counters["prefetched"] / 3
