"""``vocabulary_cases.py``, in a process in which nothing else has used llama.cpp."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

CASES = Path(__file__).with_name("vocabulary_cases.py")
ROOT = Path(__file__).parents[2]


def test_vocabulary_cases() -> None:
    """All of them hold: what the template writes is parsed for special tokens, messages are not."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
