"""llama.cpp's own programs, built from the source package of the installed engine.

    python scripts/llama_programs.py BUILD_FOLDER

Minutes of two cores the first time; with a folder that has them, nothing is done. They are for
comparisons: ``check_server_flags.py`` and ``compare_fit.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localmoe.engine.package import binding_version, download

PROGRAMS = ("llama-server", "llama-fit-params")
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_RPC": "ON",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def programs(folder: Path) -> dict[str, Path]:
    """Name → path of each program, compiled into ``folder`` if it is not there.

    Raises CalledProcessError when a step fails, EngineError when there are no sources.
    """
    found = {name: folder / "bin" / name for name in PROGRAMS}
    if all(path.exists() for path in found.values()):
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        archive = download(binding_version(), Path(scratch))
        with tarfile.open(archive) as package:
            package.extractall(scratch, filter="data")
        (source,) = Path(scratch).glob("*/vendor/llama.cpp")
        flags = [f"-D{name}={value}" for name, value in OPTIONS.items()]
        subprocess.run(["cmake", "-S", str(source), "-B", str(folder), *flags], check=True)
        jobs = str(os.cpu_count())  # without a number, make starts everything at once
        build = ["cmake", "--build", str(folder), "--parallel", jobs, "--target", *PROGRAMS]
        subprocess.run(build, check=True)
    return found


if __name__ == "__main__":
    for path in programs(Path(sys.argv[1])).values():
        print(path)
