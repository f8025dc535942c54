"""``fit`` and ``plan``: will it run here, and laid out how."""

from __future__ import annotations

import time

from localmoe.cli import documents, prepare, render
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.output import Output
from localmoe.errors import DoesNotFitError, LocalmoeError
from localmoe.facts import catalog
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model, read_model
from localmoe.planning.plan import Plan

DOES_NOT_FIT = DoesNotFitError.exit_code


def fit_command(options: Options, output: Output) -> int:
    """Exit code 0 when the model fits (without MODEL: when one does), else 3."""
    started = time.monotonic()
    name = only_model(options)
    if name is None:
        return _fit_all(options, output, started)
    model = prepare.open_model(name, output)
    machine = prepare.find_machine(options, imagined=True)
    plan = prepare.plan_for(model, machine, options, imagined=True)
    if output.as_json:
        output.json(documents.fit_document(model, machine, plan, time.monotonic() - started))
    elif output.quiet:
        output.print(render.verdict_text(plan.verdict))
    else:
        output.print(render.fit_screen(model, plan))
        _note_devices(machine, plan, output)
    return 0 if plan.verdict.fits else DOES_NOT_FIT


def plan_command(options: Options, output: Output) -> int:
    """The placement of one model; exit code as ``fit``."""
    model = prepare.open_model(only_model(options, required=True), output)
    machine = prepare.find_machine(options, imagined=True)
    plan = prepare.plan_for(model, machine, options, imagined=True)
    if output.as_json:
        output.json(documents.plan_document(model, machine, plan))
    else:
        output.print(render.plan_screen(model, plan))
        _note_devices(machine, plan, output)
    return 0 if plan.verdict.fits else DOES_NOT_FIT


def _note_devices(machine: Machine, plan: Plan, output: Output) -> None:
    """What the figures leave out: idle GPUs, devices that could not be asked."""
    used = set(plan.settings.devices)
    for gpu in machine.gpus:
        if not gpu.in_engine and gpu.device is None:
            output.note(f"GPU idle: {gpu.name} is not in this engine build; see `localmoe doctor`")
        elif not gpu.in_engine and gpu.device in used:
            output.note(f"{gpu.name} is not in this engine build: its figures are estimated")


def _fit_all(options: Options, output: Output, started: float) -> int:
    """A verdict for every model found here."""
    machine = prepare.find_machine(options, imagined=True)
    planned: list[tuple[Model, Plan]] = []
    for path in catalog.local_models():
        try:
            model = read_model(path)
            planned.append((model, prepare.plan_for(model, machine, options, imagined=True)))
        except LocalmoeError as error:
            output.warn(f"{path}: {error.message}")
    fitting = [
        (plan.tiers.disk == 0, model.size, model) for model, plan in planned if plan.verdict.fits
    ]
    best = max(fitting, key=lambda entry: entry[:2])[2] if fitting else None  # no disk, then size
    if output.as_json:
        seconds = time.monotonic() - started
        output.json(documents.fit_all_document(machine, planned, best, seconds))
    else:
        output.print(render.fit_table(planned))
    return 0 if fitting else DOES_NOT_FIT
