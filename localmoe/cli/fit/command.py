"""``fit`` and ``plan``: will it run here, and laid out how; before any download."""

from __future__ import annotations

import dataclasses
import time
from itertools import groupby

from localmoe.cli import documents, prepare, render, speeds
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.fit import screens
from localmoe.cli.fit.plan_screen import plan_screen
from localmoe.cli.fitted import (
    Fitted,
    Guessed,
    Skipped,
    best_first,
    guess_for,
    rank,
    recommend,
)
from localmoe.cli.fitting import Planner, Search
from localmoe.cli.idle_gpus import tell_of_idle_gpus
from localmoe.cli.output import Output
from localmoe.errors import (
    DoesNotFitError,
    EngineError,
    ModelFileError,
    TransferError,
    UnknownModelError,
)
from localmoe.facts import catalog
from localmoe.facts.hardware import Machine
from localmoe.facts.model import read_model
from localmoe.facts.other_programs import other_files
from localmoe.hub import names
from localmoe.hub.names import Reference
from localmoe.hub.survey import offline, survey
from localmoe.planning.guess import guess
from localmoe.planning.plan import Plan

DOES_NOT_FIT = DoesNotFitError.exit_code


def fit_command(options: Options, output: Output) -> int:
    """Exit code 0 when the model fits (of several, when one does), else 3."""
    started = time.monotonic()
    name = only_model(options)
    if name is None:
        return _fit_all(options, output, started)
    reference = on_the_hub(name)
    if reference is not None:
        try:
            return _fit_offers(Search(reference, options, output), options, output, started)
        except TransferError:
            if not _is_here(name):
                raise
            output.note("the Hub cannot be asked: only what is on this machine")
    model = prepare.open_model(name, output)
    with Planner(prepare.find_machine(options, imagined=True), options, output) as planner:
        found = planner.fit(model)
        good = _good(found, options)
        best = found if good else None
        _answer([found], [], best, planner.machine, options, output, started)
    return 0 if good else DOES_NOT_FIT


def plan_command(options: Options, output: Output) -> int:
    """The placement of one model; exit code as ``fit``."""
    name = only_model(options, required=True)
    assert name is not None
    machine = prepare.find_machine(options, imagined=True)
    with (
        prepare.header_of(name, options, output) as header,
        Planner(machine, options, output) as planner,
    ):
        model, paths = header
        found = planner.fit(model)
    plan, model = found.plan, dataclasses.replace(model, paths=paths)
    if output.as_json:
        output.json(documents.plan_document(model, machine, plan, found.forecast))
    else:
        output.print(plan_screen(model, plan, found.forecast))
        _note_devices(machine, plan, output)
    return 0 if plan.verdict.fits else DOES_NOT_FIT


def on_the_hub(name: str) -> Reference | None:
    """The repository to ask about ``name``; None when its file is here, or nothing else can be.

    A quantization that is here is answered from its file. Without one the repository is asked,
    for it has more.
    """
    try:
        reference = names.parse(name)
    except UnknownModelError:  # the name of a file of ours, or nothing; `resolve` will tell
        return None
    if reference is not None and reference.wanted and _is_here(name):
        return None
    return reference


def _is_here(name: str) -> bool:
    try:
        return catalog.is_whole(catalog.resolve(name))
    except (UnknownModelError, ModelFileError):
        return False


def _fit_offers(search: Search, options: Options, output: Output, started: float) -> int:
    """One model of a repository in detail, or all of them side by side."""
    machine = prepare.find_machine(options, imagined=True)
    found = search.fit(machine)
    alone = search.chosen is not None
    best, why = recommend(found, options.min_tps)
    if alone:
        best = found[0] if _good(found[0], options) else None
    _answer(found, search.skipped, best, machine, options, output, started, search=search, why=why)
    return 0 if any(_good(entry, options) for entry in found) else DOES_NOT_FIT


def _good(found: Fitted, options: Options) -> bool:
    """Whether it runs here, and fast enough for who asks."""
    return found.fits and found.reaches(options.min_tps)


def _answer(
    found: list[Fitted],
    skipped: list[Skipped],
    best: Fitted | None,
    machine: Machine,
    options: Options,
    output: Output,
    started: float,
    *,
    search: Search | None = None,
    why: str = "",
) -> None:
    seconds = time.monotonic() - started
    traffic = (search.traffic.transferred, search.traffic.requests) if search else (0, 0)
    if output.as_json:
        name = search.reference.repo if search and not search.chosen else found[0].model.name
        document = documents.fit_document(name, machine, found, skipped, best, why)
        output.json(document | documents.cost(*traffic, seconds))
        return
    for entry in skipped:
        output.warn(f"{entry.name}: {entry.reason}")
    if search is None or search.chosen is not None:
        (only,) = found
        if output.quiet:
            output.print(render.verdict_text(only.plan.verdict))
            return
        output.print(screens.detail(only))
        _note_devices(machine, only.plan, output)
        if only.fits and not only.reaches(options.min_tps):
            output.note(speeds.too_slow(only.forecast, options.min_tps or 0.0))
    else:
        output.print(screens.quantizations(search.reference.repo, best_first(found), best, why))
        tell_of_idle_gpus(machine, output)
    if search is not None and search.traffic.requests:
        output.note(screens.cost(*traffic, seconds))


def _note_devices(machine: Machine, plan: Plan, output: Output) -> None:
    """What the figures leave out: idle GPUs, devices that could not be asked."""
    tell_of_idle_gpus(machine, output)
    used = set(plan.settings.devices)
    for gpu in machine.gpus:
        if not gpu.in_engine and gpu.device in used:
            output.note(f"{gpu.name} is not in this engine build: its figures are estimated")


def _fit_all(options: Options, output: Output, started: float) -> int:
    """A verdict for every model found here, and a guess for those of the catalog."""
    machine = prepare.find_machine(options, imagined=True)
    found: list[Fitted] = []
    skipped: list[Skipped] = []
    here = [(path, None) for path in catalog.local_models()]
    others = [(file.path, file.name) for file in other_files()]
    with Planner(machine, options, output) as planner:
        for path, name in (*here, *others):
            try:
                model = read_model(path)
                model = dataclasses.replace(model, name=name or model.name)
                found.append(planner.fit(model))
            except (ModelFileError, EngineError) as error:
                skipped.append(Skipped(name or str(path), error.message))
    fitting = [f for f in found if _good(f, options)]
    best = max(fitting, key=lambda f: (f.resident, not f.slow, f.model.size), default=None)
    guesses, requests, unknown = _guess_catalog(machine, options, output)
    if output.as_json:
        document = documents.fit_document(None, machine, found, skipped, best, "")
        document["skipped"] = [dataclasses.asdict(entry) for entry in (*skipped, *unknown)]
        document["catalog"] = [documents.guessed(guess) for guess in guesses]
        output.json(document | documents.cost(0, requests, time.monotonic() - started))
    else:
        for entry in skipped:
            output.warn(f"{entry.name}: {entry.reason}")
        output.print(screens.local(best_first(found)))
        if guesses:
            output.print("", screens.guesses(guesses))
        for reason, entries in groupby(unknown, key=lambda entry: entry.reason):
            names = ", ".join(entry.name for entry in entries)
            output.note(f"{names}: {reason}")
        tell_of_idle_gpus(machine, output)
    return 0 if best is not None else DOES_NOT_FIT


def _guess_catalog(
    machine: Machine, options: Options, output: Output
) -> tuple[list[Guessed], int, list[Skipped]]:
    """The catalog's families, best first; requests; families nobody answered for."""
    if offline():
        output.note("offline (HF_HUB_OFFLINE): the catalog is left out")
        return [], 0, []
    try:
        surveyed = survey(catalog.catalog()[0])
    except TransferError as error:
        output.note(f"{error.message}: the catalog is left out")
        return [], 0, []
    wishes = prepare.wishes(options)
    unknown = [Skipped(s.entry.alias, s.problem) for s in surveyed if s.problem]
    found = [
        guess_for(s.entry, s.models, lambda size: guess(size, machine, wishes)) for s in surveyed
    ]
    return rank([g for g in found if g is not None]), len(surveyed), unknown
