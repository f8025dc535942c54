"""The installed llama-cpp-python: its version, its libraries, and its sources."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

from localmoe.errors import EngineError

PACKAGE = "llama-cpp-python"
BASE = "libggml-base.so.0"
"""The copy that libllama uses: its twin under another name would be a second ggml with a device
registry of its own."""


def binding_version() -> str:
    """The version of the installed llama-cpp-python; without one, of the one that we need."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "0.3.36"


def engine_libraries() -> Path:
    """The folder of libllama and libggml inside the installed package. Raises EngineError."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"{PACKAGE} is not installed", hint=f"pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "lib"


def download(version: str, folder: Path) -> Path:
    """The engine's source distribution, through pip: it knows the index, mirrors and the cache.

    Raises EngineError.
    """
    run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", PACKAGE, "--dest", str(folder)),
            f"{PACKAGE}=={version}",
        ]
    )
    archives = list(folder.glob("*.tar.gz"))
    if not archives:
        raise EngineError(f"the package index has no sources of {PACKAGE} {version}")
    return archives[0]


def unpacked(source: Path, scratch: Path, parts: tuple[str, ...] = ("",)) -> Path:
    """llama.cpp's root folder within ``source``, an archive or an unpacked one.

    ``scratch``: where an archive is unpacked to; ``parts``: what of llama.cpp, by the beginnings of
    names. Raises EngineError.
    """
    if source.is_file():
        with tarfile.open(source) as archive:
            wanted = [m for m in archive if any(f"/llama.cpp/{part}" in m.name for part in parts)]
            archive.extractall(scratch, members=wanted, filter="data")
        source = scratch
    for path in source.rglob("ggml/include/ggml-backend.h"):
        return path.parents[2]
    raise EngineError(f"{source}: no sources of llama.cpp in it")


def run(command: list[str]) -> None:
    """Run a program that says little. Raises EngineError with the last error that it told."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise EngineError(
            f"{command[0]} is not installed",
            hint="install a C++ compiler (Debian, Ubuntu: apt install g++), or set CXX",
        ) from error
    if done.returncode:
        raise EngineError(f"{' '.join(command[:4])} … failed: {_why(done)}")


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that speaks of an error, else the last one, of what a program has printed."""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [f"exit status {done.returncode}, without a word"])[-1]
