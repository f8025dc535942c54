"""ggml's RPC backend for the installed engine, without building the engine anew.

A wheel of llama-cpp-python has no RPC backend unless it was built with one. Two source files of the
engine's own source distribution, compiled against the installed ``libggml-base``, are enough: a
process that loads the result can serve its devices to other machines, and use the devices of one.
That takes seconds where the engine takes minutes. The library lies beside the engine's own, in the
environment, and belongs to exactly one build of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localmoe.engine.backends import Backend
from localmoe.engine.builds import Build
from localmoe.engine.package import (
    BASE,
    binding_version,
    download,
    engine_libraries,
    run,
    unpacked,
)
from localmoe.errors import EngineError

NEEDED = ("ggml/include/", "ggml/src/ggml-rpc/", "ggml/src/ggml-impl.h", "ggml/src/ggml-backend-")
UNITS = ("ggml/src/ggml-rpc/ggml-rpc.cpp", "ggml/src/ggml-rpc/transport.cpp")
DEFINES = ("GGML_SHARED", "GGML_BACKEND_SHARED", "GGML_BACKEND_BUILD", "NDEBUG")
BUILT_IN = ("libggml-rpc.so.0", "libggml-rpc.0.dylib", "libggml-rpc.dylib")


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
        raise EngineError(f"{folder} has no {BASE} that the RPC backend could be built for")
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            version = binding_version()
            archive = source or download(version, Path(scratch))
            root = unpacked(archive, Path(scratch) / "sources", NEEDED)
            built = Path(scratch) / "built.so"
            run(compile_command(root, folder, built))
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


@dataclass(frozen=True, slots=True)
class RpcBuild(Build):
    """The RPC backend alone, beside the engine that is there."""

    @property
    def commands(self) -> list[str]:
        """See ``Build``."""
        sources = Path("llama.cpp")
        line = shlex.join(compile_command(sources, engine_libraries(), self.target))
        return [] if self.kept else [line]

    def execute(self) -> Iterator[float]:
        """See ``Build``."""
        yield 0.0
        build_rpc_library(anew=self.kept is None)
        yield 1.0


def plan_rpc(
    backend: Backend,
    *,
    cores: int,
    ram: int,
    anew: bool = False,
    which: Callable[[str], str | None] = shutil.which,
) -> RpcBuild:
    """How the RPC backend is built; starts nothing. See ``builds.plan_engine``."""
    folder = engine_libraries()
    return RpcBuild(
        backend,
        binding_version(),
        _beside(folder) or folder,
        None if anew else find_rpc_library(),
        backend.missing(which),
        1,
    )


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
