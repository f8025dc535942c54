"""The sampler chain does what its names say, seen in the text a real model writes."""

from __future__ import annotations

from collections import Counter

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Request, Sampling, Token

pytestmark = pytest.mark.process

PROMPT = "Tell me about experts and routers."
GREEDY = Sampling(temperature=0)


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


def tokens_of(engine: Engine, request: Request) -> list[int]:
    return [e.token for e in engine.generate(request) if isinstance(e, Token)]


@pytest.mark.parametrize("grammar", [None, "root ::= [a-z ]+"])
def test_a_bias_bans_and_forces(engine: Engine, grammar: str | None) -> None:
    """-100 keeps a token out, 100 brings it; with a grammar, of the tokens that it allows."""

    def write(*biases: tuple[int, float]) -> list[int]:
        sampling = Sampling(temperature=0, logit_bias=biases)
        request = Request(PROMPT, max_tokens=12, sampling=sampling, grammar=grammar)
        return tokens_of(engine, request)

    plain = write()
    banned = write((plain[0], -100.0))
    assert plain[0] not in banned
    (letter,) = engine.tokenize("q")
    assert write((letter, 100.0)) == [letter] * 12
    (digit,) = engine.tokenize("7")
    assert (digit in write((digit, 100.0))) == (grammar is None)


def test_a_bias_of_no_token_changes_nothing(engine: Engine) -> None:
    """Numbers beyond the vocabulary are ignored."""
    odd = Sampling(temperature=0, logit_bias=((2**31 - 1, 100.0), (10**9, -100.0)))
    assert write(engine, odd) == write(engine, GREEDY)
