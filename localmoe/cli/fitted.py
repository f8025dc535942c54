"""What ``fit`` found out about models, here or on the Hub, and which it recommends. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localmoe.facts.catalog import Entry
from localmoe.facts.local_files import DEFAULT_QUANT
from localmoe.facts.model import Model
from localmoe.hub.client import Listing
from localmoe.hub.names import ModelFiles, Reference
from localmoe.planning.plan import Plan, Verdict
from localmoe.text import clean_line, format_bytes

LINE_SPEED = 100_000_000  # bits per second that download times are stated for
RESIDENT = frozenset({Verdict.GPU, Verdict.GPU_RAM, Verdict.RAM})


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

    @property
    def fits(self) -> bool:
        """Whether it would run here: memory, and room on the disk for what is missing."""
        return self.plan.verdict.fits and (self.offer is None or self.offer.room)

    @property
    def resident(self) -> bool:
        """Whether nothing needs the disk once it is loaded."""
        return self.fits and self.plan.verdict in RESIDENT

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


def recommend(found: Sequence[Fitted]) -> tuple[Fitted | None, str]:
    """The quantization to take of several of one model, and why; ``found`` has them all.

    Q4_K_M is what people take unless they have a reason: the usual balance of size and quality.
    What needs no disk while running comes before what does.
    """
    usual = next((f for f in found if f.label == DEFAULT_QUANT), None)
    resident = [f for f in found if f.resident]
    if usual in resident:
        assert usual is not None
        return usual, "the usual balance of size and quality, and it needs no disk while it runs"
    if resident:
        best = max(resident, key=lambda f: f.model.size)
        instead = f"; {DEFAULT_QUANT} {_why_not(usual)}" if usual else ""
        return best, f"the largest that needs no disk while it runs{instead}"
    running = [f for f in found if f.fits]
    if usual in running:
        assert usual is not None
        disk = format_bytes(usual.plan.tiers.disk)
        return usual, f"nothing fits in memory; of {DEFAULT_QUANT} {disk} are read from the disk"
    if running:
        least = min(running, key=lambda f: f.plan.tiers.disk)
        return least, "nothing fits in memory; this one needs the disk least"
    return None, "nothing of it fits this machine"


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


def _why_not(usual: Fitted) -> str:
    if usual.plan.verdict.fits and not usual.fits:
        return "has no room on the disk"
    return "would need the disk" if usual.fits else "does not fit"
