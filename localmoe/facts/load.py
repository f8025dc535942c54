"""What other programs take of the processors while something is measured."""

from __future__ import annotations

import os
import time

import psutil


class Load:
    """Processor time of all programs and of ours, counted from when this object is made."""

    def __init__(self) -> None:
        self._began, self._busy, self._own = time.perf_counter(), _busy(), _own()

    def others(self) -> float:
        """The share of all processors, 0 … 1, that was taken by others since.

        Ours are this process and those that it has waited for.
        """
        seconds = (time.perf_counter() - self._began) * (psutil.cpu_count() or 1)
        taken = (_busy() - self._busy) - (_own() - self._own)
        return min(1.0, max(0.0, taken / max(seconds, 1e-9)))


def _busy() -> float:
    """Processor seconds since the start of the machine that were not idle."""
    times = psutil.cpu_times()
    # A guest's time is in the user's already.
    apart = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(seconds for name, seconds in times._asdict().items() if name not in apart))


def _own() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system
