"""Computing and reading at the same time. Pure; without NumPy, since the planner asks."""

from __future__ import annotations


def together(computing: float, reading: float, hidden: float) -> float:
    """Seconds for both when the share ``hidden`` of the shorter one costs no time of its own."""
    return max(computing, reading) + (1 - hidden) * min(computing, reading)
