"""Building the engine for other devices: what it takes, and whether the result works."""

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
    """How to build the engine for ``backend`` here; ``anew``: even if a wheel of it is kept."""
    machine = hardware.detect()
    cores, ram = machine.cores_logical, machine.ram_available
    return builds.plan_build(BACKENDS[backend], cores=cores, ram=ram, anew=anew)


def require_tools(build: Build) -> None:
    """Raises EngineError if a compiler or a tool kit is missing and no wheel is kept."""
    if build.missing and not build.kept:
        tool = build.missing[0]
        names = ", ".join(tool.name for tool in build.missing)
        message = f"{build.backend.name} cannot be built here: {names} missing"
        raise EngineError(message, hint=tool.get)


def installed(build: Build) -> EngineInfo:
    """The engine after its build. Raises EngineError if it does not start or lacks the backend."""
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
