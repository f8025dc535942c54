"""Real file systems: the expert cache gives the words of ``--cache off`` on each of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.cli.command import Localmoe
from tests.soak.conftest import Figures
from tests.systems import fault_fs
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
    with kind.mounted(_copies(plain, tmp_path), tmp_path) as folder:
        _ask(plain, folder, tmp_path, figures, f"answers on {kind.name}")


@pytest.mark.parametrize(
    ("reads", "fault"),
    [("direct", "EIO"), ("direct", "EINVAL"), ("direct", "slow"), ("cached", "slow")],
)
def test_the_same_words_with_faults(
    reads: str, fault: str, plain: Mapping[Path, str], figures: Figures, tmp_path: Path
) -> None:
    """Nor do faults change them: each read of FUSE that is of this kind fails or comes late."""
    faults = tmp_path / "faults"
    options = (f"--{reads}", fault, "--faults", str(faults))
    with fault_fs.mounted(_copies(plain, tmp_path), tmp_path / "mount", *options) as folder:
        _ask(plain, folder, tmp_path, figures, f"answers with {reads} reads: {fault}")
    assert faults.stat().st_size > 0
    figures["faults"] = faults.stat().st_size


def _copies(plain: Mapping[Path, str], place: Path) -> Path:
    files = place / "models"
    files.mkdir()
    for path in plain:
        shutil.copy2(path, files)
    return files


def _ask(
    plain: Mapping[Path, str], folder: Path, home: Path, figures: Figures, counted: str
) -> None:
    """Each model of a folder in both regimes: the words that it has without a cache."""
    system = System(Localmoe(home))
    for path, text in plain.items():
        for regime, options in (("private", TIGHT), ("page", PAGE)):
            answer = system.answer(folder / path.name, *options)
            assert (answer.text, answer.regime) == (text, regime)
            assert answer.misses or regime == "page"
            figures[counted] = figures.get(counted, 0) + 1
    assert all(plain.values())
