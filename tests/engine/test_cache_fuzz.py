"""Random use of the cache: no deadlock, no crash, no wrong token."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.cache_fuzz import play
from tests.systems.shims import shim

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]


@pytest.mark.parametrize("seed", [*range(4), 1033])
def test_random_use(seed: int, arch_file: Callable[[str], Path]) -> None:
    """Whole answers are those without a cache, whatever happened before. More: tests/soak.

    1033: a prompt is streamed, the budget shrinks below its stages, and a layer that is not
    streamed needs room for its one token.
    """
    played = play(random.Random(seed), arch_file)
    assert played.wrong == (), played.title


@pytest.mark.parametrize("seed", range(100, 102))
def test_random_faults(seed: int, arch_file: Callable[[str], Path], tmp_path: Path) -> None:
    """The same while reads fail, come short and late; where none can succeed, an error says so."""
    played = play(random.Random(seed), arch_file, shim("faults", tmp_path))
    assert played.wrong == (), played.title


def test_threads_that_come_and_go(arch_file: Callable[[str], Path]) -> None:
    """The last token of a prompt is computed by other threads than the rest, in one call."""
    from localmoe.planning.memory import EngineSettings
    from tests.engine.cached import Case, Turn, run_cases

    path = arch_file("qwen3moe")
    turns = (Turn("A mixture of experts has many small networks and a router. ", 4),) * 4
    plain = EngineSettings(context=256, batch=48, ubatch=23, threads=4, threads_batch=2)
    cached = EngineSettings(
        context=256,
        batch=48,
        ubatch=23,
        threads=4,
        threads_batch=2,
        cache="private",
        cache_bytes=2_800_000,
    )
    reference, *ran = run_cases(path, [Case(plain, turns), *[Case(cached, turns)] * 3])
    assert reference.turns[0].prompt_tokens == 24, "one more than a batch"
    assert all(each.turns == reference.turns for each in ran)
