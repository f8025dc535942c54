"""ggml's RPC backend for the installed engine, without building the engine anew.

A wheel of llama-cpp-python has no RPC backend unless it was built with one. Two source files of the
engine's own source distribution, compiled against the installed ``libggml-base``, are enough: a
process that loads the result can serve its devices to other machines, and use the devices of one.
That takes seconds where the engine takes minutes. The library lies beside the engine's own, in the
environment, and belongs to exactly one build of it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from localmoe.errors import EngineError

PACKAGE = "llama-cpp-python"
NEEDED = ("ggml/include/", "ggml/src/ggml-rpc/", "ggml/src/ggml-impl.h", "ggml/src/ggml-backend-")
UNITS = ("ggml/src/ggml-rpc/ggml-rpc.cpp", "ggml/src/ggml-rpc/transport.cpp")
DEFINES = ("GGML_SHARED", "GGML_BACKEND_SHARED", "GGML_BACKEND_BUILD", "NDEBUG")
BUILT_IN = ("libggml-rpc.so.0", "libggml-rpc.0.dylib", "libggml-rpc.dylib")
BASE = "libggml-base.so.0"
"""The copy that libllama uses: its twin under another name would be a second ggml with a device
registry of its own."""


def engine_libraries() -> Path:
    """The folder of libllama and libggml inside the installed package. Raises EngineError."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(f"{PACKAGE} is not installed", hint=f"pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "lib"


def find_rpc_library() -> Path | None:
    """The RPC backend of the installed engine: built in, or built beside it; None without one."""
    folder = engine_libraries()
    for name in BUILT_IN:
        if (folder / name).exists():
            return folder / name
    beside = _beside(folder)
    return beside if beside is not None and beside.exists() else None


def build_rpc_library(source: Path | None = None, *, anew: bool = False) -> Path:
    """The RPC backend of the installed engine, compiled if it is not there yet (seconds).

    ``source``: the engine's source distribution, archive or unpacked folder; None fetches it with
    pip. ``anew``: compile it even if it is there. Raises EngineError: no sources of the installed
    version, no working compiler, or an environment that cannot be written.
    """
    found = find_rpc_library()
    if found is not None and not anew:
        return found
    folder = engine_libraries()
    target = _beside(folder)
    if target is None:
        raise EngineError(
            "the RPC backend can be added on Linux only; elsewhere the engine is built with it",
            hint='CMAKE_ARGS="-DGGML_RPC=on" pip install --force-reinstall --no-cache-dir '
            f"{PACKAGE}=={importlib.metadata.version(PACKAGE)}",
        )
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            version = importlib.metadata.version(PACKAGE)
            root = _sources(source or download(version, Path(scratch)), Path(scratch) / "sources")
            built = Path(scratch) / "built.so"
            _run(compile_command(root, folder, built))
            partial = target.with_suffix(f".{os.getpid()}")
            shutil.copyfile(built, partial)
            partial.replace(target)
        for other in target.parent.glob("libggml-rpc-*.so"):
            if other != target:  # of an engine build that is not there any more
                other.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(
            f"the RPC backend cannot be put into {target.parent}: {error.strerror or error}",
            hint="use a virtual environment of your own: python3 -m venv",
        ) from error
    return target


def _beside(folder: Path) -> Path | None:
    """Where our build for this engine is, keyed by the library that it is linked against."""
    try:
        state = (folder / BASE).stat()
    except OSError:
        return None
    return folder / "localmoe" / f"libggml-rpc-{state.st_mtime_ns:x}-{state.st_size:x}.so"


def compile_command(root: Path, engine: Path, output: Path) -> list[str]:
    """The compiler call for llama.cpp's sources in ``root``."""
    return [
        *shlex.split(os.environ.get("CXX") or "g++"),
        *("-std=c++17", "-O2", "-shared", "-fPIC", "-pthread"),
        *(f"-D{name}" for name in DEFINES),
        *(f"-I{root / folder}" for folder in ("ggml/include", "ggml/src")),
        *(str(root / unit) for unit in UNITS),
        *(f"-L{engine}", f"-l:{BASE}"),
        *("-Wl,-rpath,$ORIGIN/..", "-Wl,--no-undefined"),
        *("-o", str(output)),
    ]


def download(version: str, folder: Path) -> Path:
    """The engine's source distribution, through pip: it knows the index, mirrors and the cache.

    Raises EngineError.
    """
    _run(
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


def _sources(source: Path, scratch: Path) -> Path:
    """llama.cpp's root folder within ``source``; of an archive only the needed files."""
    if source.is_file():
        with tarfile.open(source) as archive:
            wanted = [m for m in archive if any(f"/llama.cpp/{part}" in m.name for part in NEEDED)]
            archive.extractall(scratch, members=wanted, filter="data")
        source = scratch
    return _root_of(source.rglob("ggml-rpc.cpp"), source)


def _root_of(found: Iterable[Path], source: Path) -> Path:
    for path in found:
        if PurePosixPath(path.as_posix()).match(f"*/{UNITS[0]}"):
            return path.parents[len(PurePosixPath(UNITS[0]).parts) - 1]
    raise EngineError(f"{source}: no {UNITS[0]} in it")


def _run(command: list[str]) -> None:
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
