"""Processor time in a unit that neither a busy nor a slow machine changes."""

from __future__ import annotations

import time


def yards(seconds: float) -> float:
    """Processor seconds of Python as multiples of what a million additions take here and now.

    About 30 of them are a second on a machine of 2024.
    """
    started = time.thread_time()
    total = 0
    for number in range(1_000_000):
        total += number
    return seconds / (time.thread_time() - started)
