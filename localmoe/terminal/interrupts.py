"""Ctrl-C while something is under way: once stops it, twice ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType


class PressedTwice(KeyboardInterrupt):
    """Ctrl-C, and again before the first was heeded."""


@dataclass(slots=True)
class Pressed:
    count: int = 0


@contextlib.contextmanager
def interrupts(first: Callable[[], None], second: Callable[[], None]) -> Iterator[Pressed]:
    """Ctrl-C calls ``first``; the next ones call ``second`` and raise ``PressedTwice``."""
    pressed = Pressed()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def handle(signum: int, frame: FrameType | None) -> None:
        pressed.count += 1
        if pressed.count == 1:
            first()
            return
        second()
        raise PressedTwice

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
