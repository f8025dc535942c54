"""A time with its bounds."""

from __future__ import annotations

from dataclasses import dataclass

Spread = tuple[float, float]
"""Expected seconds are multiplied by the first at best, by the second at worst."""


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
