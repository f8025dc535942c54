"""Building the engine anew for a GPU, in this environment.

``pip install`` alone would put back the wheel in pip's cache, whatever it was built with. So the
wheel is built without that cache, kept in a folder of our own, one per backend, and installed from
there: going back and forth between two builds is instant from the second time on.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localmoe import storage
from localmoe.engine.backends import Backend, Tool
from localmoe.engine.package import PACKAGE, binding_version
from localmoe.errors import EngineError

WITH_RPC = "-DGGML_RPC=on"  # a few seconds more, and workers need no build of their own
MEMORY_PER_JOB = 2 << 30  # bytes that a compiler of GPU kernels takes


@dataclass(frozen=True, slots=True)
class Build(ABC):
    """What would be done for one backend here."""

    backend: Backend
    version: str  # of llama-cpp-python
    target: Path  # where the result is kept: a wheel's folder, a module's file
    kept: Path | None  # the result of an earlier build
    missing: tuple[Tool, ...]
    jobs: int  # compilers at once

    @property
    def minutes(self) -> float:
        """Expected, with ``jobs`` compilers; 0 where nothing is compiled."""
        return 0 if self.kept else self.backend.minutes / self.jobs

    @property
    @abstractmethod
    def commands(self) -> list[str]:
        """The commands, as they are typed into a shell."""

    @abstractmethod
    def execute(self) -> Iterator[float]:
        """Build, keep and install; yields progress 0…1 while it compiles. Raises EngineError.

        The engine that is there stays until the new one is complete. An iterator that is dropped
        ends the build.
        """


@dataclass(frozen=True, slots=True)
class EngineBuild(Build):
    """The whole engine, as a wheel."""

    environment: Mapping[str, str]  # variables that are added to those of this process
    build: tuple[str, ...]
    install: tuple[str, ...]  # a command, to which the path of the wheel is added

    @property
    def commands(self) -> list[str]:
        """The commands, as they are typed into a shell."""
        variables = " ".join(f"{k}={shlex.quote(v)}" for k, v in self.environment.items())
        lines = [] if self.kept else [f"{variables} {shlex.join(self.build)}"]
        wheel = shlex.quote(str(self.kept or self.target)) + ("" if self.kept else "/*.whl")
        return [*lines, f"{shlex.join(self.install)} {wheel}"]

    def execute(self) -> Iterator[float]:
        """See ``Build``."""
        wheel = self.kept
        if wheel is None:
            storage.private_dir(self.target)
            for old in self.target.glob("*.whl"):
                old.unlink()
            yield from run_command(self.build, self.environment)
            wheel = next(iter(self.target.glob("*.whl")), None)
            if wheel is None:
                raise EngineError("pip built no wheel")
        yield 1.0
        for _ in run_command((*self.install, str(wheel)), {}):
            pass


def require_system(backend: Backend) -> None:
    """Raises EngineError for another system's backend."""
    if backend.system is not None and platform.system() != backend.system:
        raise EngineError(
            f"{backend.name} is for {backend.system}; this is {platform.system()}",
            hint="localmoe engine shows what there is",
        )


def plan_engine(
    backend: Backend,
    *,
    cores: int,
    ram: int,
    anew: bool = False,
    which: Callable[[str], str | None] = shutil.which,
) -> EngineBuild:
    """How the whole engine is built with ``backend``; starts nothing.

    ``cores``, ``ram`` (bytes): of this machine. ``anew``: build even if there is a kept wheel.
    """
    version = binding_version()
    folder = storage.cache_dir() / "engines" / _key(backend, version)
    jobs = compilers(cores, ram) if backend.name != "cpu" else cores
    arguments = " ".join((*backend.flags, WITH_RPC))
    if own := os.environ.get("CMAKE_ARGS"):
        arguments = f"{arguments} {own}"
    pip = (sys.executable, "-m", "pip")
    quiet = ("--disable-pip-version-check", "--no-deps")
    return EngineBuild(
        backend,
        version,
        folder,
        None if anew else next(iter(sorted(folder.glob("*.whl"))), None),
        backend.missing(which),
        jobs,
        {"CMAKE_ARGS": arguments, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)},
        (
            *(*pip, "wheel", "--verbose", *quiet, "--no-cache-dir", "--no-binary", PACKAGE),
            *("--wheel-dir", str(folder), f"{PACKAGE}=={version}"),
        ),
        (*pip, "install", *quiet, "--force-reinstall"),
    )


def compilers(cores: int, ram: int) -> int:
    """How many compilers of GPU kernels run at once with so many bytes of memory. Pure."""
    return max(1, min(cores, ram // MEMORY_PER_JOB))


def run_command(command: tuple[str, ...], variables: Mapping[str, str]) -> Iterator[float]:
    """Run one command of a build; yields the share of compiled files that Ninja prints."""
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
        words = command[1:4] if command[0] == sys.executable else command[:2]
        raise EngineError(
            f"{' '.join(words)} failed: {_why(list(last))}",
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
