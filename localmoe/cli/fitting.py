"""Models of the Hub, planned for before a download: names → headers → the engine's dry run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from localmoe.cli import prepare
from localmoe.cli.arguments import Options
from localmoe.cli.expected import expected
from localmoe.cli.fitted import Fitted, Offer, Skipped, recommend
from localmoe.cli.output import Output
from localmoe.engine.process import WorkerProcess
from localmoe.errors import EngineCrashError, EngineError, ModelFileError, StorageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.hub import headers, names
from localmoe.hub.cache import RepoCache
from localmoe.hub.client import Listing, Patience, list_files
from localmoe.hub.header_cache import HeaderCache
from localmoe.hub.names import ModelFiles, Reference
from localmoe.hub.ranges import Traffic
from localmoe.hub.skeleton import skeletons
from localmoe.text import clean_line

MOST_OFFERS = 60  # models of one repository that are looked at; publishers offer up to 40
PATIENCE = Patience(tries=3, longest=20)  # someone waits for the answer


class Planner:
    """One machine and one engine worker for any number of models."""

    def __init__(
        self, machine: Machine, options: Options, output: Output, *, imagined: bool = True
    ) -> None:
        self.machine = machine
        self._imagined = imagined
        self.options = options
        self._output = output
        self._with_gpu = prepare.with_gpu_build(machine, options)
        self._worker: WorkerProcess | None = None

    def __enter__(self) -> Planner:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_worker()

    def fit(self, model: Model, offer: Offer | None = None) -> Fitted:
        """Plan one model. Raises ModelFileError, EngineError, EngineCrashError."""
        if self._worker is None:
            self._worker = WorkerProcess()
        try:
            plan, better = prepare.plans_for(
                model,
                self.machine,
                self._with_gpu,
                self.options,
                imagined=self._imagined,
                worker=self._worker,
            )
        except EngineCrashError:
            self._end_worker()
            raise
        plan, forecast = expected(model, plan, self.machine, self.options, self._output)
        return Fitted(model, plan, better, offer, forecast)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class Search:
    """The models of one repository, and what is known of them without a download."""

    def __init__(self, reference: Reference, options: Options, output: Output) -> None:
        self.reference = reference
        self.traffic = Traffic()
        self.skipped: list[Skipped] = []
        self._options = options
        self._output = output
        self._disk_free: int | None = None  # bytes where a download goes, once it was looked at
        # The listing is one request, or more of an old mirror; its bytes are no file content.
        self.listing: Listing = list_files(reference, PATIENCE)
        self.models = names.model_files(self.listing.files)
        self.chosen = names.choose(self.models, reference)

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

    def fit(
        self, machine: Machine, only: Sequence[ModelFiles] = (), *, imagined: bool = True
    ) -> list[Fitted]:
        """Every model that can be planned (or ``only`` those), smallest first.

        The others are in ``skipped``. ``imagined``: nothing will be loaded. Raises the error of the
        first if none can be planned; TransferError.
        """
        wanted = only or self.offers()
        found: list[Fitted] = []
        errors: list[ModelFileError | EngineError] = []
        planner = Planner(machine, self._options, self._output, imagined=imagined)
        with self.skeletons(wanted) as models, planner:
            for files in wanted:
                try:
                    model = models[files]
                    if isinstance(model, ModelFileError):
                        raise model
                    found.append(planner.fit(model, self.offer(files, machine)))
                except (ModelFileError, EngineError) as error:
                    errors.append(error)
                    self.skipped.append(Skipped(files.label, error.message))
        if errors and not found:
            raise errors[0]
        return found

    @contextlib.contextmanager
    def skeletons(
        self, wanted: Sequence[ModelFiles]
    ) -> Iterator[dict[ModelFiles, Model | ModelFileError]]:
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
        if self._options.machine is not None:  # another machine: nothing of it is there
            return Offer(self.reference, self.listing, files, files.size, machine.disk_free or None)
        if self._disk_free is None:
            with contextlib.suppress(StorageError):
                self._disk_free = cache.free()
        return Offer(self.reference, self.listing, files, missing, self._disk_free)


def best_of(search: Search, options: Options) -> tuple[ModelFiles, str]:
    """What a name without a quantization means on this machine, and why.

    Raises UnknownModelError when nothing fits and there is no usual choice.
    """
    if search.chosen is not None:
        return search.chosen, "it was asked for" if search.reference.wanted else "the only one"
    found = search.fit(prepare.find_machine(options, imagined=True))
    best, why = recommend(found, options.min_tps)
    if best is not None and best.offer is not None:
        return best.offer.files, why
    usual = names.default(search.models)
    if usual is not None:
        return usual, why
    smallest = min(search.offers(), key=lambda files: files.size)
    return smallest, f"{why}; {clean_line(smallest.label)} is the smallest"
