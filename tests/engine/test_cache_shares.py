"""The planned share of each layer is what its cache keeps, and changes no token."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.model import read_model
from tests.engine.cache_matrix import BASE, FIRST, whole_budget
from tests.engine.cached import Case, Ran, Turn, planned, run_cases

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
SHARES = ((0, 1.0), (1, 0.3125), (2, 0.3125), (3, 0.375))  # of 16 experts each; half of all


def kept(ran: Ran) -> Counter[int]:
    """Experts in memory at the end, per layer."""
    return Counter(group for group, _ in ran.resident)


def test_each_layer_keeps_its_share(arch_file: Callable[[str], Path]) -> None:
    """A favoured layer keeps all that it used, the others give it the room."""
    path = arch_file("qwen3moe")
    even = planned(path, BASE, "private", whole_budget(read_model(path)) // 2)
    shared = dataclasses.replace(even, cache_shares=SHARES)
    plain = dataclasses.replace(BASE, batch=even.batch, ubatch=even.ubatch)
    turns = (Turn(FIRST, tokens=64),)
    first, second, third = run_cases(path, [Case(each, turns) for each in (plain, even, shared)])
    assert first.turns == second.turns == third.turns
    assert sum(kept(third).values()) == sum(kept(second).values()) == 32
    assert max(kept(second).values()) <= 9
    assert kept(third)[0] > 9
    assert max(kept(third)[layer] for layer in (1, 2, 3)) < kept(third)[0]
