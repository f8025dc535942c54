"""How long something takes, from best to worst, and how that is said. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.routing.overlap import together
from localmoe.text import format_bytes

Spread = tuple[float, float]  # the expected seconds are multiplied by it, at best and at worst


@dataclass(frozen=True, slots=True)
class Seconds:
    """How long something takes: at best, as expected, at worst."""

    least: float
    expected: float
    most: float

    @classmethod
    def of(cls, seconds: float, spread: Spread) -> Seconds:
        return cls(seconds * spread[0], seconds, seconds * spread[1])

    def scaled(self, factor: float) -> Seconds:
        """``factor`` times as long."""
        return Seconds(self.least * factor, self.expected * factor, self.most * factor)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.least + other.least, self.expected + other.expected, self.most + other.most
        )


NOTHING = Seconds(0.0, 0.0, 0.0)


def beside(computing: Seconds, reading: Seconds, hidden: float) -> Seconds:
    """Both, at best, as expected and at worst, as ``together`` has it."""
    return Seconds(
        together(computing.least, reading.least, hidden),
        together(computing.expected, reading.expected, hidden),
        together(computing.most, reading.most, hidden),
    )


def ms(seconds: float) -> str:
    """``0.35 ms``, ``4.2 ms``, ``148 ms``."""
    figure = 1000 * seconds
    digits = 2 if figure < 0.995 else 1 if figure < 9.95 else 0
    return f"{figure:,.{digits}f} ms"


def per_second(size: float, seconds: float) -> str:
    """``997 MiB of weights at 11.0 GB/s``; without weights, what else there is to do."""
    if not size:
        return "what is not a matrix"
    return f"{format_bytes(int(size))} of weights at {size / max(seconds, 1e-12) / 1e9:.1f} GB/s"
