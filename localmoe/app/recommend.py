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

HARDLY_SLOWER = 0.8  # of a smaller model's speed: the better answers are worth the difference


def recommend(
    found: Sequence[PlannedModel], min_tps: float | None = None
) -> tuple[PlannedModel | None, str]:
    """Which of a model's quantizations, ``found``, to take, and why; None: none of them.

    Q4_K_M first, the usual balance of size and quality. A model that needs no disk while it runs
    comes before one that does, unless that one is hardly slower. None below ``min_tps`` tok/s is
    taken; without ``min_tps``, none below ``speeds.SLOW`` unless all are.
    """
    running = [f for f in found if f.fits]
    quick = [f for f in running if f.reaches(min_tps)]
    if min_tps is None:
        quick = [f for f in running if not f.slow] or running
    elif running and not quick:
        return None, f"nothing of it is expected to reach {speeds.number(min_tps)} tok/s"
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


def _hardly_slower(one: PlannedModel, other: PlannedModel) -> bool:
    return one.tps is not None and other.tps is not None and one.tps >= HARDLY_SLOWER * other.tps


def _why_not(usual: PlannedModel, quick: Sequence[PlannedModel]) -> str:
    if usual.plan.verdict.fits and not usual.fits:
        return "has no room on the disk"
    if usual.fits and usual not in quick:
        return "would be too slow"
    return "would need the disk" if usual.fits else "does not fit"
