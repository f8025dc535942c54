"""Libraries that are preloaded into the real command: kernels and disks unlike this machine's.

Each is one C file, which says what it does and which environment variables steer it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@cache
def shim(name: str, folder: Path) -> Path:
    """The compiled ``name``.c; the test is skipped where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = folder / f"{name}-{os.getpid()}.so"
    source = str(HERE / f"{name}.c")
    command = [compiler, "-O1", "-shared", "-fPIC", source, "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library
