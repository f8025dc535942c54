"""Models of the Hub, planned for before a download: names → headers → the engine's dry run."""

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
from localmoe.hub.client import ASKING, Listing, list_files
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.names import ModelFiles, Reference
from localmoe.hub.peek import look
from localmoe.hub.ranges import Traffic
from localmoe.hub.refusals import RefusedFileError
from localmoe.hub.skeleton import Skeleton, skeletons
from localmoe.text import clean_line

MOST_OFFERS = 60  # models of one repository that are looked at; publishers offer up to 40


class Repository:
    """The models of one repository, and what is known of them without a download."""

    def __init__(self, reference: Reference, request: PlanRequest, listener: Listener) -> None:
        self.reference = reference
        patience = dataclasses.replace(ASKING, tell=listener.note)
        self.traffic = Traffic(patience)
        self.skipped: list[Skipped] = []
        self._request = request
        self._listener = listener
        self._disk_free: int | None = None  # bytes where a download goes, once it was looked at
        # The listing is one request, or more of an old mirror; its bytes are no file content.
        self.listing: Listing = list_files(reference, patience)
        contents = names.contents(self.listing.files, look(reference, self.listing, self.traffic))
        self.models = contents.models
        self.chosen = names.choose(self.models, reference, contents.others)

    def offers(self) -> list[ModelFiles]:
        """What was asked for; all complete models when nothing was said."""
        if self.chosen is not None:
            return [self.chosen]
        for model in self.models:
            if model.missing:
                parts = f"{len(model.missing)} of its parts are not in the repository"
                self.skipped.append(Skipped(model.label, parts))
        whole = [model for model in self.models if not model.missing]
        if len(whole) > MOST_OFFERS:
            more = f"and {len(whole) - MOST_OFFERS} more: name the one to look at"
            self.skipped.append(Skipped(whole[MOST_OFFERS].label, more))
        # A repository of incomplete sets only has nothing to offer: say so.
        return whole[:MOST_OFFERS] or [names.complete(self.models[0])]

    def plan(
        self, machine: Machine, only: Sequence[ModelFiles] = (), *, imagined: bool = True
    ) -> list[PlannedModel]:
        """Every model that can be planned (or ``only`` those), smallest first.

        The others are in ``skipped``. ``imagined``: nothing will be loaded. Raises the error of the
        first if none can be planned; TransferError.
        """
        wanted = only or self.offers()
        found: list[PlannedModel] = []
        errors: list[ModelFileError | EngineError | RefusedFileError] = []
        planner = ModelPlanner(machine, self._request, self._listener, imagined=imagined)
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
        """The headers as files that the engine can read."""
        cache = HeaderCache()
        found = headers.fetch(self.reference, self.listing.commit, wanted, self.traffic, cache)
        if self.traffic.transferred:
            cache.prune()
        with skeletons(wanted, found) as models:
            yield models

    def offer(self, files: ModelFiles, machine: Machine) -> Offer:
        """What a download of it would take."""
        cache = RepoCache.of(self.listing.repo)
        missing = cache.missing(self.listing.commit, files.files)
        if self._request.machine is not None:  # another machine: nothing of it is there
            return Offer(self.reference, self.listing, files, files.size, machine.disk_free or None)
        if self._disk_free is None:
            with contextlib.suppress(StorageError):
                self._disk_free = cache.free()
        return Offer(self.reference, self.listing, files, missing, self._disk_free)


def best_of(repository: Repository, request: PlanRequest) -> tuple[ModelFiles, str]:
    """What a name without a quantization means on this machine, and why.

    Raises UnknownModelError when nothing fits and there is no usual choice.
    """
    if repository.chosen is not None:
        return (
            repository.chosen,
            "it was asked for" if repository.reference.wanted else "the only one",
        )
    found = repository.plan(find_machine(request, imagined=True))
    best, why = recommend(found, request.min_tps)
    if best is not None and best.offer is not None:
        return best.offer.files, why
    usual = names.default(repository.models)
    if usual is not None:
        return usual, why
    smallest = min(repository.offers(), key=lambda files: files.size)
    return smallest, f"{why}; {clean_line(smallest.label)} is the smallest"
