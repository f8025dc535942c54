"""Building one module: a backend alone, from the sources of the installed engine.

What is compiled is kept until the module is complete, so a build that was interrupted goes on where
it stopped.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from localmoe import storage
from localmoe.engine import modules
from localmoe.engine.backends import CUBLAS, NVCC, Backend
from localmoe.engine.builds import Build, compilers, run_command
from localmoe.engine.package import binding_version, download, unpacked
from localmoe.errors import EngineError

FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DGGML_BACKEND_DL=ON",
    "-DGGML_CPU=OFF",
    "-DGGML_NATIVE=OFF",
    "-DLLAMA_BUILD_COMMON=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    # The module names each library, the driver's too: its stand-in for the linker may be empty, and
    # many a compiler then leaves it out.
    "-DCMAKE_MODULE_LINKER_FLAGS=-s -Wl,--no-as-needed",
    # The worker has loaded ggml before; only a toolkit's own libraries are looked for by path.
    # CMake leaves out the folder of CUDA's, since nvcc knows it by itself: see cuda_toolkit.
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON",
)


@dataclass(frozen=True, slots=True)
class ModuleBuild(Build):
    """One backend as a module."""

    flags: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where it is compiled."""
        return self.target.with_suffix(".build")

    @property
    def commands(self) -> list[str]:
        """See ``Build``."""
        if self.kept:
            return []
        steps = [shlex.join(step) for step in (self._configure, self._compile)]
        built = shlex.quote(str(self._built))
        return [*steps, f"cp {built} {shlex.quote(str(self.target))}"]

    def execute(self) -> Iterator[float]:
        """See ``Build``."""
        if self.kept:
            yield 1.0
            return
        storage.private_dir(self.target.parent)
        try:
            with FileLock(self.target.with_suffix(".lock"), timeout=0):
                self._fetch()
                yield 0.0
                yield from run_command(self._configure, {})
                yield from run_command(self._compile, {})
                keep(self._built, self.target)
                shutil.rmtree(self.folder, ignore_errors=True)
        except Timeout:
            raise EngineError("another localmoe is building this module") from None

    def _fetch(self) -> None:
        """The engine's sources, unless an interrupted build has left them there."""
        complete = self.folder / "complete"
        if complete.exists():
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        storage.private_dir(self.folder)
        archive = download(self.version, self.folder)
        unpacked(archive, self.folder / "unpacked").rename(self._source)
        archive.unlink()
        complete.touch()

    @property
    def _source(self) -> Path:
        return self.folder / "source"

    @property
    def _built(self) -> Path:
        return self.folder / "objects" / "bin" / f"libggml-{self.backend.name}.so"

    @property
    def _configure(self) -> tuple[str, ...]:
        where = ("-G", "Ninja", "-S", str(self._source), "-B", str(self.folder / "objects"))
        return ("cmake", *where, *FLAGS, *self.flags)

    @property
    def _compile(self) -> tuple[str, ...]:
        target, jobs = f"ggml-{self.backend.name}", str(self.jobs)
        objects = str(self.folder / "objects")
        return ("cmake", "--build", objects, "--target", target, "--parallel", jobs)


def plan_module(
    backend: Backend,
    *,
    cores: int,
    ram: int,
    anew: bool = False,
    which: Callable[[str], str | None] = shutil.which,
) -> ModuleBuild:
    """How ``backend`` is built as a module; starts nothing. See ``builds.plan_engine``."""
    own = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    toolkit = cuda_toolkit(which) if backend.name == "cuda" else ()
    return ModuleBuild(
        backend,
        binding_version(),
        modules.path_of(backend.name),
        None if anew else modules.installed().get(backend.name),
        backend.missing(which),
        compilers(cores, ram),
        (*backend.flags, *toolkit, *own),
    )


def cuda_toolkit(which: Callable[[str], str | None]) -> Iterator[str]:
    """What CMake is told: the toolkit that was found, and where the module finds the libraries of
    it; to build for the card that is here.
    """
    if (compiler := NVCC.found(which)) is not None:
        yield f"-DCMAKE_CUDA_COMPILER={compiler}"
    if folder := os.environ.get("CUDA_PATH"):
        yield f"-DCUDAToolkit_ROOT={folder}"
    if (library := CUBLAS.found(which)) is not None:
        yield f"-DCMAKE_INSTALL_RPATH={Path(library).parent}"
    if which("nvidia-smi") is not None:
        yield "-DCMAKE_CUDA_ARCHITECTURES=native"


def keep(built: Path, target: Path) -> None:
    """Put a module where it is loaded from, whole or not at all. Raises EngineError."""
    partial = target.with_suffix(f".{os.getpid()}")
    try:
        shutil.copyfile(built, partial)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise EngineError(f"{built} cannot be copied to {target}: {error.strerror}") from error
