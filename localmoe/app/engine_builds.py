"""Another build of the engine: planned, built, and tried before it is called done."""

from __future__ import annotations

import contextlib

from localmoe.engine import builds
from localmoe.engine.builds import BACKENDS, Build
from localmoe.engine.devices import EngineInfo, engine_info
from localmoe.errors import EngineError, LocalmoeError
from localmoe.facts import hardware


def kept_builds() -> list[str]:
    """Backends whose wheel is kept: installing one of them again takes seconds."""
    found = []
    for name, backend in BACKENDS.items():
        with contextlib.suppress(EngineError):
            if builds.plan_build(backend, cores=1, ram=0).kept is not None:
                found.append(name)
    return found


def planned_build(backend: str, *, anew: bool) -> Build:
    """How the engine would be built here; ``anew``: even where a wheel of it is kept."""
    machine = hardware.detect()
    cores, ram = machine.cores_logical, machine.ram_available
    return builds.plan_build(BACKENDS[backend], cores=cores, ram=ram, anew=anew)


def require_tools(build: Build) -> None:
    """Raises EngineError where a compiler or a tool kit is missing."""
    if build.missing and not build.kept:
        tool = build.missing[0]
        names = ", ".join(tool.name for tool in build.missing)
        message = f"{build.backend.name} cannot be built here: {names} missing"
        raise EngineError(message, hint=tool.get)


def installed(build: Build) -> EngineInfo:
    """What the engine says of itself now. Raises EngineError where it lacks the new backend."""
    info, problem = None, ""
    try:
        info = engine_info()
    except LocalmoeError as error:
        problem = error.message
    if info is None or build.backend.registry_name not in info.backends:
        found = problem or f"it has {', '.join(info.backends) if info else 'nothing'}"
        raise EngineError(
            f"the new engine was built and has no usable {build.backend.registry_name}: {found}",
            hint="is the driver running? `localmoe engine install cpu` goes back",
        )
    return info
