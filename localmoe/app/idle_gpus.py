"""GPUs that lie idle because the engine was not built for them: one line, with what to type."""

from __future__ import annotations

from localmoe.app.listener import Listener
from localmoe.facts.hardware import Gpu, Machine

_BUILDS = {"cuda": "cuda", "rocm": "rocm", "hip": "rocm", "metal": "metal"}


def idle_gpus(machine: Machine) -> list[Gpu]:
    """GPUs of this machine that a rebuilt engine could use. Pure.

    A GPU without memory of its own is left out where there is another one: llama.cpp would not
    use it either.
    """
    idle = [gpu for gpu in machine.gpus if not gpu.in_engine and gpu.device is None]
    others = any(not gpu.unified and gpu.remote is None for gpu in machine.gpus)
    return [gpu for gpu in idle if not (gpu.unified and others)]


def tell_of_idle_gpus(machine: Machine, listener: Listener) -> None:
    """A line for each GPU that a rebuilt engine could use."""
    for gpu in idle_gpus(machine):
        listener.note(idle_line(gpu))


def idle_line(gpu: Gpu) -> str:
    """``GPU idle: RTX 4060 is not in this engine build. Fix: localmoe engine install cuda``."""
    return f"GPU idle: {gpu.name} is not in this engine build. Fix: {install_command(gpu)}"


def install_command(gpu: Gpu) -> str:
    """What to type for an engine that has this GPU's backend."""
    return f"localmoe engine install {_BUILDS.get(gpu.backend or '', 'vulkan')}"
