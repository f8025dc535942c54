"""What is right and wrong with this machine and this engine build, and what to type about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from localmoe import __version__, storage
from localmoe.app.idle_gpus import idle_gpus, install_command
from localmoe.app.listener import Listener
from localmoe.app.machine import apply_limits
from localmoe.app.machine_file import machine_document
from localmoe.app.rates import key_of, machine_rates
from localmoe.app.requests import PlanRequest
from localmoe.engine import modules
from localmoe.engine.devices import EngineInfo, engine_info
from localmoe.engine.package import binding_version
from localmoe.engine.rpc import INSTALL as INSTALL_RPC
from localmoe.errors import LocalmoeError
from localmoe.facts import bandwidth, catalog, hardware
from localmoe.facts.bandwidth import Rates
from localmoe.facts.hardware import Machine
from localmoe.text import counted, format_bytes, format_size

LITTLE_DISK = 20_000_000_000  # bytes; a 30B-A3B in Q4_K_M takes about 18 GB
AGAIN = "localmoe doctor --measure"
REINSTALL = "in the folder of localmoe's source: pip install --force-reinstall --no-deps ."


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis. ``fix`` is what to type, None when all is well."""

    area: str  # "processor", "memory", "disk", "kept", "speed", "gpu", "engine" or "models"
    text: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """This machine, this engine build, and the findings about them."""

    machine: Machine
    rates: Rates | None  # None: not measured
    engine: EngineInfo | None  # None: the engine does not start
    findings: tuple[Finding, ...]


def diagnose(request: PlanRequest, listener: Listener, *, measure: bool = False) -> Diagnosis:
    """The findings about this machine; its speed is measured now if it never was (seconds), or
    once more with ``measure``.
    """
    if measure:
        bandwidth.forget()
    info: EngineInfo | None = None
    broken: LocalmoeError | None = None
    try:
        info = engine_info(request.remotes)
    except LocalmoeError as error:
        broken = error
    machine = hardware.detect(info.gpus if info else ())
    machine = apply_limits(machine, request.wishes, hypothetical=False)
    rates = machine_rates(machine, listener) if info else None
    findings = (
        *machine_findings(machine),
        kept_finding(),
        *speed_findings(rates),
        *gpu_findings(machine),
        *engine_findings(info, broken, binding_version()),
        *model_findings([model.path for model in catalog.installed_models()]),
    )
    return Diagnosis(machine, rates, info, findings)


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """Processor, memory and disk. Pure."""
    cores = (
        f"{counted(machine.cores_physical, 'core')}, "
        f"{counted(machine.cores_logical, 'thread')} usable"
    )
    yield Finding("processor", f"{machine.cpu} ({cores}), {machine.os}")
    ram = f"{format_bytes(machine.ram_available)} free of {format_bytes(machine.ram_total)}"
    if machine.ram_limited_by:
        fix = "raise the memory limit of this container or session to use more"
        yield Finding("memory", f"{ram}, limited by {machine.ram_limited_by}", fix)
    else:
        yield Finding("memory", ram)
    if machine.swap_total:
        swap = f"{format_bytes(machine.swap_total)} of swap: no plan counts on it"
        yield Finding("memory", f"{swap}, and experts give their memory back before it is used")
    little = (
        "free disk space: most MoE models take more" if machine.disk_free < LITTLE_DISK else None
    )
    yield Finding("disk", f"{format_size(machine.disk_free)} free where models are kept", little)


def kept_finding() -> Finding:
    """How much of the disk localmoe's cache takes."""
    folder = storage.cache_dir()
    size = format_size(storage.bytes_below(folder))
    what = "contexts of conversations, engine builds, what was measured"
    return Finding("kept", f"{size} in {folder} ({what}): deleting it loses nothing but time")


def speed_findings(rates: Rates | None) -> Iterator[Finding]:
    """What was measured of memory, multiplication and disk. Pure."""
    if rates is None:
        return
    threads, speed = rates.ram[-1]
    text = f"memory {speed / 1e9:.1f} GB/s with {counted(round(threads), 'thread')}"
    if (rate := rates.types.get("Q4_K")) is not None:
        text += f", Q4_K weights multiplied at {rate.vector[-1][1] / 1e9:.1f} GB/s"
    if rates.disk:
        disk = rates.disk[0]
        text += f", disk {disk.reads[-1][1] / 1e9:.1f} GB/s ({disk.cached / 1e9:.1f} when loading)"
    yield Finding("speed", text)
    for failure in rates.untimed:
        text = f"{failure.device} was not timed, and its speed is assumed: {failure.why}"
        yield Finding("speed", text, AGAIN)
    day = rates.when[:10] or "some time ago"
    if rates.calm:
        yield Finding("speed", f"measured {day}; {AGAIN} does it anew, on a quiet machine")
    else:
        busy = f"measured {day}, while other programs took {rates.others:.0%} of the processors"
        yield Finding("speed", busy, f"{AGAIN}, when nothing else runs")


def module_finding(name: str, problem: str, info: EngineInfo) -> Finding:
    """A backend that was added to the engine, and whether it has a device."""
    if problem:
        text = f"{name} module: not in use: {problem}"
        again = f"{modules.INSTALL} {name}" if name in modules.failures() else "add what is missing"
        return Finding("engine", text, f"{again}, or localmoe engine remove {name}")
    devices = [gpu for gpu in info.gpus if gpu.backend == name]
    if not devices:
        text = f"{name} module: loaded, and it sees no device: no driver of a GPU is running"
        return Finding(
            "engine", text, f"install the GPU's driver, or localmoe engine remove {name}"
        )
    return Finding("engine", f"{name} module: in use")


def model_findings(here: Sequence[Path]) -> Iterator[Finding]:
    """Where models are looked for, and whether the bundled one is where it should be."""
    folders = f"{storage.models_dir()} and {catalog.hub_cache()}"
    yield Finding("models", f"{len(here)} found; looked for in {folders}")
    if catalog.models_package() not in (path.parent for path in here):
        text = f"the bundled model is missing from {catalog.models_package()}"
        yield Finding("models", text, REINSTALL)


def gpu_findings(machine: Machine) -> Iterator[Finding]:
    """Each GPU, and how to build an engine for one that lies idle. Pure."""
    if not machine.gpus:
        yield Finding("gpu", "none found: models run on the processor")
    useful = idle_gpus(machine)
    for gpu in machine.gpus:
        if gpu.in_engine:
            memory = f"{format_bytes(gpu.free)} free of {format_bytes(gpu.total)}"
            yield Finding("gpu", f"{gpu.name} ({gpu.device}): {memory}")
        else:
            idle = f"GPU idle: {gpu.name} is not in this engine build"
            yield Finding("gpu", idle, install_command(gpu) if gpu in useful else None)


def reinstall(version: str) -> str:
    """Build the engine anew; pip's cached wheel was built for whatever was there before."""
    return f"pip install --force-reinstall --no-cache-dir llama-cpp-python=={version}"


def engine_findings(
    info: EngineInfo | None, broken: LocalmoeError | None, version: str
) -> Iterator[Finding]:
    """The engine build. Pure."""
    if info is None:
        why = broken.message if broken else "unknown"
        yield Finding("engine", f"the engine does not start: {why}", reinstall(version))
        return
    backends = ", ".join(info.backends)
    yield Finding("engine", f"llama-cpp-python {version}, backends: {backends}")
    features = ", ".join(info.cpu_features) or "none"
    yield Finding("engine", f"processor features in use: {features}")
    for name, problem in info.modules.items():
        yield module_finding(name, problem, info)
    if info.rpc:
        yield Finding("engine", "other machines: RPC is in this engine build")
    else:
        # no ``fix``: an engine without RPC is complete for a single machine
        text = f"other machines: no RPC in this engine build ({INSTALL_RPC})"
        yield Finding("engine", text)
    if info.native_helper and info.helper_preloaded:
        yield Finding("engine", "native helper: present")
    elif info.native_helper:
        yield Finding(
            "engine",
            "native helper: present, but llama.cpp does not map files through it (loading reads "
            "the whole file, however large)",
            "unset LOCALMOE_STOCK_MMAP; without it: mount /proc, from which it is preloaded",
        )
    else:
        lost = "memory figures are totals, interrupts wait for a token"
        yield Finding(
            "engine",
            f"native helper: missing ({lost})",
            f"install a C++ compiler, then {REINSTALL}",
        )


def diagnosis_document(found: Diagnosis) -> dict[str, object]:
    """``doctor --json``."""
    rates = bandwidth.to_json(found.rates) if found.rates else None
    return {
        "version": __version__,
        "python": sys.version.split()[0],
        "machine": machine_document(found.machine) | {"rates": rates, "key": key_of(found.machine)},
        "engine": asdict(found.engine) if found.engine else None,
        "paths": {
            "models": str(storage.models_dir()),
            "cache": str(storage.cache_dir()),
            "hub_cache": str(catalog.hub_cache()),
            "bundled": str(catalog.models_package()),
        },
        "findings": [asdict(finding) for finding in found.findings],
    }
