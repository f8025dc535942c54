"""Fixtures of the command line tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.archs import bad_files
from tests.cli.command import Localmoe


@pytest.fixture
def localmoe(tmp_path: Path) -> Localmoe:
    """The command, in an empty home folder."""
    return Localmoe(tmp_path)


@pytest.fixture(scope="session")
def bad(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file for each way in which a model file can be wrong."""
    return bad_files(tmp_path_factory.mktemp("bad"))
