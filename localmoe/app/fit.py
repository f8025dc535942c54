"""Will it run here? One model, a repository before any download, or everything that is here."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from dataclasses import dataclass

from localmoe.app.find import model_here, on_the_hub
from localmoe.app.listener import Listener
from localmoe.app.machine import find_machine
from localmoe.app.planned_model import CatalogGuess, PlannedModel, Skipped
from localmoe.app.plans import ModelPlanner
from localmoe.app.recommend import guess_for, rank, recommend
from localmoe.app.repository import Repository
from localmoe.app.requests import PlanRequest
from localmoe.engine.process import WorkerProcess
from localmoe.errors import EngineError, ModelFileError, TransferError
from localmoe.facts import catalog
from localmoe.facts.hardware import Machine
from localmoe.facts.model import read_model
from localmoe.hub.names import Reference
from localmoe.hub.survey import offline, survey
from localmoe.planning.guess import guess
from localmoe.planning.plan import Wishes


@dataclass(frozen=True, slots=True)
class Fit:
    """Which models run on a machine, and which of them to take."""

    name: str | None  # of a model or a repository; None: everything that is here
    machine: Machine
    found: tuple[PlannedModel, ...]
    best: PlannedModel | None  # what to take; None: nothing runs, or nothing fast enough
    why: str = ""  # the reason for ``best``, or for taking none
    skipped: tuple[Skipped, ...] = ()  # models that could not be planned
    repository: str | None = None  # "user/name", if several of its quantizations were planned
    transferred: int = 0  # bytes of file content that were read over the network
    requests: int = 0  # over the network
    guesses: tuple[CatalogGuess, ...] = ()  # of the catalog, best first
    unknown: tuple[Skipped, ...] = ()  # families of the catalog that the Hub did not answer for

    @property
    def good(self) -> bool:
        """Whether something runs here, and fast enough."""
        return self.best is not None

    @property
    def runs(self) -> bool:
        """Whether something runs here at all."""
        return any(found.runs for found in self.found)


def fit(name: str, request: PlanRequest, listener: Listener) -> Fit:
    """What the model or the repository of that name would do on this machine.

    Raises UnknownModelError, ModelFileError, EngineError, TransferError.
    """
    reference = on_the_hub(name)
    if reference is not None:
        try:
            return _fit_repository(reference, request, listener)
        except TransferError:
            if not catalog.is_here(name):
                raise
            listener.note("the Hub cannot be asked: only what is on this machine")
    model = model_here(name, listener)
    with closing(WorkerProcess()) as worker:
        machine = find_machine(request, hypothetical=True, worker=worker)
        with ModelPlanner(machine, request, listener, worker=worker) as planner:
            found = planner.plan(model)
    return Fit(model.name, machine, (found,), _best((found,), request))


def fit_everything(request: PlanRequest, listener: Listener) -> Fit:
    """A verdict for every model found here, and a guess for those of the catalog."""
    machine = find_machine(request, hypothetical=True)
    found: list[PlannedModel] = []
    skipped: list[Skipped] = []
    with ModelPlanner(machine, request, listener) as planner:
        for here in catalog.installed_models():
            try:
                model = dataclasses.replace(read_model(here.path), name=here.name)
                found.append(planner.plan(model))
            except (ModelFileError, EngineError) as error:
                skipped.append(Skipped(here.name, error.message))
    guesses, requests, unknown = _guess_catalog(machine, request.wishes, listener)
    return Fit(
        None,
        machine,
        tuple(found),
        _best(tuple(found), request),
        skipped=tuple(skipped),
        requests=requests,
        guesses=guesses,
        unknown=unknown,
    )


def _fit_repository(reference: Reference, request: PlanRequest, listener: Listener) -> Fit:
    """One model of a repository in detail, or all of them side by side."""
    repository = Repository(reference, request, listener)
    machine = find_machine(request, hypothetical=True)
    found = tuple(repository.plan(machine))
    best, why = recommend(found, request.min_tps)
    alone = repository.chosen is not None
    return Fit(
        found[0].model.name if alone else reference.repo,
        machine,
        found,
        _best(found, request) if alone else best,
        why,
        tuple(repository.skipped),
        None if alone else reference.repo,
        repository.traffic.transferred,
        repository.traffic.requests,
    )


def _best(found: tuple[PlannedModel, ...], request: PlanRequest) -> PlannedModel | None:
    """Of those that run and reach ``request.min_tps``: the largest that needs no disk."""
    good = (entry for entry in found if entry.fits and entry.reaches(request.min_tps))
    return max(good, key=lambda f: (f.resident, not f.slow, f.model.size), default=None)


def _guess_catalog(
    machine: Machine, wishes: Wishes, listener: Listener
) -> tuple[tuple[CatalogGuess, ...], int, tuple[Skipped, ...]]:
    """Guesses for the catalog's families, best first; number of requests; families not answered."""
    if offline():
        listener.note("offline (HF_HUB_OFFLINE): the catalog is left out")
        return (), 0, ()
    try:
        surveyed = survey(catalog.catalog()[0])
    except TransferError as error:
        listener.note(f"{error.message}: the catalog is left out")
        return (), 0, ()
    unknown = tuple(Skipped(s.entry.alias, s.problem) for s in surveyed if s.problem)
    found = [
        guess_for(s.entry, s.models, lambda size: guess(size, machine, wishes)) for s in surveyed
    ]
    return tuple(rank([g for g in found if g is not None])), len(surveyed), unknown
