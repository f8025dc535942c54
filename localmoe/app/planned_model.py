"""A model and its plan, of a file here or on the Hub before a download. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from localmoe.app import speeds
from localmoe.facts.catalog import Entry
from localmoe.facts.model import Model
from localmoe.hub.listing import Listing
from localmoe.hub.names import ModelFiles, Reference
from localmoe.planning.places import kind_of, memory_of
from localmoe.planning.plan import Plan, Verdict
from localmoe.planning.speed import Forecast
from localmoe.text import clean_line, format_duration, format_size

LINE_SPEED = 100_000_000  # bits per second, for which download times are stated
LINE = f"{LINE_SPEED // 1_000_000} Mbit/s"
RESIDENT = frozenset({Verdict.GPU, Verdict.GPU_RAM, Verdict.RAM})
_VERDICTS = {
    Verdict.GPU: "fits in {memory}",
    Verdict.GPU_RAM: "fits in {memory} and RAM",
    Verdict.RAM: "fits in RAM",
    Verdict.GPU_DISK: "runs, with experts read from disk ({kind} and disk)",
    Verdict.GPU_RAM_DISK: "runs, with experts read from disk ({kind}, RAM and disk)",
    Verdict.RAM_DISK: "runs, with experts read from disk (RAM and disk)",
    Verdict.TOO_SLOW: "runs, too slowly to use",
    Verdict.NO: "does not fit",
}


def verdict_words(verdict: Verdict, devices: Sequence[str]) -> str:
    """What a verdict means for these devices: ``fits in the worker's memory and RAM``."""
    return _VERDICTS[verdict].format(memory=memory_of(devices), kind=kind_of(devices))


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of a repository, whether or not it is downloaded."""

    reference: Reference
    listing: Listing
    files: ModelFiles
    missing: int  # bytes that are not here
    disk_free: int | None  # bytes where it would go; None: unknown

    @property
    def fits_disk(self) -> bool:
        """Whether the disk can take what is missing."""
        return self.disk_free is None or self.missing <= self.disk_free

    @property
    def command_name(self) -> str:
        """What to type for exactly this model."""
        return f"{self.reference.repo}:{self.files.label}"

    @property
    def download_seconds(self) -> float:
        """Seconds to fetch what is missing, at LINE_SPEED."""
        return self.missing * 8 / LINE_SPEED


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """A model and its plan."""

    model: Model
    plan: Plan
    with_gpu_build: Plan | None = None  # with a GPU that is here but not in this engine build
    offer: Offer | None = None  # None: a file of this machine
    forecast: Forecast | None = None  # None: the machine's speed is unknown

    @property
    def runs(self) -> bool:
        """Whether it would run here at all, however slowly, and its download fits on the disk."""
        return self.plan.verdict.runs and (self.offer is None or self.offer.fits_disk)

    @property
    def fits(self) -> bool:
        """Whether it would run here, and not too slowly to use."""
        return self.runs and self.plan.verdict.fits

    @property
    def resident(self) -> bool:
        """Whether nothing needs the disk once it is loaded."""
        return self.fits and self.plan.verdict in RESIDENT

    @property
    def tps(self) -> float | None:
        """Expected tokens per second; None: unknown."""
        return self.forecast.decode.expected if self.forecast else None

    @property
    def slow(self) -> bool:
        """Whether fewer than ``speeds.SLOW`` tok/s are expected; False if the speed is unknown."""
        return self.tps is not None and self.tps < speeds.SLOW

    def reaches(self, min_tps: float | None) -> bool:
        """Whether ``min_tps`` tok/s are expected: False if the speed is unknown, True for None."""
        return min_tps is None or (self.tps is not None and self.tps >= min_tps)

    @property
    def label(self) -> str:
        """Its quantization, or the name of its file in the repository."""
        label = self.offer.files.label if self.offer else self.model.quantization
        return clean_line(label)

    @property
    def download(self) -> str:
        """``1 h 25 min at 100 Mbit/s``, ``here``, or ``no room: 63.4 GB, 21.6 GB free``."""
        offer = self.offer
        if offer is None or not offer.missing:
            return "here"
        if not offer.fits_disk:
            free = format_size(offer.disk_free or 0)
            return f"no room: {format_size(offer.missing)}, {free} free"
        return f"{format_duration(offer.download_seconds)} at {LINE}"

    @property
    def reason(self) -> str:
        """One sentence: why it fits or not, in memory and on the disk."""
        if self.plan.verdict.runs and self.offer is not None and not self.offer.fits_disk:
            free = format_size(self.offer.disk_free or 0)
            return f"no room: {format_size(self.offer.missing)} to download, {free} free"
        return self.plan.reason


def headline(planned: PlannedModel, why: str) -> str:
    """One line about a model before its download; ``why`` this quantization: "" leaves it out."""
    parts = len(planned.model.paths)
    facts = [
        clean_line(planned.model.name) + (f" ({clean_line(why)})" if why else ""),
        *([f"{parts} parts"] if parts > 1 else []),
        format_size(planned.model.size),
        planned.download,
        verdict_words(planned.plan.verdict, planned.plan.settings.devices),
        f"{planned.plan.settings.context:,} tokens of context",
        *([speeds.summary(planned.forecast)] if planned.forecast else []),
    ]
    return " · ".join(facts)


@dataclass(frozen=True, slots=True)
class CatalogGuess:
    """A model of the catalog, with a verdict from its size alone."""

    entry: Entry
    files: ModelFiles
    verdict: Verdict

    @property
    def command_name(self) -> str:
        """What to type for exactly this one."""
        return f"{self.entry.alias}:{self.files.label}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that could not be planned, and why."""

    name: str
    reason: str
