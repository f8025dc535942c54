"""``fit`` and ``plan``: will it run here, and laid out how; before any download."""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from itertools import groupby

from localmoe.app import documents, speeds
from localmoe.app.find import header_of
from localmoe.app.fit import Fit, fit, fit_everything
from localmoe.app.idle_gpus import tell_of_idle_gpus
from localmoe.app.machine import find_machine
from localmoe.app.plans import ModelPlanner
from localmoe.app.recommend import best_first
from localmoe.cli import render
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.fit import screens
from localmoe.cli.fit.plan_screen import plan_screen
from localmoe.cli.output import Output
from localmoe.cli.requests import plan_request
from localmoe.engine.process import WorkerProcess
from localmoe.errors import DoesNotFitError
from localmoe.facts.hardware import Machine
from localmoe.planning.plan import Plan
from localmoe.text import format_bytes

DOES_NOT_FIT = DoesNotFitError.exit_code


def fit_command(options: Options, output: Output) -> int:
    """Exit code 0 when the model runs, and is as fast as was asked for (of several, when one is and
    does), else 3.
    """
    started = time.monotonic()
    name, request = only_model(options), plan_request(options)
    answer = fit(name, request, output) if name else fit_everything(request, output)
    seconds = time.monotonic() - started
    good = answer.good or (options.min_tps is None and answer.runs)
    if output.as_json:
        output.json(documents.fit_document(answer, seconds))
        return 0 if good else DOES_NOT_FIT
    for entry in answer.skipped:
        output.warn(f"{entry.name}: {entry.reason}")
    if answer.name is None:
        _show_everything(answer, output)
    elif answer.repository is not None:
        found = best_first(answer.found)
        output.print(screens.quantizations(answer.repository, found, answer.best, answer.why))
        tell_of_idle_gpus(answer.machine, output)
    else:
        _show_one(answer, options.min_tps, output)
    if answer.name is not None and answer.requests:
        output.note(screens.cost(answer.transferred, answer.requests, seconds))
    return 0 if good else DOES_NOT_FIT


def plan_command(options: Options, output: Output) -> int:
    """The placement of one model; exit code as ``fit``."""
    name, request = only_model(options, required=True), plan_request(options)
    assert name is not None
    with closing(WorkerProcess()) as worker:
        machine = find_machine(request, hypothetical=True, worker=worker)
        with (
            header_of(name, request, output) as (model, paths),
            ModelPlanner(machine, request, output, worker=worker) as planner,
        ):
            found = planner.plan(model)
    plan, model = found.plan, dataclasses.replace(model, paths=paths)
    if output.as_json:
        output.json(documents.plan_document(model, machine, plan, found.forecast))
    else:
        output.print(plan_screen(model, plan, found.forecast))
        note_hardware(machine, plan, output)
    return 0 if plan.verdict.runs else DOES_NOT_FIT


def _show_one(answer: Fit, min_tps: float | None, output: Output) -> None:
    (only,) = answer.found
    if output.quiet:
        output.print(render.verdict_text(only.plan.verdict, only.plan.settings.devices))
        return
    output.print(screens.detail(only))
    note_hardware(answer.machine, only.plan, output)
    if only.fits and not only.reaches(min_tps):
        output.note(speeds.too_slow(only.forecast, min_tps or 0.0))


def _show_everything(answer: Fit, output: Output) -> None:
    output.print(screens.local(best_first(answer.found)))
    if answer.guesses:
        output.print("", screens.guesses(answer.guesses, answer.machine))
    for reason, entries in groupby(answer.unknown, key=lambda entry: entry.reason):
        names = ", ".join(entry.name for entry in entries)
        output.note(f"{names}: {reason}")
    tell_of_idle_gpus(answer.machine, output)


def note_hardware(machine: Machine, plan: Plan, output: Output) -> None:
    """Notes about GPUs that lie idle, those whose figures are estimates, and swap."""
    tell_of_idle_gpus(machine, output)
    if machine.swap_total and (plan.missing_ram or not plan.verdict.fits):
        swap = format_bytes(machine.swap_total)
        output.note(
            f"{swap} of swap do not count: reading the model's file is faster than swapping"
        )
    used = set(plan.settings.devices)
    for gpu in machine.gpus:
        if not gpu.in_engine and gpu.device in used:
            output.note(f"{gpu.name} is not in this engine build: its figures are estimated")
