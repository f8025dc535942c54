"""What the catalog's repositories have, from one cheap request each, within a time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from localmoe.errors import LocalmoeError, TransferError, UnknownModelError
from localmoe.facts.catalog import Entry
from localmoe.hub import library, names
from localmoe.hub.listing import Listing, list_files
from localmoe.hub.names import ModelFiles, Reference
from localmoe.hub.patience import Patience

CONNECTIONS = 8
SECONDS = 8.0  # that someone may wait for a guess
ONCE = Patience(tries=1)
LATE = "no answer in time"


@dataclass(frozen=True, slots=True)
class Surveyed:
    """One entry of the catalog, and what its repository has; ``problem``: why that is unknown."""

    entry: Entry
    listing: Listing | None
    models: tuple[ModelFiles, ...] = ()  # complete ones, smallest first
    problem: str = ""
    answered: bool = False  # whether the Hub said anything


def offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` forbids to ask."""
    return bool(library.constants().HF_HUB_OFFLINE)


def survey(entries: Sequence[Entry], seconds: float = SECONDS) -> list[Surveyed]:
    """Ask about every entry that has a repository, in the order of ``entries``.

    A repository that does not answer is told of in ``problem``. Raises TransferError when none
    does.
    """
    wanted = [entry for entry in entries if entry.repo]
    todo: SimpleQueue[tuple[Entry, Future[Listing]]] = SimpleQueue()
    jobs: list[tuple[Entry, Future[Listing]]] = [(entry, Future()) for entry in wanted]
    for job in jobs:
        todo.put(job)
    for _ in range(min(CONNECTIONS, len(jobs))):
        # Daemons: one that waits for a dead host must not keep the program from ending.
        threading.Thread(target=_ask_all, args=(todo,), daemon=True).start()
    limit = time.monotonic() + seconds
    found = list(_answers(jobs, limit))
    while not todo.empty():  # nobody needs the rest any more
        try:
            todo.get_nowait()
        except Empty:
            break
    if found and not any(answer.answered for answer in found):
        raise TransferError(found[0].problem, hint="check the network; HF_HUB_OFFLINE=1 skips this")
    return found


def _answers(jobs: Sequence[tuple[Entry, Future[Listing]]], limit: float) -> Iterator[Surveyed]:
    for entry, job in jobs:
        try:
            listing = job.result(timeout=max(0.0, limit - time.monotonic()))
            models = tuple(m for m in names.model_files(listing.files) if not m.missing)
            problem = "" if models else f"{entry.repo} has no GGUF model"
            yield Surveyed(entry, listing, models, problem, answered=True)
        except TimeoutError:
            yield Surveyed(entry, None, problem=LATE)
        except UnknownModelError:
            gone = f"our catalog entry is stale: {entry.repo} is gone"
            yield Surveyed(entry, None, problem=gone, answered=True)
        except LocalmoeError as error:
            yield Surveyed(entry, None, problem=error.message)


def _ask_all(todo: SimpleQueue[tuple[Entry, Future[Listing]]]) -> None:
    """A thread: asks about one entry of the queue after the other, until none is left."""
    while True:
        try:
            entry, job = todo.get_nowait()
        except Empty:
            return
        try:
            job.set_result(list_files(Reference(entry.alias, entry.repo, entry=entry), ONCE))
        except BaseException as error:
            job.set_exception(error)
