"""What earlier runs say of the next one's speed. Pure.

Of the same model in the same place a few runs say more than any sum; of other models they say
whether this machine is faster or slower than was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LATEST = 8  # runs of the same model that count
OTHERS = 24  # runs of other models
WEIGHT = 6  # runs of other models that count half
LEAST_SPREAD = 1.12  # of two runs one after the other
FIRST_SPREAD = 1.18  # after a single run
FARTHEST = 4.0  # × a forecast: what differs more was disturbed, or is another thing


@dataclass(frozen=True, slots=True)
class Correction:
    """Measured ÷ forecast seconds, and a factor ≥ 1 for both borders; None: as without runs."""

    factor: float
    spread: float | None


def correction(same: Sequence[float], others: Sequence[float]) -> Correction | None:
    """From ratios (measured ÷ forecast seconds), oldest first.

    ``same``: of the same model in the same place; ``others``: of others on this machine. None
    where there are none.
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
