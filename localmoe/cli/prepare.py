"""From options to facts to a plan: the thin shell around header, hardware, engine and planner."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from localmoe import ledger
from localmoe.cli.arguments import Options
from localmoe.cli.documents import machine_from_document
from localmoe.cli.output import Output
from localmoe.engine.devices import engine_info
from localmoe.engine.oracle import Oracle
from localmoe.errors import UsageError
from localmoe.facts import catalog, hardware
from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Model, read_model
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes

BUNDLED = catalog.BUNDLED
MACHINE_FILE_LIMIT = 1 << 20  # bytes; a real one has about 2 KB


def open_model(name: str | None, output: Output) -> Model:
    """The model of that name; without one the bundled model, announced in one line.

    Raises UnknownModelError (with the nearest names) or ModelFileError.
    """
    if name is None:
        output.note(
            f"no MODEL given: using {BUNDLED}, the small bundled model "
            "(`localmoe list` shows what else is here)"
        )
        name = BUNDLED
    path = catalog.resolve(name)
    if name != BUNDLED and not name.endswith(path.name):
        output.note(f"{name}: using {path.name}")
    return read_model(path)


def find_machine(options: Options, *, imagined: bool) -> Machine:
    """This machine, or the one of ``--machine``, with ``--ram`` and ``--vram`` applied.

    ``imagined``: nothing will be loaded, so devices that the engine does not have may be planned
    for. Raises UsageError for a ``--machine`` that cannot be read or cannot be used here.
    """
    devices = engine_info().gpus
    if options.machine is None:
        machine = hardware.detect(devices)
    elif imagined:
        machine = _as_seen_from_here(read_machine(Path(options.machine)), devices)
    else:
        raise UsageError(
            f"--machine plans for another machine; {options.command} loads the model on this one",
            hint="localmoe fit MODEL --machine FILE, localmoe plan MODEL --machine FILE",
        )
    return apply_limits(machine, options, imagined=imagined)


def apply_limits(machine: Machine, options: Options, *, imagined: bool) -> Machine:
    """The machine with the free memory that ``--ram`` and ``--vram`` name. Pure.

    Raises UsageError for GPU memory that a run could not use.
    """
    if options.ram is not None and imagined:
        total = max(machine.ram_total, options.ram)
        machine = dataclasses.replace(machine, ram_total=total, ram_available=options.ram)
    if not options.vram or any(gpu.device for gpu in machine.gpus):
        return machine
    if not imagined:
        raise UsageError(
            "--vram: this engine build has no GPU to use",
            hint="`localmoe doctor` says why; `localmoe plan MODEL --vram 8` supposes one",
        )
    # --vram on a machine without a usable GPU asks what one of that size would change.
    seen = machine.gpus[0] if machine.gpus else None
    supposed = Gpu(
        name=seen.name if seen else "supposed GPU",
        total=options.vram,
        free=options.vram,
        in_engine=False,
        device="GPU0",
        backend=seen.backend if seen else None,
    )
    return dataclasses.replace(machine, gpus=(supposed,))


def wishes(options: Options) -> Wishes:
    """The part of the options that the planner decides by. Pure."""
    return Wishes(
        context=options.context,
        type_k=options.type_k,
        type_v=options.type_v,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        n_cpu_moe=options.n_cpu_moe,
        ram=options.ram,
        vram=options.vram,
        batch=options.batch,
    )


def plan_for(model: Model, machine: Machine, options: Options, *, imagined: bool) -> Plan:
    """Ask the engine and decide. Raises ModelFileError, EngineError or EngineCrashError.

    What other localmoe processes have promised themselves is not planned with, unless ``imagined``
    and the free memory was stated.
    """
    promised = 0
    if options.machine is None and not (imagined and options.ram is not None):
        promised = sum(promise.outstanding_ram for promise in ledger.promises())
    with Oracle(model) as measure:
        return make_plan(model, machine, wishes(options), measure, promised)


def read_machine(path: Path) -> Machine:
    """The machine that ``doctor --json`` described. Raises UsageError."""
    hint = "write one with `localmoe doctor --json > machine.json` on that machine"
    try:
        with path.open("rb") as file:
            text = file.read(MACHINE_FILE_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"--machine {path}: {error.strerror}", hint=hint) from error
    if len(text) > MACHINE_FILE_LIMIT:
        raise UsageError(f"--machine {path}: larger than any machine document", hint=hint)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--machine {path} is not JSON", hint=hint) from error
    return machine_from_document(document, f"--machine {path}")


def _as_seen_from_here(machine: Machine, devices: Sequence[Gpu]) -> Machine:
    """Another machine's GPUs, marked by whether this engine build could be asked about them."""
    here = {gpu.device for gpu in devices}
    gpus = tuple(dataclasses.replace(g, in_engine=g.device in here) for g in machine.gpus)
    return dataclasses.replace(machine, gpus=gpus)
