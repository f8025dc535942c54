"""A model large enough that a batch takes a noticeable time."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.make_standin import main as make_standin


@pytest.fixture(scope="session")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of Qwen3-30B-A3B with a small vocabulary: about 0.4 GB."""
    path = tmp_path_factory.mktemp("large") / "one-layer.gguf"
    arguments = ["qwen3-30b-a3b", "--layers", "1", "--vocab", "4096", "-o", str(path)]
    assert make_standin(arguments) == 0
    return path
