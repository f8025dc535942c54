"""How full the context is, and what to do when the next turn would not fit. Pure.

Nothing is ever cut silently: a turn that does not fit is announced with its numbers, and one of
``Overflow`` is chosen, by the user or by a stated setting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

LEAST_ANSWER, MOST_ANSWER = 32, 512  # tokens that are set aside for an answer


class Overflow(StrEnum):
    """What happens when a turn does not fit."""

    ASK = "ask"
    DROP = "drop"  # the oldest turns are not sent any more
    SUMMARISE = "summarise"  # the oldest turns are sent as a summary that the model writes
    STOP = "stop"  # the turn is refused


@dataclass(frozen=True, slots=True)
class Meter:
    """Tokens used of a context."""

    used: int
    context: int

    @property
    def fraction(self) -> float:
        return min(1.0, self.used / self.context) if self.context else 1.0

    def __str__(self) -> str:
        return f"{self.used:,}/{self.context:,} ({100 * self.fraction:.0f} %)"


def bar(meter: Meter, width: int) -> str:
    """``━━━━╌╌╌╌``: at least one cell once anything is used."""
    filled = round(meter.fraction * width)
    filled = max(filled, 1) if meter.used else 0
    return "━" * filled + "╌" * (width - filled)


def larger_context(context: int, trained: int) -> str:
    """``, or use a larger --ctx``, to follow advice; "" for a model that was not trained for more
    tokens (0: nobody knows).
    """
    return "" if trained and context >= trained else ", or use a larger --ctx"


def answer_room(context: int, max_tokens: int | None) -> int:
    """Tokens to set aside for the answer: an eighth of the context, within bounds."""
    room = max(LEAST_ANSWER, min(MOST_ANSWER, context // 8))
    return room if max_tokens is None else min(room, max_tokens)


@dataclass(frozen=True, slots=True)
class Shortage:
    """A turn that does not fit, and how many of the oldest turns stand in its way."""

    needed: int  # tokens of its prompt
    room: int  # tokens set aside for the answer
    context: int
    drop: int | None  # turns to leave out, those left out before counted; None: it never fits
    after: int = 0  # tokens of the prompt then

    @property
    def message(self) -> str:
        return (
            f"the next turn does not fit: {self.needed:,} tokens and {self.room:,} for the answer, "
            f"the context has {self.context:,}"
        )


def find_shortage(
    count: Callable[[int], int], skipped: int, turns: int, context: int, room: int
) -> Shortage | None:
    """How much too long the next turn is; None when it fits.

    ``count(skip)`` is the number of tokens of its prompt without the oldest ``skip`` turns, and
    falls as ``skip`` grows; ``skipped`` of the ``turns`` are left out already. Enough turns go to
    leave half of the context free, so that the next turns fit, too; or, where the turn itself is
    too long for that, just enough.
    """
    needed = count(skipped)
    if needed + room <= context:
        return None
    for limit in (context // 2, context - room):
        drop = _fewest(count, skipped, turns, limit)
        if drop is not None:
            return Shortage(needed, room, context, drop, count(drop))
    return Shortage(needed, room, context, None)


def _fewest(count: Callable[[int], int], low: int, high: int, limit: int) -> int | None:
    """The smallest skip from ``low`` to ``high`` with ``count(skip) <= limit``."""
    if count(high) > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        if count(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return low


def surely_fits(text_bytes: int, used: int, context: int, room: int) -> bool:
    """Whether a message fits without counting: no tokenizer makes more tokens than bytes."""
    return used + text_bytes + 256 + room <= context
