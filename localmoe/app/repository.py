"""Models of the Hub, planned before a download: names → headers → the engine's dry run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from localmoe.app.listener import Listener
from localmoe.app.machine import find_machine
from localmoe.app.planned_model import Offer, PlannedModel, Skipped
from localmoe.app.plans import ModelPlanner
from localmoe.app.recommend import recommend
from localmoe.app.requests import PlanRequest
from localmoe.errors import EngineError, ModelFileError, StorageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.hub import headers, names
from localmoe.hub.cache import RepoCache
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.listing import Listing, list_files
from localmoe.hub.names import ModelFiles, Reference
from localmoe.hub.patience import ASKING
from localmoe.hub.peek import look
from localmoe.hub.ranges import Traffic
from localmoe.hub.refusals import RefusedFileError
from localmoe.hub.skeleton import Skeleton, skeletons
from localmoe.text import clean_line

MOST_OFFERS = 60  # models of one repository that are planned; publishers offer up to 40


class Repository:
    """The models of one repository, planned from their headers alone.

    ``chosen``: the model that the reference names, or the only one; None: there are several.
    Raises TransferError, UnknownModelError.
    """

    def __init__(self, reference: Reference, request: PlanRequest, listener: Listener) -> None:
        self.reference = reference
        patience = dataclasses.replace(ASKING, tell=listener.note)
        self.traffic = Traffic(patience)
        self.skipped: list[Skipped] = []
        self._request = request
        self._listener = listener
        self._disk_free: int | None = None  # bytes where a download goes; None: not asked yet
        # Not counted in ``traffic``, which is about the content of files.
        self.listing: Listing = list_files(reference, patience)
        contents = names.contents(self.listing.files, look(reference, self.listing, self.traffic))
        self.models = contents.models
        self.chosen = names.choose(self.models, reference, contents.others)
        self._unusable = contents.unusable

    def offers(self) -> list[ModelFiles]:
        """The chosen model, else all complete ones; the others go to ``skipped``."""
        if self.chosen is not None:
            return [self.chosen]
        for model in self.models:
            if model.missing:
                parts = f"{len(model.missing)} of its parts are not in the repository"
                self.skipped.append(Skipped(model.label, parts))
        for path, what in self._unusable.items():
            self.skipped.append(Skipped(clean_line(path), what))
        whole = [model for model in self.models if not model.missing]
        if len(whole) > MOST_OFFERS:
            more = f"and {len(whole) - MOST_OFFERS} more: name the one to look at"
            self.skipped.append(Skipped(whole[MOST_OFFERS].label, more))
        # Where all models lack parts, ``complete`` raises the error that says so.
        return whole[:MOST_OFFERS] or [names.complete(self.models[0])]

    def plan(
        self, machine: Machine, only: Sequence[ModelFiles] = (), *, hypothetical: bool = True
    ) -> list[PlannedModel]:
        """The plans of ``only`` these models, else of ``offers``, smallest first.

        Models that cannot be planned go to ``skipped``. ``hypothetical``: nothing will be loaded.
        Raises TransferError, and the error of the first model if none can be planned.
        """
        wanted = only or self.offers()
        found: list[PlannedModel] = []
        errors: list[ModelFileError | EngineError | RefusedFileError] = []
        planner = ModelPlanner(machine, self._request, self._listener, hypothetical=hypothetical)
        with self.skeletons(wanted) as models, planner:
            for files in wanted:
                try:
                    model = models[files]
                    if not isinstance(model, Model):
                        raise model
                    found.append(planner.plan(model, self.offer(files, machine)))
                except (ModelFileError, EngineError, RefusedFileError) as error:
                    errors.append(error)
                    self.skipped.append(Skipped(files.label, error.message))
        if errors and not found:
            raise errors[0]
        return found

    @contextlib.contextmanager
    def skeletons(self, wanted: Sequence[ModelFiles]) -> Iterator[dict[ModelFiles, Skeleton]]:
        """For each, a model of its headers that the engine can read, or why there is none."""
        cache = HeaderCache()
        found = headers.fetch(self.reference, self.listing.commit, wanted, self.traffic, cache)
        if self.traffic.transferred:
            cache.prune()
        with skeletons(wanted, found) as models:
            yield models

    def offer(self, files: ModelFiles, machine: Machine) -> Offer:
        """The files with the bytes to download and the free space where they would go."""
        cache = RepoCache.of(self.listing.repo)
        missing = cache.missing(self.listing.commit, files.files)
        if self._request.machine is not None:  # on another machine everything is missing
            return Offer(self.reference, self.listing, files, files.size, machine.disk_free or None)
        if self._disk_free is None:
            with contextlib.suppress(StorageError):
                self._disk_free = cache.free()
        return Offer(self.reference, self.listing, files, missing, self._disk_free)


def best_of(repository: Repository, request: PlanRequest) -> tuple[ModelFiles, str]:
    """The model that was asked for; else the recommended one, the usual one, the smallest; and why.

    Raises what ``Repository.plan`` raises.
    """
    if repository.chosen is not None:
        return (
            repository.chosen,
            "it was asked for" if repository.reference.wanted else "the only one",
        )
    found = repository.plan(find_machine(request, hypothetical=True))
    best, why = recommend(found, request.min_tps)
    if best is not None and best.offer is not None:
        return best.offer.files, why
    usual = names.default(repository.models)
    if usual is not None:
        return usual, why
    smallest = min(repository.offers(), key=lambda files: files.size)
    return smallest, f"{why}; {clean_line(smallest.label)} is the smallest"
