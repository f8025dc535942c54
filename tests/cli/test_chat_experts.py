"""``/experts``: what is said of an answer's experts, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from localmoe.app.expert_use import load_so_far, sources
from localmoe.engine.events import CacheStats, LayerLoad
from localmoe.planning.plan import LayerPlacement


def layer(index: int, experts: str, **parts: Any) -> LayerPlacement:
    """Two of eight experts per token, 800 bytes in all."""
    return LayerPlacement(index, "ram", experts, 0, 800, 8, 2, **parts)


def cache(hits: int, misses: int) -> CacheStats:
    return CacheStats("private", hits, misses, 0, 0.0, 0, 0)


def test_every_expert_comes_from_somewhere() -> None:
    """One layer on the GPU, one split, two in host memory: five experts of eight per token are the
    cache's, which alone says how many tokens there were."""
    layers = (
        layer(0, "gpu", experts_gpu=800),
        layer(1, "ram", experts_gpu=400, experts_ram=400),
        layer(2, "ram", experts_ram=800),
        layer(3, "disk", experts_disk=800),
    )
    assert sources(layers, 10, cache(40, 10)) == {"gpu": 30, "ram": 40, "disk": 10}
    assert sources(layers, 10, None) == {"gpu": 30, "ram": 50, "disk": 0}


def test_all_on_the_gpu() -> None:
    """Nobody counts there: every token takes as many."""
    layers = (layer(0, "gpu", experts_gpu=800), layer(1, "gpu", experts_gpu=800))
    assert sources(layers, 7, None) == {"gpu": 28, "ram": 0, "disk": 0}
    assert sources(layers, 7, cache(0, 0))["gpu"] == 28


def test_the_least_even_layers_come_first() -> None:
    """Five of them at most, with the load of their busiest expert."""
    load = [LayerLoad(i, 8, 8 - i % 2, 0.9 - i / 100, 1.0 + i) for i in range(7)]
    first, second = load_so_far(load)
    assert first == "load so far: 53 of 56 experts used, entropy 0.87 of 1"
    assert second.endswith("6 (7.0), 5 (6.0), 4 (5.0), 3 (4.0), 2 (3.0)")


@pytest.mark.parametrize("count", [1, 3])
def test_few_layers_are_enough(count: int) -> None:
    """Models with one MoE layer too."""
    load = [LayerLoad(i, 4, 4, 1.0, 1.0) for i in range(count)]
    assert f"{4 * count} of {4 * count} experts used" in load_so_far(load)[0]
