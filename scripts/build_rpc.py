"""Builds ggml's RPC backend for the installed llama-cpp-python, without rebuilding the engine.

The wheel is built without it. Two source files of the engine's own source distribution, compiled
against the installed ``libggml-base``, are enough: a process that loads the result can serve its
devices to another process, and use the devices of one. That gives a second device on a machine
without a GPU. The library is kept in the user's cache, one for each engine version.

    python scripts/build_rpc.py --print        → the library's path, built if it is not there yet
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import platformdirs

PACKAGE = "llama-cpp-python"
NEEDED = ("ggml/include/", "ggml/src/ggml-rpc/", "ggml/src/ggml-impl.h", "ggml/src/ggml-backend-")
UNITS = ("ggml/src/ggml-rpc/ggml-rpc.cpp", "ggml/src/ggml-rpc/transport.cpp")
DEFINES = ("GGML_SHARED", "GGML_BACKEND_SHARED", "GGML_BACKEND_BUILD", "NDEBUG")


class BuildError(Exception):
    """The sources are not to be had, or the compiler refused them."""


def rpc_library(source: Path | None = None) -> Path:
    """The backend's shared library for the installed engine, built on first use (seconds).

    Args:
        source: the engine's source distribution (archive or unpacked folder); None fetches it
            with pip.

    Raises:
        BuildError: no sources of the installed version, or no working compiler.
    """
    version = importlib.metadata.version(PACKAGE)
    engine = engine_libraries()
    # keyed by the library it is linked against: another build of one version is another file
    stamp = f"{version}-{(engine / 'libggml-base.so.0').stat().st_mtime_ns:x}"
    target = platformdirs.user_cache_path("localmoe") / "rpc" / stamp / "libggml-rpc.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = _sources(source or _download(version, Path(scratch)), Path(scratch) / "sources")
        built = Path(scratch) / "built.so"
        _run(compile_command(root, engine, built))
        partial = target.with_suffix(f".{os.getpid()}")
        partial.write_bytes(built.read_bytes())
        partial.rename(target)
    return target


def engine_libraries() -> Path:
    """The folder of libllama and libggml inside the installed package."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(f"{PACKAGE} is not installed")
    return Path(spec.submodule_search_locations[0]) / "lib"


def compile_command(root: Path, engine: Path, output: Path) -> list[str]:
    """The compiler call for llama.cpp's sources in ``root``.

    The ``.so.0`` copy of libggml-base is named because libllama uses that one: its twin under
    another name would be a second ggml with its own device registry.
    """
    return [
        os.environ.get("CXX", "g++"),
        *("-std=c++17", "-O2", "-shared", "-fPIC", "-pthread"),
        *(f"-D{name}" for name in DEFINES),
        *(f"-I{root / folder}" for folder in ("ggml/include", "ggml/src")),
        *(str(root / unit) for unit in UNITS),
        *(f"-L{engine}", "-l:libggml-base.so.0"),
        *(f"-Wl,-rpath,{engine}", "-Wl,--no-undefined"),
        *("-o", str(output)),
    ]


def _download(version: str, scratch: Path) -> Path:
    """The source distribution, through pip: it knows the index, the mirrors and the cache."""
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--no-binary", PACKAGE, "--dest", str(scratch)),
            f"{PACKAGE}=={version}",
        ]
    )
    archives = list(scratch.glob("*.tar.gz"))
    if not archives:
        raise BuildError(f"the package index has no sources of {PACKAGE} {version}")
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
    raise BuildError(f"{source}: no {UNITS[0]} in it")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed") from error
    if done.returncode:
        raise BuildError(f"{' '.join(command[:4])} … failed:\n{done.stderr[-3000:]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--source", type=Path, help="source distribution: archive or folder")
    parser.add_argument("--print", action="store_true", help="print nothing but the path")
    options = parser.parse_args(arguments)
    try:
        path = rpc_library(options.source)
    except BuildError as error:
        print(f"build_rpc: {error}", file=sys.stderr)
        return 1
    print(path if options.print else f"RPC backend: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
