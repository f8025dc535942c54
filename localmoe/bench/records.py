"""What a measurement is made of: jobs to do, runs done, and the file that remembers them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localmoe import kept
from localmoe.errors import StorageError, UsageError
from localmoe.text import reason_of

RESIDENT = "resident"  # everything in memory, no limit: what computing alone takes


@dataclass(frozen=True, slots=True)
class Job:
    """One run to be made: a model in one regime, in a fresh process under one memory limit."""

    model: str
    size: int  # bytes of the model's files
    regime: str  # "plain", "off", "page", "private", "auto" or RESIDENT
    memory: int | None  # bytes of the hard limit
    repeat: int
    prompt_tokens: int
    steps: int  # decode steps after the first token
    replay: str = ""  # name of the trace that routes, "" for the model's own router
    asked: str = ""  # other options that change what is measured


@dataclass(frozen=True, slots=True)
class Tick:
    """Where a run was when a token came."""

    tokens: int  # written so far
    seconds: float  # since the request
    read: int  # bytes that the process had fetched from the disk


@dataclass(frozen=True, slots=True)
class Run:
    """What one run showed. ``error`` is empty for a run that reached its end."""

    job: Job
    limited_by: str = ""  # what held the limit
    cold: bool = True  # the files were out of the page cache before
    load_s: float = 0.0
    first_s: float = 0.0  # process start to first token
    ttft_s: float = 0.0  # request to first token, the model loaded
    prefill_tps: float = 0.0
    decode_tps: float = 0.0  # over all steps, as the worker timed it
    ticks: tuple[Tick, ...] = ()
    disk_before: float = 0.0  # bytes per second, direct reads of the same file
    disk_after: float = 0.0
    anonymous_peak: int = 0  # bytes of the worker
    locked_peak: int = 0
    charged_peak: int | None = None  # bytes, page cache included, as the limit counts
    planned: int = 0  # bytes of RAM that the plan foresaw
    cache_bytes: int = 0  # bytes set aside for experts
    hits: int | None = None  # of the cache, where it counts
    misses: int | None = None
    bytes_read: int | None = None  # as the cache counts
    prompt_read: int | None = None  # bytes fetched until the first token, as the system counts
    stall_s: float | None = None  # computing waited for reading
    regime: str = ""  # what ran, where it was chosen or stepped down
    digest: str = ""  # of the text: equal runs wrote the same
    error: str = ""

    @property
    def disk(self) -> float:
        """Bytes per second around this run."""
        known = [speed for speed in (self.disk_before, self.disk_after) if speed]
        return sum(known) / len(known) if known else 0.0


class Log:
    """Runs as JSON lines in a file, one appended per run; in memory only without a path.

    Raises UsageError for a file that is something else, StorageError if it cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.runs: list[Run] = []
        if path is not None and path.exists():
            self.runs = list(read_runs(path))
            drop_cut_line(path)

    def add(self, run: Run) -> None:
        self.runs.append(run)
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(run), separators=(",", ":")) + "\n")
            except OSError as error:
                raise StorageError(f"cannot write {self._path}: {error.strerror}") from error

    def missing(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs without a run; one that failed counts as a run, since it would fail again."""
        done = {run.job for run in self.runs}
        return [job for job in jobs if job not in done]

    def of(self, jobs: Sequence[Job]) -> list[Run]:
        """The runs of these jobs, the last one of each."""
        wanted = set(jobs)
        return list({run.job: run for run in self.runs if run.job in wanted}.values())


def read_runs(path: Path) -> Iterator[Run]:
    """The runs of a log. A line cut short by a crash, which can only be the last, is left out."""
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path}: {reason_of(error)}") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield run_from_json(kept.parse(line))
        except kept.DAMAGED as error:
            if number == len(lines):
                return
            raise UsageError(
                f"{path}:{number} is no run of `localmoe bench`",
                hint="give --log a file of its own",
            ) from error


def drop_cut_line(path: Path) -> None:
    """Take off what a crash left of a last line."""
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def run_from_json(data: Any) -> Run:
    """The inverse of ``dataclasses.asdict``; fields that this version does not know are errors."""
    fields = dict(data)
    job = Job(**fields.pop("job"))
    ticks = tuple(Tick(**tick) for tick in fields.pop("ticks"))
    return Run(job=job, ticks=ticks, **fields)
