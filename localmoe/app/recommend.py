"""Which of several planned models to take. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from localmoe.app import speeds
from localmoe.app.planned_model import RESIDENT, CatalogGuess, PlannedModel
from localmoe.facts.catalog import Entry
from localmoe.facts.local_files import DEFAULT_QUANT
from localmoe.hub.names import ModelFiles
from localmoe.planning.plan import Verdict
from localmoe.text import format_bytes

USABLE = speeds.SLOW  # tok/s; what is slower is taken only where everything is
QUICK = 10.0  # tok/s, faster than one reads: from here on more quality than the usual is worth it
LOSSLESS = 8.6  # bits per weight, those of Q8_0: what is larger is no better to notice


def recommend(
    found: Sequence[PlannedModel], min_tps: float | None = None
) -> tuple[PlannedModel | None, str]:
    """Which of a model's quantizations, ``found``, to take, and why; None: none of them.

    The best quality that is expected to reach ``min_tps`` tok/s; when nothing reaches that and
    nobody insists, the fastest. By default the bar is ``USABLE``, and what is larger than Q4_K_M,
    the usual balance, counts as better only from ``QUICK`` on. Quality grows with the size of the
    file up to ``LOSSLESS`` bits per weight. Each file is faster on a better machine, so there the
    answer is never worse in both quality and speed.
    """
    running = [f for f in found if f.fits]
    if not running:
        slow = any(f.runs for f in found)
        return None, f"nothing of it {'is quick enough to use on' if slow else 'fits'} this machine"
    if min_tps is None and all(f.tps is None for f in running):
        return _by_memory(found, running)
    usual = next((f for f in found if f.label == DEFAULT_QUANT), None)
    bar = USABLE if min_tps is None else min_tps
    usable = [f for f in running if f.reaches(bar)]
    if usable:
        quick = QUICK if min_tps is None else min_tps
        best = max(usable, key=lambda f: _worth(f, usual, quick))
        return best, _praise(best, usual, usable, bar)
    if min_tps is not None:
        return None, f"nothing of it is expected to reach {speeds.number(min_tps)} tok/s"
    best = max(running, key=lambda f: (f.tps or 0.0, f.model.size))
    return best, f"nothing of it reaches {speeds.number(bar)} tok/s here; this one is the fastest"


def quality(planned: PlannedModel) -> int:
    """Bytes of the file that make answers better: none beyond ``LOSSLESS`` bits per weight."""
    return min(planned.model.size, int(planned.model.parameters * LOSSLESS / 8))


def _worth(
    planned: PlannedModel, usual: PlannedModel | None, quick: float
) -> tuple[int, float, bool, int]:
    """By what usable quantizations are compared; the greatest is the best. What is larger than the
    ``usual`` one and not ``quick`` (tok/s) counts as that one.
    """
    worth = quality(planned)
    if usual is not None and not planned.reaches(quick):
        worth = min(worth, quality(usual))
    return worth, planned.tps or 0.0, planned is usual, -planned.model.size


def _praise(
    best: PlannedModel, usual: PlannedModel | None, usable: Sequence[PlannedModel], bar: float
) -> str:
    """Why ``best`` is taken of those that reach ``bar`` tok/s."""
    if best is usual:
        disk = format_bytes(best.plan.tiers.disk)
        from_disk = f"{disk} of it are read from the disk, and still it is fast enough"
        needs = "it needs no disk while it runs" if best.resident else from_disk
        return f"the usual balance of size and quality, and {needs}"
    reason = f"the best quality that is expected to reach {speeds.number(bar)} tok/s"
    if usual is not None and best.model.size > usual.model.size and usual in usable:
        return f"better than the usual {DEFAULT_QUANT}, and quick enough all the same"
    if usual is None:
        return reason
    return f"{reason}; {DEFAULT_QUANT} {_why_not(usual, usable)}"


def _by_memory(
    found: Sequence[PlannedModel], running: Sequence[PlannedModel]
) -> tuple[PlannedModel | None, str]:
    """The recommendation where no speed is known: what needs no disk comes first."""
    usual = next((f for f in found if f.label == DEFAULT_QUANT), None)
    resident = [f for f in running if f.resident]
    if usual is not None and usual in resident:
        return usual, "the usual balance of size and quality, and it needs no disk while it runs"
    if resident:
        instead = f"; {DEFAULT_QUANT} {_why_not(usual, running)}" if usual else ""
        best = max(resident, key=lambda f: f.model.size)
        return best, f"the largest that needs no disk while it runs{instead}"
    if usual is not None and usual in running:
        disk = format_bytes(usual.plan.tiers.disk)
        return usual, f"nothing fits in memory; of {DEFAULT_QUANT} {disk} are read from the disk"
    least_disk = min(running, key=lambda f: f.plan.tiers.disk)
    return least_disk, "nothing fits in memory; this one needs the disk least"


def best_first(found: Sequence[PlannedModel]) -> list[PlannedModel]:
    """Models that need no disk, those that do, those that do not run; in each the faster first."""

    def order(planned: PlannedModel) -> tuple[int, float, int]:
        group = 0 if planned.resident else 1 if planned.fits else 2
        return group, -(planned.tps or 0.0), planned.model.size

    return sorted(found, key=order)


def guess_for(
    entry: Entry, models: Sequence[ModelFiles], verdict_of: Callable[[int], Verdict]
) -> CatalogGuess | None:
    """The quantization of a family to look at first: the rule of ``recommend``, by size alone."""
    guesses = [CatalogGuess(entry, files, verdict_of(files.size)) for files in models]
    usual = next((g for g in guesses if g.files.quant == DEFAULT_QUANT), None)
    resident = [g for g in guesses if g.verdict in RESIDENT]
    if usual is not None and (usual in resident or (not resident and usual.verdict.fits)):
        return usual
    if resident:
        return max(resident, key=lambda g: g.files.size)
    return min(guesses, key=lambda g: g.files.size, default=None)


def rank(guesses: Sequence[CatalogGuess]) -> list[CatalogGuess]:
    """Models that run from memory, the largest first; then the others, the smallest first."""

    def order(guess: CatalogGuess) -> tuple[int, int]:
        if guess.verdict in RESIDENT:
            return 0, -guess.files.size
        return (1 if guess.verdict.fits else 2), guess.files.size

    return sorted(guesses, key=order)


def _why_not(usual: PlannedModel, quick: Sequence[PlannedModel]) -> str:
    if usual.plan.verdict.fits and not usual.fits:
        return "has no room on the disk"
    if usual.plan.verdict.runs and usual not in quick:
        return "would be too slow"
    return "would need the disk" if usual.fits else "does not fit"
