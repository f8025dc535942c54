"""Building the engine anew for a GPU, in this environment.

``pip install`` alone would put back the wheel in pip's cache, whatever it was built with. So the
wheel is built without that cache, kept in a folder of our own, one per backend, and installed from
there: going back and forth between two builds is instant from the second time on.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localmoe import storage
from localmoe.errors import EngineError

PACKAGE = "llama-cpp-python"
WITH_RPC = "-DGGML_RPC=on"  # a few seconds more, and workers need no build of their own
CPU_MINUTES = 7.2  # processor minutes of the plain build, measured on two cores
MEMORY_PER_JOB = 2 << 30  # bytes that a compiler of GPU kernels takes


@dataclass(frozen=True, slots=True)
class Tool:
    """What must be installed before a build: any one of ``programs``, or of ``files``."""

    name: str
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    get: str = ""  # how to get it

    def present(self, which: Callable[[str], str | None] = shutil.which) -> bool:
        """Whether one of the programs or files is there."""
        return any(which(p) for p in self.programs) or any(Path(f).exists() for f in self.files)


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to build the engine."""

    name: str
    registry_name: str  # what ggml calls it, once it is built
    flags: tuple[str, ...]  # for CMake
    minutes: float  # processor minutes; only those of the plain build were measured
    about: str
    tools: tuple[Tool, ...] = ()
    system: str | None = None  # platform.system() that it needs


COMPILER = Tool(
    "a C++ compiler", ("g++", "clang++", "c++"), get="Debian, Ubuntu: apt install g++ make"
)
BACKENDS = {
    b.name: b
    for b in (
        Backend("cpu", "CPU", (), CPU_MINUTES, "the processor alone", (COMPILER,)),
        Backend(
            "cuda",
            "CUDA",
            ("-DGGML_CUDA=on",),
            120,
            "NVIDIA GPUs",
            (
                COMPILER,
                Tool(
                    "the CUDA toolkit (nvcc)",
                    ("nvcc",),
                    ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc"),
                    "Debian, Ubuntu: apt install nvidia-cuda-toolkit; "
                    "or developer.nvidia.com/cuda-downloads",
                ),
            ),
        ),
        Backend(
            "vulkan",
            "Vulkan",
            ("-DGGML_VULKAN=on",),
            15,
            "GPUs of any vendor",
            (
                COMPILER,
                Tool("glslc", ("glslc",), get="Debian, Ubuntu: apt install glslc"),
                Tool(
                    "Vulkan's headers",
                    files=(
                        "/usr/include/vulkan/vulkan.h",
                        f"{os.environ.get('VULKAN_SDK', '/none')}/include/vulkan/vulkan.h",
                    ),
                    get="Debian, Ubuntu: apt install libvulkan-dev",
                ),
                Tool(
                    "SPIR-V's headers",
                    files=(
                        "/usr/include/spirv/unified1/spirv.hpp",
                        f"{os.environ.get('VULKAN_SDK', '/none')}/include/spirv/unified1/spirv.hpp",
                    ),
                    get="Debian, Ubuntu: apt install spirv-headers",
                ),
            ),
        ),
        Backend(
            "rocm",
            "ROCm",
            ("-DGGML_HIP=on",),
            120,
            "AMD GPUs",
            (
                COMPILER,
                Tool(
                    "ROCm's compiler (hipcc)",
                    ("hipcc",),
                    ("/opt/rocm/bin/hipcc",),
                    "rocm.docs.amd.com, with hipblas and rocblas",
                ),
            ),
            system="Linux",
        ),
        Backend(
            "metal",
            "Metal",
            ("-DGGML_METAL=on",),
            8,
            "Apple silicon",
            (Tool("Xcode's command line tools", ("clang++",), get="xcode-select --install"),),
            system="Darwin",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Build:
    """What would be done for one backend here."""

    backend: Backend
    version: str  # of llama-cpp-python
    folder: Path  # where the wheel is kept
    kept: Path | None  # the wheel of an earlier build
    missing: tuple[Tool, ...]
    environment: Mapping[str, str]  # variables that are added to those of this process
    build: tuple[str, ...]
    install: tuple[str, ...]  # a command, to which the path of the wheel is added
    minutes: float  # expected, with all cores; 0 where the wheel is kept

    @property
    def commands(self) -> list[str]:
        """The commands, as they are typed into a shell."""
        variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in self.environment.items())
        lines = [] if self.kept else [f"{variables} {shlex.join(self.build)}"]
        wheel = shlex.quote(str(self.kept or self.folder)) + ("" if self.kept else "/*.whl")
        return [*lines, f"{shlex.join(self.install)} {wheel}"]


def binding_version() -> str:
    """The version of the installed llama-cpp-python; without one, of the one that we need."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "0.3.36"


def plan_build(
    backend: Backend,
    *,
    cores: int,
    ram: int,
    anew: bool = False,
    which: Callable[[str], str | None] = shutil.which,
) -> Build:
    """What to do for ``backend``; starts nothing. ``cores``, ``ram`` (bytes): of this machine.

    ``anew``: build even if there is a kept wheel. Raises EngineError for another system's backend.
    """
    if backend.system is not None and platform.system() != backend.system:
        raise EngineError(
            f"{backend.name} is for {backend.system}; this is {platform.system()}",
            hint="localmoe engine shows what there is",
        )
    version = binding_version()
    folder = storage.cache_dir() / "engines" / _key(backend, version)
    kept = None if anew else next(iter(sorted(folder.glob("*.whl"))), None)
    jobs = max(1, min(cores, ram // MEMORY_PER_JOB)) if backend.name != "cpu" else cores
    arguments = " ".join((*backend.flags, WITH_RPC))
    if own := os.environ.get("CMAKE_ARGS"):
        arguments = f"{arguments} {own}"
    pip = (sys.executable, "-m", "pip")
    quiet = ("--disable-pip-version-check", "--no-deps")
    return Build(
        backend,
        version,
        folder,
        kept,
        tuple(tool for tool in backend.tools if not tool.present(which)),
        {"CMAKE_ARGS": arguments, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)},
        (
            *(*pip, "wheel", "--verbose", *quiet, "--no-cache-dir", "--no-binary", PACKAGE),
            *("--wheel-dir", str(folder), f"{PACKAGE}=={version}"),
        ),
        (*pip, "install", *quiet, "--force-reinstall"),
        0 if kept else backend.minutes / jobs,
    )


def execute(build: Build) -> Iterator[float]:
    """Build, keep and install; yields progress 0…1 while it compiles. Raises EngineError.

    The engine that is there stays until the new one is complete. An iterator that is dropped ends
    the build.
    """
    wheel = build.kept
    if wheel is None:
        storage.private_dir(build.folder)
        for old in build.folder.glob("*.whl"):
            old.unlink()
        yield from _run(build.build, build.environment)
        wheel = next(iter(build.folder.glob("*.whl")), None)
        if wheel is None:
            raise EngineError("pip built no wheel")
    yield 1.0
    for _ in _run((*build.install, str(wheel)), {}):
        pass


def _run(command: tuple[str, ...], variables: Mapping[str, str]) -> Iterator[float]:
    """Run one command of pip's; yields the share of compiled files that Ninja prints."""
    last: collections.deque[str] = collections.deque(maxlen=200)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **variables},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            if found := re.search(r"\[(\d+)/(\d+)\]", line):
                yield int(found[1]) / max(1, int(found[2]))
        process.wait()
    finally:
        if process.poll() is None:
            _end_group(process.pid)
            process.wait()
    if process.returncode:
        raise EngineError(
            f"{' '.join(command[1:4])} failed: {_why(list(last))}",
            hint="the engine is what it was before; `--dry-run` prints the command",
        )


def _end_group(group: int) -> None:
    """End a command and all that it has started: else its compilers would run on for minutes."""
    with contextlib.suppress(OSError):
        os.killpg(group, signal.SIGTERM)


def _why(lines: list[str]) -> str:
    """The first line that looks like a cause; later errors only say that building failed."""
    for sign in ("CMake Error", "fatal error", "error:", "Error", "ERROR"):
        for number, line in enumerate(lines):
            if sign in line:
                following = lines[number + 1].strip() if line.endswith(":") else ""
                return f"{line.strip()} {following}".strip()[-300:]
    return lines[-1] if lines else "it said nothing"


def _key(backend: Backend, version: str) -> str:
    """Names the kept wheel of a backend and a version, built for the processor of this machine."""
    machine = f"{platform.machine()} {_processor()} {os.environ.get('CMAKE_ARGS', '')}"
    return f"{version}-{backend.name}-{hashlib.sha256(machine.encode()).hexdigest()[:12]}"


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    found = re.search(r"^(?:flags|Features)\s*:.*$", text, re.MULTILINE)
    return found[0] if found else platform.processor()
