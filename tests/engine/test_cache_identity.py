"""Experts from a cache give the same logits, bit by bit, as experts that are simply mapped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.model import read_model
from localmoe.planning.cache import slot_bytes
from tests.archs import ARCHITECTURES
from tests.engine.cache_matrix import BASE, TURNS, WARMED, Matrix, compare, groups_of
from tests.engine.cached import Case, Turn, planned, run_cases

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif("sys.platform != 'linux'", reason="the cache is made for Linux"),
]
WITH_EXPERTS = [name for name in ARCHITECTURES if name not in ("llama-dense", "qwen3")]


def check(matrix: Matrix, path: Path) -> None:
    groups = groups_of(read_model(path))
    assert matrix.plain
    for cell in matrix.cells:
        assert [turn.reason for turn in cell.ran.turns] == [
            "interrupted" if turn.stop else "length" for turn in TURNS
        ]
        assert cell.equal, f"{cell.name}: {cell.ran.turns}, not {cell.reference.turns}"
        counters = cell.ran.counters
        assert counters["calls"] > 0
        assert cell.ran.regime == cell.settings.cache
        if cell.ran.regime == "private":
            assert 0 < counters["resident_bytes"] <= cell.settings.cache_bytes
    page, least, half, whole, warmed = matrix.cells
    assert least.settings.ubatch == page.settings.ubatch  # no room for stages: from the mapping
    assert min(each.ran.counters["evictions"] for each in (least, half, warmed)) > 0
    assert least.ran.counters["arrivals"] > 0
    assert whole.ran.counters["evictions"] == page.ran.counters["evictions"] == 0
    assert warmed.ran.counters["warmed"] >= WARMED
    # The planner's idea of an expert's memory is the cache's.
    slots = sum(slot_bytes(groups[list(groups)[index]]) for index, _ in least.ran.resident)
    assert slots == least.ran.counters["resident_bytes"]


@pytest.mark.parametrize("architecture", WITH_EXPERTS)
def test_every_regime_and_budget(
    architecture: str, arch_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """Page and private, from the least budget to all; interrupted, repeated, continued, warmed."""
    path = arch_file(architecture)
    check(compare(path, tmp_path / "hot.json"), path)


@pytest.mark.parametrize("threads", [2, 4])
def test_with_several_threads(
    threads: int, arch_file: Callable[[str], Path], tmp_path: Path
) -> None:
    """The same when threads wait for each other, more of them than cores too."""
    path = arch_file("qwen3next")
    check(compare(path, tmp_path / "hot.json", threads), path)


@pytest.mark.parametrize("architecture", ["qwen3moe", "gemma4"])
def test_a_file_in_parts(architecture: str, arch_file: Callable[..., Path], tmp_path: Path) -> None:
    """Separate and fused projections are found in whichever part they are."""
    path = arch_file(architecture, split=3)
    assert len(read_model(path).paths) == 3
    check(compare(path, tmp_path / "hot.json"), path)


@pytest.mark.parametrize("architecture", ["llama-dense", "qwen3"])
def test_without_experts_there_is_no_cache(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """A dense model runs as if nothing had been asked for."""
    path = arch_file(architecture)
    (ran,) = run_cases(path, [Case(planned(path, BASE, "private", 1 << 20), (Turn("Hello."),))])
    assert ran.turns[0].reason == "length"
    assert ran.counters == {}
