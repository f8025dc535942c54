"""Modules: backends in files of their own, given to the stock engine by their path.

A module is one backend of llama.cpp, built from the sources of the installed engine
(``module_build``). A worker registers it at its start (``ggml_backend_load``); no folder is
searched, since what lies there may be of anybody. It runs code of a driver, which may crash or
hang. So a worker says which module it is about to load, and one that brings it down is left out
from then on: it costs one command, and no later one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from localmoe import kept, storage
from localmoe.engine.package import binding_version, engine_libraries
from localmoe.errors import EngineError, StorageError

NAMES = ("cuda", "vulkan")  # a card that both know is the first one's
START_LIMIT = 60.0  # seconds that loading them may take
INSTALL = "localmoe engine install"

NEEDED = {
    "libcuda.so.1": "NVIDIA's driver is not installed",
    "libcudart.so": "the libraries of the CUDA toolkit are not installed",
    "libcublas": "the libraries of the CUDA toolkit are not installed",
    "libvulkan.so.1": "Vulkan's loader is not installed (Debian, Ubuntu: apt install libvulkan1)",
}
"""What is missing when the linker does not find a library of that name."""


def file_name(name: str) -> str:
    """Of a module for the installed version of the engine."""
    return f"ggml-{name}-{binding_version()}.so"


def path_of(name: str) -> Path:
    """Where a module is kept once it was installed."""
    return storage.cache_dir() / "engines" / file_name(name)


def installed() -> dict[str, Path]:
    """The modules of this engine version by name: installed ones, and those that a wheel has put
    beside the engine.
    """
    found: dict[str, Path] = {}
    for name in NAMES:
        try:
            beside = engine_libraries() / "localmoe" / file_name(name)
        except EngineError:
            beside = path_of(name)
        for path in (path_of(name), beside):
            if name not in found and path.is_file():
                found[name] = path
    return found


def usable() -> tuple[Path, ...]:
    """The modules that a worker loads: the installed ones, less those that failed."""
    failed = failures()
    return tuple(path for name, path in installed().items() if name not in failed)


def failures() -> dict[str, str]:
    """Name of each module that is left out → why."""
    failed = _failed()
    return {
        name: failed[name][1]
        for name, path in installed().items()
        if name in failed and failed[name][0] == _stamp(path)
    }


def leave_out(path: Path, why: str) -> None:
    """Do not load that module again, until it is installed anew."""
    failed = _failed() | {_name(path): (_stamp(path), why)}
    _save(failed)


def pardon(name: str) -> None:
    """Load it again."""
    failed = _failed()
    if failed.pop(name, None):
        _save(failed)


def remove(name: str) -> Path:
    """Take a module away; returns what was deleted. Raises EngineError, StorageError."""
    path = installed().get(name)
    if path is None:
        raise EngineError(f"no {name} module is installed", hint="localmoe engine shows what is")
    try:
        path.unlink()
    except OSError as error:
        raise StorageError(f"{path} cannot be deleted: {error.strerror}") from error
    pardon(name)
    return path


def explained(problem: str) -> str:
    """What the linker said of a module, in words that help, where it is known. Pure."""
    for library, meaning in NEEDED.items():
        if library in problem:
            return f"{meaning} ({problem})"
    return problem


def named(paths: Sequence[Path]) -> str:
    """``cuda``, ``cuda and vulkan``. Pure."""
    return " and ".join(_name(path) for path in paths)


def _name(path: Path) -> str:
    return next((name for name in NAMES if path.name.startswith(f"ggml-{name}")), path.stem)


def _stamp(path: Path) -> str:
    """Of the file: another build of the module gets another chance."""
    try:
        found = path.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _record() -> Path:
    return storage.cache_dir() / "engines" / "failed.json"


def _failed() -> dict[str, tuple[str, str]]:
    try:
        document = kept.parse(_record().read_bytes())
        return {
            kept.text(name): (kept.text(entry[0]), kept.text(entry[1]))
            for name, entry in document.items()
        }
    except (OSError, *kept.DAMAGED):
        return {}


def _save(failed: dict[str, tuple[str, str]]) -> None:
    storage.atomic_write(_record(), json.dumps(failed))
