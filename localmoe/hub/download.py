"""All files of one model from the Hub into its cache, as one thing.

    for event in download(listing, model.files):
        …  # Progress, several times a second; at the end one Pulled

Each file has one connection, one writer and one hash; up to four files are under way at once.
Whatever happens (Ctrl-C, a kill, a full disk, a broken line), what has arrived stays, and the next
call goes on from it. Closing the iterator stops the transfer.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localmoe.errors import DoesNotFitError, TransferError
from localmoe.hub.cache import DISK_FULL, RepoCache, storage_failed
from localmoe.hub.client import file_url, hub_errors
from localmoe.hub.listing import Listing
from localmoe.hub.locks import try_lock
from localmoe.hub.names import Reference, RepoFile
from localmoe.hub.patience import Patience
from localmoe.hub.refusals import RefusedFileError
from localmoe.hub.transfer import FollowingHash, Stop, StoppedError, fill, whole_until
from localmoe.text import clean_line, format_size

CONNECTIONS = 4
TICK = 0.1  # seconds between events
WINDOW = 5.0  # seconds that the rate is the mean of
LOCK_POLL = 0.2
GOODBYE = 3.0  # seconds that a stopped transfer may take to end

State = Literal["queued", "waiting", "downloading", "checking", "done"]


@dataclass(frozen=True, slots=True)
class PartProgress:
    """How far one file is.

    "waiting": another process is downloading it; "checking": all is here, and is being hashed.
    """

    name: str
    state: State
    done: int  # bytes on disk
    total: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the whole transfer is."""

    parts: tuple[PartProgress, ...]
    rate: float  # bytes per second over the last seconds; 0 before anything arrived

    @property
    def done(self) -> int:
        """Bytes on disk."""
        return sum(part.done for part in self.parts)

    @property
    def total(self) -> int:
        return sum(part.total for part in self.parts)

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest will take at this rate; None while nothing arrives."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None


@dataclass(frozen=True, slots=True)
class Pulled:
    """The model is here, whole and checked."""

    paths: tuple[Path, ...]  # in the snapshot, in the order of the files
    size: int  # bytes of all files
    transferred: int  # bytes received by this call
    resumed: int  # bytes that an earlier, broken-off download had left
    reused: int  # bytes of files that were complete
    seconds: float


class _Job:
    """One file of a transfer; its worker sets the fields, others read them."""

    def __init__(self, file: RepoFile, done: int) -> None:
        self.file = file
        self.state: State = "queued"
        self.done = done
        self.received = 0
        self.resumed = 0
        self.reused = 0

    def progress(self) -> PartProgress:
        return PartProgress(self.file.path, self.state, self.done, self.file.size)


def download(
    listing: Listing,
    files: Sequence[RepoFile],
    *,
    cache: RepoCache | None = None,
    patience: Patience | None = None,
) -> Generator[Progress | Pulled, None, None]:
    """Fetch what is not here of ``files``, check it, and put it where the Hub's tools look.

    Raises DoesNotFitError before the first byte when the disk cannot hold it, TransferError for
    network, server, wrong hashes and a disk that fills up, StorageError.
    """
    cache = cache or RepoCache.of(listing.repo)
    started = time.monotonic()
    for file in files:
        cache.pointer(listing.commit, file)  # refuses unsafe names
    # Equal contents are one blob.
    unique = {file.etag: file for file in files}.values()
    check_room(cache, listing.commit, files)
    jobs = [_Job(file, cache.bytes_here(listing.commit, file)) for file in unique]
    if cache.placed(listing.commit, files):  # nothing is written: a cache may be read-only
        for job in jobs:
            job.state, job.reused = "done", job.file.size
    else:
        cache.prepare()
        yield from _Transfer(listing, cache, jobs, patience or Patience()).run()
    paths = cache.place(listing.commit, listing.revision, files)
    yield Pulled(
        paths=paths,
        size=sum(file.size for file in files),
        transferred=sum(job.received for job in jobs),
        resumed=sum(job.resumed for job in jobs),
        reused=sum(job.reused for job in jobs),
        seconds=time.monotonic() - started,
    )


def check_room(cache: RepoCache, commit: str, files: Sequence[RepoFile]) -> None:
    """Raises DoesNotFitError when the disk of the cache cannot hold what is missing."""
    missing, free = cache.missing(commit, files), cache.free()
    if missing > free:
        raise DoesNotFitError(
            f"the disk cannot hold it: {format_size(missing)} to download, "
            f"{format_size(free)} free on the disk of {clean_line(str(cache.root))}",
            hint=f"free {format_size(missing - free)}, or set HF_HUB_CACHE to a folder on "
            "another disk; `localmoe rm MODEL` removes a model",
        )


class _Transfer:
    """The workers of one download, and the events they amount to."""

    def __init__(
        self, listing: Listing, cache: RepoCache, jobs: Sequence[_Job], patience: Patience
    ) -> None:
        self._listing = listing
        self._reference = Reference(listing.repo, listing.repo, revision=listing.revision)
        self._cache = cache
        self._jobs = jobs
        self._patience = patience
        self._queue = deque(jobs)
        self._stop = Stop()
        self._wake = threading.Event()
        self._error: Exception | None = None
        self._samples = deque([(time.monotonic(), 0)])

    def run(self) -> Iterator[Progress]:
        """Download all files; yields until they are here.

        Raises the first error of a worker when all of them have ended.
        """
        workers = [
            threading.Thread(target=self._work, daemon=True, name=f"download {number}")
            for number in range(min(CONNECTIONS, len(self._jobs)))
        ]
        for worker in workers:
            worker.start()
        try:
            while any(worker.is_alive() for worker in workers):
                self._wake.wait(TICK)
                self._wake.clear()
                yield self._progress()
        finally:
            self._stop.set()
            deadline = time.monotonic() + GOODBYE
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
        if self._error is not None:
            raise self._error
        yield self._progress()

    def _progress(self) -> Progress:
        now, received = time.monotonic(), sum(job.received for job in self._jobs)
        samples = self._samples
        samples.append((now, received))
        while len(samples) > 2 and samples[0][0] < now - WINDOW:
            samples.popleft()
        seconds = now - samples[0][0]
        rate = (received - samples[0][1]) / seconds if seconds > 0 else 0.0
        return Progress(tuple(job.progress() for job in self._jobs), rate)

    def _work(self) -> None:
        """A worker: takes one file after the other, until none is left or any worker has failed."""
        try:
            while True:
                try:
                    job = self._queue.popleft()
                except IndexError:
                    return
                with _naming(job.file), hub_errors(self._reference):
                    self._fetch(job)
        except StoppedError:
            pass
        except Exception as error:
            if self._error is None:
                self._error = error
            self._stop.set()
        finally:
            self._wake.set()

    def _fetch(self, job: _Job) -> None:
        file, cache = job.file, self._cache
        with self._one_writer(job):
            if cache.has(self._listing.commit, file):
                job.state, job.done, job.reused = "done", file.size, file.size
                return
            path = cache.incomplete(file)
            try:
                cache.corrupt(file).unlink(missing_ok=True)
                # Not through a link: whoever planted it chose what we would overwrite.
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = os.open(path, flags, 0o666)
            except OSError as error:
                storage_failed("cannot write", path, error)
            try:
                digest = self._write(job, descriptor)
                if digest != file.etag and job.resumed:
                    # What an earlier download left was not of this file: begin anew, once.
                    os.ftruncate(descriptor, 0)
                    digest = self._write(job, descriptor)
            finally:
                os.close(descriptor)
            if digest != file.etag:
                raise self._wrong(file, digest)
            path.replace(cache.blob(file))
            job.state = "done"

    def _write(self, job: _Job, descriptor: int) -> str:
        """Fetch what the file lacks. Returns the hash of all of it, read back from the disk."""
        file = job.file
        path = self._cache.incomplete(file)
        try:
            here = whole_until(descriptor)
            if here > file.size:
                here = 0
            os.ftruncate(descriptor, here)
            job.resumed = job.done = here
            job.state = "downloading"
            hashing = FollowingHash(descriptor, file, here)
            before = job.received

            def arrived(position: int) -> None:
                hashing.written = job.done = position
                job.received = before + position - here

            hashing.start()
            try:
                url = file_url(self._listing.repo, self._listing.commit, file.path)
                fill(url, file, descriptor, arrived, self._stop, self._patience)
                job.state = "checking"
                os.fsync(descriptor)
                while hashing.is_alive():
                    self._stop.check()
                    hashing.join(TICK)
                return hashing.result()
            finally:
                hashing.cancel()
        except OSError as error:
            if error.errno in DISK_FULL:
                raise self._disk_full(job) from error
            if error.errno is None:  # huggingface_hub's errors are OSErrors without a number
                raise
            storage_failed("cannot write", path, error)

    def _wrong(self, file: RepoFile, digest: str) -> TransferError:
        """Put a file with the wrong hash aside. Returns the error that says so."""
        quarantined = self._cache.corrupt(file)
        self._cache.incomplete(file).replace(quarantined)
        return TransferError(
            f"{clean_line(file.path)} arrived with the wrong hash: {digest[:12]}… instead of "
            f"{file.etag[:12]}…",
            hint=f"it is kept aside, unused, as {clean_line(str(quarantined))}; "
            "run it again to fetch it anew",
        )

    def _disk_full(self, job: _Job) -> TransferError:
        missing = self._cache.missing(self._listing.commit, [j.file for j in self._jobs])
        return TransferError(
            f"the disk is full: {format_size(job.done)} of {clean_line(job.file.path)} are kept, "
            f"{format_size(missing)} are still to come",
            hint=f"free {format_size(missing)} and run it again: it goes on from there",
        )

    @contextlib.contextmanager
    def _one_writer(self, job: _Job) -> Iterator[None]:
        """Hold the file's lock; while another process has it, wait."""
        path = self._cache.lock(job.file)
        try:
            while (lock := try_lock(path)) is None:
                job.state = "waiting"
                job.done = self._cache.bytes_here(self._listing.commit, job.file)
                self._stop.wait(LOCK_POLL)
        except OSError as error:
            storage_failed("cannot lock", path, error)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                lock.release()


@contextlib.contextmanager
def _naming(file: RepoFile) -> Iterator[None]:
    """Put the file's name before a RefusedFileError."""
    try:
        yield
    except RefusedFileError as error:
        name = clean_line(file.path)
        raise RefusedFileError(f"{name}: {error.message}", hint=error.hint) from error
