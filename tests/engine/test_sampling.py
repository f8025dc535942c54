"""The sampler chain does what its names say, seen in the text a real model writes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Request, Sampling, Token
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings

pytestmark = pytest.mark.process

PROMPT = "Tell me about experts and routers."
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def engine(arch_file: Callable[[str], Path]) -> Iterator[Engine]:
    settings = EngineSettings(context=512, batch=64, ubatch=64, threads=1, threads_batch=1)
    with Engine(read_model(arch_file("qwen3moe")), settings) as loaded:
        list(loaded.load())
        yield loaded


def write(engine: Engine, sampling: Sampling, tokens: int = 40) -> list[str]:
    request = Request(PROMPT, max_tokens=tokens, sampling=sampling)
    return [e.text for e in engine.generate(request) if isinstance(e, Token)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=2.0, top_k=1, top_p=1.0, min_p=0.0, seed=1),
        Sampling(temperature=2.0, top_k=0, top_p=1e-6, min_p=0.0, seed=1),
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=1.0, seed=1),
        Sampling(temperature=1e-3, top_k=0, top_p=1.0, min_p=0.0, seed=1),
    ],
    ids=["top_k=1", "top_p→0", "min_p=1", "temperature→0"],
)
def test_each_filter_at_its_limit_is_greedy(engine: Engine, sampling: Sampling) -> None:
    """A filter that leaves one candidate gives the greedy text, at any temperature."""
    assert write(engine, sampling) == write(engine, GREEDY)


def test_without_filters_sampling_differs_from_greedy(engine: Engine) -> None:
    """The counterpart: with everything allowed the text is another."""
    free = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    assert write(engine, free) != write(engine, GREEDY)


def test_no_seed_is_a_fresh_one_each_time(engine: Engine) -> None:
    """Without a seed two answers differ."""
    free = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0)
    assert write(engine, free) != write(engine, free)


def test_repeat_penalty_repeats_less(engine: Engine) -> None:
    """A strong penalty makes the commonest token rarer than without one."""

    def commonest(sampling: Sampling) -> int:
        return Counter(write(engine, sampling, 100)).most_common(1)[0][1]

    narrow = Sampling(temperature=0.3, top_k=5, seed=2)
    strict = Sampling(temperature=0.3, top_k=5, seed=2, repeat_penalty=3.0)
    assert commonest(strict) < commonest(narrow)
