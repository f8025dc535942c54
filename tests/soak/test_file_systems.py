"""Real file systems: the expert cache gives the words of ``--cache off`` on each of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.cli.command import Localmoe
from tests.soak.conftest import Figures
from tests.systems.file_systems import KINDS, Kind
from tests.systems.system import OFF, PAGE, TIGHT, System

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif("sys.platform != 'linux'", reason="file systems are mounted"),
]
ARCHITECTURES = ("qwen3moe", "gpt-oss")  # experts of whole blocks, and experts that begin anywhere


@pytest.fixture(scope="module")
def plain(
    arch_file: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Path, str]:
    """Model files where they are, and what they answer without a cache."""
    system = System(Localmoe(tmp_path_factory.mktemp("plain")))
    return {path: system.answer(path, *OFF).text for path in map(arch_file, ARCHITECTURES)}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_same_words(
    kind: Kind, plain: Mapping[Path, str], figures: Figures, tmp_path: Path
) -> None:
    """On each file system the private and the page regime give the words of none."""
    files = tmp_path / "models"
    files.mkdir()
    for path in plain:
        shutil.copy2(path, files)
    system, counted = System(Localmoe(tmp_path)), f"answers on {kind.name}"
    with kind.mounted(files, tmp_path) as folder:
        for path, text in plain.items():
            for regime, options in (("private", TIGHT), ("page", PAGE)):
                answer = system.answer(folder / path.name, *options)
                assert (answer.text, answer.regime) == (text, regime)
                assert answer.misses or regime == "page"
                figures[counted] = figures.get(counted, 0) + 1
    assert all(plain.values())
