"""Libraries that are preloaded into the real command: kernels and disks unlike this machine's.

Each is one C file, which says what it does and which environment variables steer it.
"""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from tests.needs import missing

HERE = Path(__file__).parent


@cache
def shim(name: str, folder: Path) -> Path:
    """The compiled ``name``.c in ``folder``; the test is skipped where there is no C compiler."""
    if shutil.which("cc") is None:
        missing("no C compiler")
    return compiled(name, folder)


def compiled(name: str, folder: Path) -> Path:
    """The library of ``name``.c, made in ``folder``."""
    library, source = folder / f"{name}.so", HERE / f"{name}.c"
    command = ["cc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library
