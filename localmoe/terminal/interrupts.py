"""Ctrl-C while something is under way: once stops it, twice ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType

PATIENCE = 1.0  # seconds after which a Ctrl-C without effect is answered with a word


class PressedTwice(KeyboardInterrupt):
    """Ctrl-C, and again before the first was heeded."""


@dataclass(slots=True)
class Pressed:
    count: int = 0


@contextlib.contextmanager
def interrupts(
    first: Callable[[], None],
    second: Callable[[], None],
    unheeded: Callable[[], None] = lambda: None,
) -> Iterator[Pressed]:
    """Ctrl-C calls ``first``; the next ones call ``second`` and raise ``PressedTwice``.

    ``unheeded`` is called, on another thread, when the first has had no effect for a second.
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
