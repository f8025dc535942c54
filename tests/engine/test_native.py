"""The native helper and the Python that speaks to it are of the same sources, or a line says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import localmoe

pytestmark = pytest.mark.process

LOAD = "from localmoe.engine.worker import binding; assert binding.native is not None"
EDITED = f"from localmoe.engine import native; native.fingerprint = lambda: 'edited'; {LOAD}"
INSTALLED = f"from localmoe.engine import native; native.fingerprint = lambda: ''; {LOAD}"


def loading(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


@pytest.mark.parametrize("script", [LOAD, INSTALLED])
def test_a_helper_of_these_sources_is_used(script: str) -> None:
    """Also where only the library is installed, without its sources."""
    done = loading(script)
    assert done.returncode == 0, done.stderr


def test_a_helper_of_other_sources_is_refused() -> None:
    """Its structures may be others, and reading them would end in a crash. The worker's last words,
    which whoever started it tells, say that and what to type."""
    done = loading(EDITED)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "built from other C++ sources" in said
    assert "pip install --no-deps -e ." in said


def test_a_refused_helper_is_said_in_plain_words(tmp_path: Path) -> None:
    """By the command, of a checkout with edited C++; no name of a class is in it."""
    package = Path(localmoe.__file__).parent
    shutil.copytree(package, tmp_path / "localmoe", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "localmoe/engine/native/usage.cpp").open("a") as source:
        source.write("// edited\n")
    done = subprocess.run(
        [sys.executable, "-m", "localmoe", "run", "nano", "hi"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: the native helper was built from other C++ sources"), said
    assert "Error" not in done.stderr
