"""Building the engine for other devices: what it takes, and whether the result works."""

from __future__ import annotations

import contextlib
from pathlib import Path

from localmoe import storage
from localmoe.engine import modules
from localmoe.engine.backends import BACKENDS, Backend
from localmoe.engine.builds import Build, plan_engine, require_system
from localmoe.engine.devices import EngineInfo, engine_info
from localmoe.engine.module_build import keep, plan_module
from localmoe.engine.rpc_build import plan_rpc
from localmoe.errors import EngineError, LocalmoeError, UsageError
from localmoe.facts import hardware


def kept_builds() -> list[str]:
    """Backends whose wheel or module is kept: installing one of them again takes seconds."""
    found = []
    for name, backend in BACKENDS.items():
        with contextlib.suppress(EngineError):
            if _planned(backend, cores=1, ram=0).kept is not None:
                found.append(name)
    return found


def planned_build(backend: str, *, anew: bool) -> Build:
    """How to build the engine, or a module of it, for ``backend`` here.

    ``anew``: even if an earlier build is kept. Raises EngineError for another system's backend.
    """
    machine = hardware.detect()
    cores, ram = machine.cores_logical, machine.ram_available
    return _planned(BACKENDS[backend], cores=cores, ram=ram, anew=anew)


def _planned(backend: Backend, *, cores: int, ram: int, anew: bool = False) -> Build:
    require_system(backend)
    if backend.module:
        return plan_module(backend, cores=cores, ram=ram, anew=anew)
    plan = plan_rpc if backend.name == "rpc" else plan_engine
    return plan(backend, cores=cores, ram=ram, anew=anew)


def require_tools(build: Build) -> None:
    """Raises EngineError if a compiler or a tool kit is missing and no build is kept."""
    if build.missing and not build.kept:
        tool = build.missing[0]
        names = ", ".join(tool.name for tool in build.missing)
        message = f"{build.backend.name} cannot be built here: {names} missing"
        raise EngineError(message, hint=tool.get)


def install_file(path: Path) -> Backend:
    """Keep a module that was built elsewhere; returns its backend. Raises UsageError, EngineError.

    Its name says what it is, and for which version of the engine: ``modules.file_name``.
    """
    for name in modules.NAMES:
        if path.name == modules.file_name(name):
            storage.private_dir(modules.path_of(name).parent)
            keep(path, modules.path_of(name))
            return BACKENDS[name]
    expected = " or ".join(map(modules.file_name, modules.NAMES))
    raise UsageError(f"{path.name} is no module of this engine", hint=f"it is called {expected}")


def installed(backend: Backend) -> EngineInfo:
    """The engine after a build. Raises EngineError if it does not start or lacks the backend."""
    info, problem = None, ""
    if backend.module:
        modules.pardon(backend.name)
    try:
        info = engine_info()
    except LocalmoeError as error:
        problem = error.message
    if info is not None and backend.name == "rpc" and info.rpc:
        return info
    if info is not None and backend.name in info.modules:
        problem = info.modules[backend.name]  # "" where it was loaded, with or without a device
        if not problem:
            return info
    if info is None or backend.registry_name not in info.backends:
        found = problem or f"it has {', '.join(info.backends) if info else 'nothing'}"
        back = "remove " + backend.name if backend.module else "install cpu"
        raise EngineError(
            f"the new engine was built and has no usable {backend.registry_name}: {found}",
            hint=f"is the driver running? `localmoe engine {back}` goes back",
        )
    return info
