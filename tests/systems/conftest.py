"""The command, and the libraries that make this machine another."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.cli.command import Localmoe
from tests.systems.system import Answer, System


@pytest.fixture
def localmoe(tmp_path: Path) -> Localmoe:
    """The command, in an empty home folder."""
    return Localmoe(tmp_path)


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this session's compiled libraries are."""
    return tmp_path_factory.mktemp("shims")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Answer]:
    """``plain(model)`` → the answer with ``--cache off`` on this machine; asked once."""
    return cache(System(Localmoe(tmp_path_factory.mktemp("plain"))).answer_without_cache)
