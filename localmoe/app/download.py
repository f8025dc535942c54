"""A model from the Hub onto this machine, once it is clear that it makes sense."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from localmoe.app import speeds
from localmoe.app.idle_gpus import tell_of_idle_gpus
from localmoe.app.listener import Listener
from localmoe.app.machine import find_machine
from localmoe.app.planned_model import PlannedModel, headline
from localmoe.app.repository import Repository, best_of
from localmoe.app.requests import LoadRequest, PlanRequest
from localmoe.errors import DoesNotFitError, UsageError
from localmoe.hub.cache import RepoCache
from localmoe.hub.download import Pulled, check_room, download
from localmoe.hub.listing import Listing
from localmoe.hub.names import ModelFiles, Reference
from localmoe.hub.patience import Patience
from localmoe.text import clean_line, format_size


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model of a repository that is to be downloaded."""

    reference: Reference
    listing: Listing
    model: ModelFiles

    @property
    def cache(self) -> RepoCache:
        """The folder of the Hub cache that it goes to."""
        return RepoCache.of(self.listing.repo)

    @property
    def missing(self) -> int:
        """Bytes still to be downloaded."""
        return self.cache.missing(self.listing.commit, self.model.files)

    @property
    def name(self) -> str:
        """What to type for exactly this model; an alias of the catalog where there is one."""
        reference = self.reference
        if reference.revision is not None:
            return f"{reference.repo}@{reference.revision}:{self.model.label}"
        base = reference.entry.alias if reference.entry else reference.repo
        return f"{base}:{self.model.label}"

    @property
    def title(self) -> str:
        """``gpt-oss-120b-mxfp4 · 3 parts · 63.4 GB``."""
        count = len(self.model.files)
        facts = [clean_line(self.model.name), f"{count} parts" if count > 1 else ""]
        return " · ".join([*filter(None, facts), format_size(self.model.size)])


def download_to_run(reference: Reference, request: LoadRequest, listener: Listener) -> Path:
    """Tell what the model would do here, ask, download it; returns its first file.

    Raises UsageError when the user says no or cannot be asked, DoesNotFitError when it would not
    run here, TransferError, UnknownModelError.
    """
    repository = Repository(reference, request.plan, listener)
    machine = find_machine(request.plan, hypothetical=False)
    files, why = best_of(repository, request.plan)
    (found,) = repository.plan(machine, [files], hypothetical=False)
    listener.note(headline(found, why if repository.chosen is None else ""))
    repo = clean_line(reference.repo)
    if not found.fits:
        hint = f"localmoe fit {repo} shows what would"
        raise DoesNotFitError(f"{found.label}: {found.reason}", hint=hint)
    if doubt := doubt_about(found, request.plan.min_tps):
        listener.warn(f"{found.label} {doubt}")
    wanted = Wanted(reference, repository.listing, files)
    if wanted.missing and not request.consent:
        answer = listener.ask("Download it?")
        if answer is None:
            name = clean_line(request.name or reference.repo)
            raise UsageError(
                f"{name} is not on this machine: {format_size(wanted.missing)}",
                hint=f"--yes downloads it; or first: localmoe pull {name}",
            )
        if not answer:
            raise UsageError("not downloaded", hint=f"localmoe fit {repo}")
    return fetch(wanted, listener).paths[0]


def permitted(
    wanted: Wanted, repository: Repository, request: PlanRequest, listener: Listener
) -> bool:
    """Whether to download a model; asks the user if it would not run here, or too slowly.

    False: the user said no. Raises DoesNotFitError if the user cannot be asked.
    """
    machine = find_machine(request, hypothetical=True)
    tell_of_idle_gpus(machine, listener)
    (found,) = repository.plan(machine, [wanted.model])
    doubt = doubt_about(found, request.min_tps)
    if not doubt:
        listener.note(headline(found, ""))
        return True
    doubt = f"{clean_line(wanted.model.name)} {doubt}"
    size = format_size(wanted.missing)
    answer = listener.ask(f"Download {size} anyway?", reason=doubt)
    if answer is None:
        hint = f"--yes downloads it anyway ({size}), for another machine"
        raise DoesNotFitError(doubt, hint=hint)
    return answer


def require_room(wanted: Wanted) -> None:
    """Raises DoesNotFitError when the disk cannot hold what is missing."""
    check_room(wanted.cache, wanted.listing.commit, wanted.model.files)


def doubt_about(found: PlannedModel, min_tps: float | None) -> str:
    """Why a model should not run on this machine: it does not fit, or is slow; "" if neither.

    Slow is less than ``min_tps`` tok/s; None: less than ``speeds.SLOW``.
    """
    if not found.fits:
        return f"does not fit this machine: {found.reason}"
    if not found.reaches(min_tps) or (min_tps is None and found.slow):
        slow = speeds.too_slow(found.forecast, min_tps or speeds.SLOW)
        limit = f" ({speeds.limit_text(found.forecast)})" if found.forecast else ""
        return f"would be slow on this machine: {slow}{limit}"
    return ""


def fetch(wanted: Wanted, listener: Listener) -> Pulled:
    """Download, with progress shown; after an error or an interrupt the next call resumes it.

    Raises TransferError, StorageError, DoesNotFitError.
    """
    pulled = None
    patience = Patience(tell=listener.note)
    events = download(wanted.listing, wanted.model.files, patience=patience)
    try:
        with closing(events), listener.progress(wanted.title) as show:
            for event in events:
                if isinstance(event, Pulled):
                    pulled = event
                else:
                    show(event)
    except (KeyboardInterrupt, SystemExit):
        kept = format_size(wanted.model.size - wanted.missing)
        listener.note(f"stopped: {kept} are kept, and the same command goes on from there")
        raise
    assert pulled is not None
    return pulled
