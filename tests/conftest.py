"""Fixtures for every test: generated model files, written once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.archs import generate


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's generated model files are."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def arch_file(model_dir: Path) -> Callable[..., Path]:
    """``arch_file("qwen3moe", split=3)`` → the generated file (its first part)."""

    def make(architecture: str, **options: Any) -> Path:
        return generate(architecture, model_dir, **options)

    return make
