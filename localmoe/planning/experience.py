"""Corrects a forecast by earlier runs. Pure.

Each run gives a ratio, measured seconds ÷ forecast seconds. A few ratios of the same model on the
same tiers tell more than the forecast itself. Ratios of other models tell whether this machine is
generally faster or slower than its rates say.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LATEST = 8  # the last so many runs of the same model count
OTHERS = 24  # the last so many runs of other models count
WEIGHT = 6  # with so many runs of other models, half of their median is believed
LEAST_SPREAD = 1.12  # two runs one after the other differ by as much
FIRST_SPREAD = 1.18  # the spread that is assumed after a single run
FARTHEST = 4.0  # × a forecast; a run that differs more was disturbed and is left out


@dataclass(frozen=True, slots=True)
class Correction:
    """``factor``: expected seconds are multiplied by it. ``spread`` (≥ 1): the range goes from
    expected ÷ spread to expected × spread; None leaves the range as it is without runs.
    """

    factor: float
    spread: float | None


def correction(same: Sequence[float], others: Sequence[float]) -> Correction | None:
    """The correction that ratios (measured ÷ forecast seconds), oldest first, suggest.

    ``same``: ratios of this model on the same tiers; ``others``: of other models on this machine.
    None when both are empty.
    """
    same, others = _plausible(same)[-LATEST:], _plausible(others)[-OTHERS:]
    if same:
        factor = statistics.median(same)
        scatter = max(max(ratio / factor, factor / ratio) for ratio in same)
        least = LEAST_SPREAD + (FIRST_SPREAD - LEAST_SPREAD) / len(same)
        return Correction(factor, max(scatter, least))
    if others:
        share = len(others) / (len(others) + WEIGHT)
        return Correction(math.exp(share * math.log(statistics.median(others))), None)
    return None


def _plausible(ratios: Sequence[float]) -> list[float]:
    return [ratio for ratio in ratios if 1 / FARTHEST <= ratio <= FARTHEST]
