"""The machine that is planned for: this one, or one that a file or an option describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from localmoe.app.machine_file import read_machine
from localmoe.app.requests import PlanRequest
from localmoe.engine.devices import engine_info
from localmoe.engine.process import WorkerProcess
from localmoe.errors import UsageError
from localmoe.facts import hardware
from localmoe.facts.hardware import Gpu, Machine
from localmoe.planning.plan import Plan, Wishes
from localmoe.text import format_bytes
from localmoe.wording import option


def find_machine(
    request: PlanRequest, *, hypothetical: bool, worker: WorkerProcess | None = None
) -> Machine:
    """This machine, or the one of ``--machine``, with ``--ram`` and ``--vram`` applied.

    ``hypothetical``: nothing will be loaded, so the plan may use devices that the engine does not
    have. ``worker``: the process to ask; None: a new one. Raises UsageError for a ``--machine``
    that cannot be read or cannot be used here.
    """
    devices = engine_info(request.remotes, worker).gpus
    if request.machine is None:
        machine = hardware.detect(devices)
    elif hypothetical:
        machine = _as_seen_from_here(read_machine(request.machine), devices)
    else:
        raise UsageError(
            "--machine plans for another machine, and this would load the model on this one",
            hint="localmoe fit MODEL --machine FILE, localmoe plan MODEL --machine FILE",
        )
    return apply_limits(machine, request.wishes, hypothetical=hypothetical)


def apply_limits(machine: Machine, wishes: Wishes, *, hypothetical: bool) -> Machine:
    """The machine with the free memory that ``--ram`` and ``--vram`` name. Pure.

    Raises UsageError for GPU memory that a run could not use.
    """
    if wishes.ram is not None and hypothetical:
        total = max(machine.ram_total, wishes.ram)
        machine = dataclasses.replace(machine, ram_total=total, ram_available=wishes.ram)
    if not wishes.vram or any(gpu.device for gpu in machine.gpus):
        return machine
    if not hypothetical:
        raise UsageError(
            f"{option('vram')}: this engine build has no GPU to use",
            hint="`localmoe doctor` says why; `localmoe plan MODEL --vram 8` plans with one",
        )
    # --vram on a machine without a usable GPU asks what one of that size would change.
    seen = machine.gpus[0] if machine.gpus else None
    supposed = Gpu(
        name=seen.name if seen else f"GPU with {format_bytes(wishes.vram)}",
        total=wishes.vram,
        free=wishes.vram,
        in_engine=False,
        device="GPU0",
        backend=seen.backend if seen else None,
    )
    return dataclasses.replace(machine, gpus=(supposed,))


def with_gpu_build(machine: Machine, wishes: Wishes) -> Machine | None:
    """The machine with its idle GPUs usable, as after a rebuild of the engine; None: none is idle.

    None also where ``--vram`` states the GPU memory to plan with.
    """
    idle = [gpu for gpu in machine.gpus if gpu.device is None and not gpu.unified]
    if not idle or wishes.vram is not None:
        return None
    gpus = tuple(
        dataclasses.replace(gpu, device=f"GPU{i}") if gpu.device is None else gpu
        for i, gpu in enumerate(machine.gpus)
    )
    return dataclasses.replace(machine, gpus=gpus)


def without(machine: Machine, plan: Plan) -> Machine:
    """The machine with the memory that ``plan`` takes added to what is free. Pure."""
    ram = min(machine.ram_total, machine.ram_available + plan.tiers.ram)
    used = set(plan.settings.devices) if plan.tiers.gpu else ()
    gpus = tuple(
        dataclasses.replace(gpu, free=min(gpu.total, gpu.free + plan.tiers.gpu))
        if gpu.device in used
        else gpu
        for gpu in machine.gpus
    )
    return dataclasses.replace(machine, ram_available=ram, gpus=gpus)


def _as_seen_from_here(machine: Machine, devices: Sequence[Gpu]) -> Machine:
    """Another machine, its GPUs marked by whether this engine build can be asked about them.

    The workers that ``--remote`` names are added: that machine could use them as well.
    """
    here = {gpu.device for gpu in devices}
    gpus = tuple(dataclasses.replace(g, in_engine=g.device in here) for g in machine.gpus)
    workers = tuple(gpu for gpu in devices if gpu.remote is not None)
    return dataclasses.replace(machine, gpus=(*workers, *gpus))
