"""The cost of lossy options is measured against what the engine itself computes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings
from scripts.lossy_cost import Scored, measure, options_of, own_texts, settings_for, table
from tests.archs.plain import plain_greedy

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="the private regime is Linux's"
)


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Model:
    return read_model(arch_file("qwen3moe"))


@pytest.fixture(scope="module")
def settings(model: Model) -> EngineSettings:
    return dataclasses.replace(settings_for(model, threads=1), cache_bytes=model.expert_bytes // 2)


@pytest.mark.process
def test_exact_is_what_plain_llama_cpp_takes(model: Model, settings: EngineSettings) -> None:
    """Fed with a greedy answer, the likeliest tokens are that answer."""
    plain = plain_greedy(model.paths[0], "The first question", 24, n_ctx=1024)
    text = Scored(tuple(plain.prompt_tokens), tuple(plain.tokens))
    cost = measure("exact", model, settings, [text])
    assert cost.likeliest.tolist() == plain.tokens
    assert cost.changed(cost) == 0


def test_losses_are_seen(model: Model, settings: EngineSettings) -> None:
    """Own texts are likeliest for the exact model; fewer experts are looked up and read."""
    texts = own_texts(model, settings, count=2, tokens=40)
    assert own_texts(model, settings, count=2, tokens=40) == texts
    one = dataclasses.replace(settings, experts_used=1)
    greedy = dataclasses.replace(settings, prefer_cached=0.9)
    exact, fewer, resident = (
        measure(name, model, how, texts)
        for name, how in (("exact", settings), ("one", one), ("prefer", greedy))
    )
    used = [layer.expert_used for layer in model.layers if layer.expert_count]
    assert (exact.looked_up, fewer.looked_up) == (sum(used), len(used))
    assert fewer.perplexity > exact.perplexity and fewer.changed(exact) > 0
    assert resident.missed < exact.missed
    assert table([exact, fewer]).count("\n") == 3


def test_every_option_is_measured(model: Model, settings: EngineSettings) -> None:
    """The exact model first, then each lossy option alone."""
    names, made = zip(*options_of(model, settings), strict=True)
    assert names[0] == "exact" and made[0] == settings
    for each in made[1:]:
        assert (each.experts_used > 0) != (each.prefer_cached > 0)
