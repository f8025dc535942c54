"""The command, and the libraries that make this machine another."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.command import Localmoe


@pytest.fixture
def localmoe(tmp_path: Path) -> Localmoe:
    """The command, in an empty home folder."""
    return Localmoe(tmp_path)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's compiled libraries are."""
    return tmp_path_factory.mktemp("shims")
