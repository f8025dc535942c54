"""A small model, loaded, and files large enough that a batch takes a noticeable time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from scripts.make_standin import MODELS, make_standin
from tests.archs import qwen
from tests.archs.families import Q4_K_M, Family
from tests.archs.recipe import Dims


@pytest.fixture(scope="session")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of Qwen3-30B-A3B with a small vocabulary: about 0.4 GB."""
    path = tmp_path_factory.mktemp("large") / "one-layer.gguf"
    return make_standin(MODELS["qwen3-30b-a3b"], path, layers=1, vocab=4096)


@pytest.fixture(scope="session")
def medium_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six layers of 64 experts of 0.9 MB each: about 0.4 GB."""
    dims = Dims(layers=6, embd=1024, heads=8, experts=64, used=4, expert_ff=512)
    path = tmp_path_factory.mktemp("medium") / "medium.gguf"
    return make_standin(Family(qwen.qwen3moe, dims, Q4_K_M), path, uniform=True)


@pytest.fixture(scope="module")
def engine(arch_file: Callable[[str], Path]) -> Iterator[Engine]:
    """A small model, loaded; its weights never choose a special token."""
    settings = EngineSettings(context=512, batch=64, ubatch=64, threads=1, threads_batch=1)
    with Engine(read_model(arch_file("qwen3moe")), settings) as loaded:
        list(loaded.load())
        yield loaded
