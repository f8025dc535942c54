"""How tests wait: until something has come about, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 300.0  # seconds; only a test that fails waits so long


def wait_until(
    done: Callable[[], object], what: str | Callable[[], object] = "it did not come about"
) -> None:
    """Returns once ``done()`` is true. Raises AssertionError with ``what`` after PATIENCE."""
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, what() if callable(what) else what
        time.sleep(0.01)
