"""pip runs setup.py before it compiles llama.cpp: what that will lack is said first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
RUN = """
import collections, importlib.util, runpy, shutil, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: found(name) if name != "llama_cpp" else None
{change}
sys.argv = ["setup.py", "--name"]
runpy.run_path("setup.py")
"""
FULL = "shutil.disk_usage = lambda path: collections.namedtuple('U', 'free')(1 << 30)"
SMALL = """
from pathlib import Path
read = Path.read_text
Path.read_text = lambda self, *a, **k: (
    "MemAvailable: 500000 kB" if str(self) == "/proc/meminfo" else read(self, *a, **k)
)
"""


def installing(change: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What setup.py says, asked for the name of the package, on a machine that was changed."""
    return subprocess.run(
        [sys.executable, "-c", RUN.format(change=change)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("change", "environment", "said", "hint"),
    [
        ("", {"PATH": "", "CXX": ""}, "no C++ compiler", "apt install g++"),
        (FULL, {}, "1.0 GiB free", "TMPDIR="),
        (SMALL, {}, "0.5 GiB of memory", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
    ],
    ids=["compiler", "disk", "memory"],
)
def test_what_the_compilation_lacks_is_said(
    change: str, environment: dict[str, str], said: str, hint: str
) -> None:
    """In a few lines, with what to type; and a variable goes on in spite of it."""
    done = installing(change, **environment)
    assert done.returncode == 1
    assert said in done.stderr and hint in done.stderr
    assert len(done.stderr.splitlines()) <= 4
    assert installing(change, **environment, LOCALMOE_SKIP_BUILD_CHECKS="1").returncode == 0


def test_where_nothing_is_missing_it_says_nothing() -> None:
    """A machine with a compiler, memory and room on its disk."""
    done = installing("")
    assert (done.returncode, done.stdout.strip()) == (0, "localmoe"), done.stderr
