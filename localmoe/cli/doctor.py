"""``doctor``: what this machine and this engine build are, and what to type about each finding."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from localmoe import __version__
from localmoe.cli import documents, prepare, render
from localmoe.cli.arguments import Options, no_words
from localmoe.cli.output import Output
from localmoe.engine.devices import EngineInfo, engine_info
from localmoe.errors import LocalmoeError
from localmoe.facts import hardware
from localmoe.facts.hardware import Gpu, Machine
from localmoe.text import format_bytes

LITTLE_DISK = 20 << 30  # bytes; a 30B-A3B in Q4_K_M takes 18.6e9
BUILD_FLAGS = {
    "cuda": "-DGGML_CUDA=on",
    "vulkan": "-DGGML_VULKAN=on",
    "rocm": "-DGGML_HIP=on",
    "hip": "-DGGML_HIP=on",
    "metal": "-DGGML_METAL=on",
    "sycl": "-DGGML_SYCL=on",
}
REINSTALL_HELPER = "install a C++ compiler, then: pip install --force-reinstall --no-deps localmoe"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the diagnosis. ``fix`` is what to type, None when all is well."""

    area: str  # "processor", "memory", "gpu", "disk", "engine"
    text: str
    fix: str | None = None


def doctor_command(options: Options, output: Output) -> int:
    """Exit code 1 when the engine does not work, else 0."""
    no_words(options)
    info: EngineInfo | None = None
    broken: LocalmoeError | None = None
    try:
        info = engine_info()
    except LocalmoeError as error:
        broken = error
    machine = hardware.detect(info.gpus if info else ())
    machine = prepare.apply_limits(machine, options, imagined=False)
    found = [*machine_findings(machine), *gpu_findings(machine, engine_version(info))]
    found += engine_findings(info, broken)
    if output.as_json:
        output.json(
            {
                "version": __version__,
                "python": sys.version.split()[0],
                "machine": documents.machine_document(machine),
                "engine": asdict(info) if info else None,
                "findings": [asdict(finding) for finding in found],
            }
        )
    else:
        output.print(render.doctor_screen([(f.area, f.text, f.fix) for f in found]))
    return 0 if info else 1


def engine_version(info: EngineInfo | None) -> str:
    """Version of llama-cpp-python, from the engine or from the installed package."""
    if info is not None:
        return info.version
    from importlib import metadata

    try:
        return metadata.version("llama-cpp-python")
    except metadata.PackageNotFoundError:
        return "0.3.36"


def machine_findings(machine: Machine) -> Iterator[Finding]:
    """Processor, memory and disk. Pure."""
    cores = f"{machine.cores_physical} cores, {machine.cores_logical} threads usable"
    yield Finding("processor", f"{machine.cpu} ({cores}), {machine.os}")
    ram = f"{format_bytes(machine.ram_available)} free of {format_bytes(machine.ram_total)}"
    if machine.ram_limited_by:
        fix = "raise the memory limit of this container or session to use more"
        yield Finding("memory", f"{ram}, limited by {machine.ram_limited_by}", fix)
    else:
        yield Finding("memory", ram)
    little = (
        "free disk space: most MoE models take more" if machine.disk_free < LITTLE_DISK else None
    )
    yield Finding("disk", f"{format_bytes(machine.disk_free)} free where models are kept", little)


def gpu_findings(machine: Machine, version: str) -> Iterator[Finding]:
    """Each GPU, and how to build an engine for one that lies idle. Pure."""
    if not machine.gpus:
        yield Finding("gpu", "none found: models run on the processor")
    for gpu in machine.gpus:
        if gpu.in_engine:
            memory = f"{format_bytes(gpu.free)} free of {format_bytes(gpu.total)}"
            yield Finding("gpu", f"{gpu.name} ({gpu.device}): {memory}")
        else:
            idle = f"GPU idle: {gpu.name} is not in this engine build"
            yield Finding("gpu", idle, rebuild_command(gpu, version))


def rebuild_command(gpu: Gpu, version: str) -> str:
    """What to type for an engine that has this GPU's backend."""
    flag = BUILD_FLAGS.get(gpu.backend or "", BUILD_FLAGS["vulkan"])
    return (
        f"CMAKE_ARGS={flag} pip install --force-reinstall --no-cache-dir "
        f"llama-cpp-python=={version}"
    )


def engine_findings(info: EngineInfo | None, broken: LocalmoeError | None) -> Iterator[Finding]:
    """The engine build. Pure."""
    if info is None:
        reinstall = "pip install --force-reinstall --no-cache-dir llama-cpp-python==0.3.36"
        why = broken.message if broken else "unknown"
        yield Finding("engine", f"the engine does not start: {why}", reinstall)
        return
    yield Finding("engine", f"llama-cpp-python {info.version}, backends {', '.join(info.backends)}")
    features = ", ".join(info.cpu_features) or "none"
    yield Finding("engine", f"processor features in use: {features}")
    if info.native_helper:
        yield Finding("engine", "native helper: present")
    else:
        lost = "memory figures are totals, interrupts wait for a token"
        yield Finding("engine", f"native helper: missing ({lost})", REINSTALL_HELPER)
