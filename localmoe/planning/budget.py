"""How much memory a plan may use on a machine."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Model
from localmoe.planning.plan import Wishes

MIB = 1024 * 1024
GIB = 1024 * MIB

PROCESS_BYTES = 160 * MIB
"""Host memory of the program itself: front end, worker and engine code, without the model."""


CHECKPOINT_BYTES = 256 * MIB
"""Host memory for checkpoints of what a model cannot roll back: recurrent state, window caches."""

_NEEDS_CHECKPOINTS = (".attention.sliding_window", ".ssm.", ".shortconv.", ".wkv", ".kda.")


def checkpoint_bytes(model: Model) -> int:
    """What to set aside for the checkpoints of this model; 0 where plain attention is all."""
    return (
        CHECKPOINT_BYTES
        if any(part in key for key in model.metadata for part in _NEEDS_CHECKPOINTS)
        else 0
    )


PROMPT_CACHE_MOST = 4 * GIB


def prompt_cache_bytes(machine: Machine, wishes: Wishes) -> int:
    """RAM for what was read in other conversations: as wished, or an eighth of what is free."""
    if wishes.prompt_cache is not None:
        return wishes.prompt_cache
    free = machine.ram_available if wishes.ram is None else min(wishes.ram, machine.ram_available)
    return min(free // 8, PROMPT_CACHE_MOST)


def ram_reserve(machine: Machine) -> int:
    """RAM left to everything else: a sixteenth of the machine, at least 0.5 and at most 2 GiB.

    In a memory group (a container) nothing else runs but what its figures count already. What the
    kernel needs in it, and what comes and goes while a token is computed, is a 32nd, at least
    64 MiB.
    """
    if machine.ram_limited_by is not None:
        return min(max(machine.ram_total // 32, 64 * MIB), 2 * GIB)
    return min(max(machine.ram_total // 16, GIB // 2), 2 * GIB)


def vram_margin(gpu: Gpu) -> int:
    """GPU memory left free: a 32nd of the device, at least 256 MiB and at most 1 GiB."""
    return min(max(gpu.total // 32, 256 * MIB), GIB)


def usable_gpus(machine: Machine) -> list[Gpu]:
    """The GPUs to plan with, workers' devices first: the last device has the output matrix.

    Integrated ones only where no other is in this machine, as in llama.cpp's own choice.
    """
    known = [gpu for gpu in machine.gpus if gpu.device is not None]
    remote = [gpu for gpu in known if gpu.remote is not None]
    here = [gpu for gpu in known if gpu.remote is None]
    return remote + ([gpu for gpu in here if not gpu.unified] or here)


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes that may be used."""

    ram: int
    reserve: int
    gpus: dict[str, int]  # per device, in engine order
    unified: frozenset[str]  # devices that live in RAM: their bytes count there too

    @property
    def vram(self) -> int:
        return sum(self.gpus.values())


def budget_of(model: Model, machine: Machine, wishes: Wishes, promised_ram: int = 0) -> Budget:
    """What the planner may use. ``--ram`` and ``--vram`` are used to the full, as far as the
    machine has that much; without them a reserve is left free.

    ``promised_ram``: bytes that other localmoe processes will still take.
    """
    own = PROCESS_BYTES + checkpoint_bytes(model) + prompt_cache_bytes(machine, wishes)
    return budget_beside(own, machine, wishes, promised_ram)


def budget_beside(own: int, machine: Machine, wishes: Wishes, promised_ram: int = 0) -> Budget:
    """``budget_of`` where ``own`` bytes of RAM are known to go to the program itself."""
    if wishes.ram is not None:
        ram, reserve = min(wishes.ram, machine.ram_available - promised_ram) - own, 0
    else:
        reserve = ram_reserve(machine)
        ram = machine.ram_available - promised_ram - reserve - own
    gpus: dict[str, int] = {}
    left = wishes.vram
    for gpu in usable_gpus(machine):
        assert gpu.device is not None
        free = gpu.free - vram_margin(gpu)
        if left is not None:
            free = min(left, gpu.free if gpu.in_engine else gpu.total)
            left -= free
        if free > 0:
            gpus[gpu.device] = free
    unified = frozenset(g.device for g in machine.gpus if g.unified and g.device in gpus)
    return Budget(max(0, ram), reserve, gpus, unified)
