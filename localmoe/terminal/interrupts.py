"""Ctrl-C while something runs: once asks it to stop, twice ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

PATIENCE = 1.0  # seconds after a Ctrl-C without effect until ``unheeded`` is called


class PressedTwice(KeyboardInterrupt):
    """Ctrl-C was pressed again before the first one had its effect."""


@dataclass(slots=True)
class Pressed:
    count: int = 0  # of Ctrl-C


@contextlib.contextmanager
def interrupts(
    first: Callable[[], None],
    second: Callable[[], None],
    unheeded: Callable[[], None] = lambda: None,
) -> Iterator[Pressed]:
    """Within the block Ctrl-C calls ``first``; later ones call ``second`` and raise PressedTwice.

    ``unheeded`` is called, on another thread, if the block still runs PATIENCE seconds after the
    first. Does nothing on other threads than the main one, which alone gets signals.
    """
    pressed = Pressed()
    timer = threading.Timer(PATIENCE, unheeded)
    timer.daemon = True
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        pressed.count += 1
        if pressed.count == 1:
            timer.start()
            first()
            return
        second()
        raise PressedTwice

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
