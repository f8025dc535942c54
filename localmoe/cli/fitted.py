"""What ``fit`` found out about models, here or on the Hub, and which it recommends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localmoe.cli import speeds
from localmoe.facts.catalog import Entry
from localmoe.facts.local_files import DEFAULT_QUANT
from localmoe.facts.model import Model
from localmoe.hub.client import Listing
from localmoe.hub.names import ModelFiles, Reference
from localmoe.planning.plan import Plan, Verdict
from localmoe.planning.speed import Forecast
from localmoe.text import clean_line, format_bytes

LINE_SPEED = 100_000_000  # bits per second that download times are stated for
RESIDENT = frozenset({Verdict.GPU, Verdict.GPU_RAM, Verdict.RAM})
HARDLY_SLOWER = 0.8  # of the speed of a smaller one: worth the better answers


@dataclass(frozen=True, slots=True)
class Offer:
    """One model of a repository, not necessarily downloaded."""

    reference: Reference
    listing: Listing
    files: ModelFiles
    missing: int  # bytes that are not here
    disk_free: int | None  # bytes where it would go; None: unknown

    @property
    def room(self) -> bool:
        """Whether the disk can take what is missing."""
        return self.disk_free is None or self.missing <= self.disk_free

    @property
    def command_name(self) -> str:
        """What to type for exactly this model."""
        return f"{self.reference.repo}:{self.files.label}"

    @property
    def download_seconds(self) -> float:
        """Time to fetch what is missing, at LINE_SPEED."""
        return self.missing * 8 / LINE_SPEED


@dataclass(frozen=True, slots=True)
class Fitted:
    """A model and what was planned for it."""

    model: Model
    plan: Plan
    with_gpu_build: Plan | None = None  # with a GPU that is here but not in this engine build
    offer: Offer | None = None  # None: a file of this machine
    forecast: Forecast | None = None  # None: nothing is known of that machine's speed

    @property
    def fits(self) -> bool:
        """Whether it would run here: memory, and room on the disk for what is missing."""
        return self.plan.verdict.fits and (self.offer is None or self.offer.room)

    @property
    def resident(self) -> bool:
        """Whether nothing needs the disk once it is loaded."""
        return self.fits and self.plan.verdict in RESIDENT

    @property
    def tps(self) -> float | None:
        """Tokens per second to expect; None where that is not known."""
        return self.forecast.decode.expected if self.forecast else None

    @property
    def slow(self) -> bool:
        """Whether it is known to be painfully slow."""
        return self.tps is not None and self.tps < speeds.SLOW

    def reaches(self, least: float | None) -> bool:
        """Whether it is expected to reach ``least`` tok/s; what is not known does not."""
        return least is None or (self.tps is not None and self.tps >= least)

    @property
    def label(self) -> str:
        """Short, for a table and a sentence."""
        label = self.offer.files.label if self.offer else self.model.quantization
        return clean_line(label)

    @property
    def reason(self) -> str:
        """One sentence: why this verdict, the disk included."""
        if self.plan.verdict.fits and self.offer is not None and not self.offer.room:
            free = format_bytes(self.offer.disk_free or 0)
            return f"no room: {format_bytes(self.offer.missing)} to download, {free} free"
        return self.plan.reason


@dataclass(frozen=True, slots=True)
class Guessed:
    """A model of the catalog, and where its size alone suggests that it would live."""

    entry: Entry
    files: ModelFiles
    verdict: Verdict

    @property
    def command_name(self) -> str:
        """What to type for exactly this one."""
        return f"{self.entry.alias}:{self.files.label}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that nothing can be said of, and why."""

    name: str
    reason: str


def recommend(found: Sequence[Fitted], least: float | None = None) -> tuple[Fitted | None, str]:
    """The quantization to take of several of one model, and why; ``found`` has them all.

    Q4_K_M is what people take unless they have a reason: the usual balance of size and quality.
    What needs no disk while running comes before what does, unless that is hardly slower. What is
    slower than ``least`` tok/s is not taken; where nobody said, what is painfully slow is taken
    only if all is.
    """
    running = [f for f in found if f.fits]
    quick = [f for f in running if f.reaches(least)]
    if least is None:
        quick = [f for f in running if not f.slow] or running
    elif running and not quick:
        return None, f"nothing of it is expected to reach {speeds.number(least)} tok/s"
    usual = next((f for f in found if f.label == DEFAULT_QUANT), None)
    resident = [f for f in quick if f.resident]
    if usual in resident:
        assert usual is not None
        return usual, "the usual balance of size and quality, and it needs no disk while it runs"
    if resident:
        best = max(resident, key=lambda f: f.model.size)
        if usual in quick and usual is not None and _hardly_slower(usual, best):
            return usual, (
                f"the usual balance of size and quality; {format_bytes(usual.plan.tiers.disk)} of "
                f"it are read from the disk, and still it is hardly slower than {best.label}"
            )
        instead = f"; {DEFAULT_QUANT} {_why_not(usual, quick)}" if usual else ""
        return best, f"the largest that needs no disk while it runs{instead}"
    if usual in quick:
        assert usual is not None
        disk = format_bytes(usual.plan.tiers.disk)
        return usual, f"nothing fits in memory; of {DEFAULT_QUANT} {disk} are read from the disk"
    if quick:
        least_disk = min(quick, key=lambda f: f.plan.tiers.disk)
        return least_disk, "nothing fits in memory; this one needs the disk least"
    return None, "nothing of it fits this machine"


def best_first(found: Sequence[Fitted]) -> list[Fitted]:
    """What needs no disk, then what does, then what does not run; the faster ones first."""

    def order(fitted: Fitted) -> tuple[int, float, int]:
        group = 0 if fitted.resident else 1 if fitted.fits else 2
        return group, -(fitted.tps or 0.0), fitted.model.size

    return sorted(found, key=order)


def guess_for(
    entry: Entry, models: Sequence[ModelFiles], verdict_of: Callable[[int], Verdict]
) -> Guessed | None:
    """The quantization of a family to look at first, by the rule of ``recommend`` on sizes."""
    guesses = [Guessed(entry, files, verdict_of(files.size)) for files in models]
    usual = next((g for g in guesses if g.files.quant == DEFAULT_QUANT), None)
    resident = [g for g in guesses if g.verdict in RESIDENT]
    if usual is not None and (usual in resident or (not resident and usual.verdict.fits)):
        return usual
    if resident:
        return max(resident, key=lambda g: g.files.size)
    return min(guesses, key=lambda g: g.files.size, default=None)


def rank(guesses: Sequence[Guessed]) -> list[Guessed]:
    """What runs from memory first, the largest leading; then what needs the disk least."""

    def order(guess: Guessed) -> tuple[int, int]:
        if guess.verdict in RESIDENT:
            return 0, -guess.files.size
        return (1 if guess.verdict.fits else 2), guess.files.size

    return sorted(guesses, key=order)


def _hardly_slower(one: Fitted, other: Fitted) -> bool:
    return one.tps is not None and other.tps is not None and one.tps >= HARDLY_SLOWER * other.tps


def _why_not(usual: Fitted, quick: Sequence[Fitted]) -> str:
    if usual.plan.verdict.fits and not usual.fits:
        return "has no room on the disk"
    if usual.fits and usual not in quick:
        return "would be too slow"
    return "would need the disk" if usual.fits else "does not fit"
