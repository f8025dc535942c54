"""How often a question to a server is asked again, and how long is waited before."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from localmoe.errors import LocalmoeError
from localmoe.text import format_duration

TOLD = 1.0  # seconds; of a longer pause that a server asks for, the user is told

T = TypeVar("T")


def _say_nothing(_text: str) -> None:
    """The default of ``Patience.tell``: nobody is told."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to try again, how long to wait before, and who is told of it."""

    tries: int = 8  # in a row that bring nothing new: half a minute without a network
    first: float = 0.5  # seconds; each further pause is twice as long
    most: float = 8.0
    longest: float = 120.0  # seconds that a server may ask for
    tell: Callable[[str], object] = _say_nothing  # a line, before a pause that a server asks for

    def pause(self, failures: int, problem: TryAgainError) -> float | None:
        """Seconds to wait after so many failures in a row; None: give up.

        Tells of a pause that the server has asked for.
        """
        if failures >= self.tries:
            return None
        asked = problem.asked
        if asked is None:
            return min(self.most, self.first * 2.0 ** (failures - 1))
        if asked > self.longest:
            return None
        if asked >= TOLD:
            self.tell(f"{problem.what}: waiting {format_duration(asked)}")
        return asked


# Somebody waits for the answer; three failures in a row cost less than two seconds.
ASKING: Patience = Patience(tries=5, first=0.25, longest=20)


class TryAgainError(Exception):
    """A failure that may pass by itself. ``error`` is raised when it does not."""

    def __init__(
        self, error: LocalmoeError, asked: float | None = None, what: str | None = None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.asked = asked  # seconds that the server wants us to wait
        self.what = what or error.message  # the failure, for a line that says how long we wait


def persistently(
    action: Callable[[], T], patience: Patience, sleep: Callable[[float], object]
) -> T:
    """The result of ``action``, called again while it raises TryAgainError and patience lasts."""
    failures = 0
    while True:
        try:
            return action()
        except TryAgainError as problem:
            failures += 1
            pause = patience.pause(failures, problem)
            if pause is None:
                raise problem.error from problem
            sleep(pause)
