"""The search for faster settings: trials in turn, as long as there is time.

First every variant is tried once beside the settings as they are, and what is not faster is left
out; the best of the rest are tried again, in turn with them, until there are enough runs. Then the
best values together must show their gain once more, in new runs: of many tries one looks good by
chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localmoe.bench.variants import (
    SAMPLES,
    Gain,
    Sample,
    Variant,
    best_of_each,
    gain,
    median,
    promising,
)
from localmoe.errors import LocalmoeError

Changed = tuple[Variant, ...]
"""The settings that have another value; () means: none, the settings as they are."""

AS_IT_IS: Changed = ()

FINALISTS = 3  # that are tried again after the first round

Measure = Callable[[Changed], Sample]
"""One run. Raises LocalmoeError for settings that do not work."""


class OutOfTimeError(Exception):
    """Another trial would end too late."""


@dataclass(slots=True)
class Tuning:
    """What was tried and found so far, whenever it ends: at its end, out of time, interrupted."""

    measure: Measure
    seconds: float  # that it may take
    tell: Callable[[str], None] = lambda text: None
    clock: Callable[[], float] = time.monotonic
    variants: Sequence[Variant] = ()
    trials: int = 0
    single: list[Gain] = field(default_factory=list)  # each setting by itself
    confirmed: Gain | None = None  # those of ``single`` that hold together, in new runs
    complete: bool = False  # it came to its end before its time was over
    _samples: dict[Changed, list[Sample]] = field(default_factory=dict)
    _since: float | None = None
    _longest: float = 0.0  # seconds of a trial

    @property
    def took(self) -> float:
        """Seconds since the first trial began."""
        return 0.0 if self._since is None else self.clock() - self._since

    @property
    def chosen(self) -> list[Gain]:
        """The gain of each setting that was confirmed, by itself."""
        if self.confirmed is None:
            return []
        by_itself = {gain.variants: gain for gain in self.single}
        return [by_itself[(variant,)] for variant in self.confirmed.variants]

    def run(self, variants: Sequence[Variant]) -> None:
        """Try them. Raises what ``measure`` raises for the settings as they are."""
        self.variants = variants
        try:
            self._look()
            self._confirm()
            self.complete = True
        except OutOfTimeError:
            pass

    def one(self, changed: Changed = AS_IT_IS) -> Sample:
        """One trial. Raises OutOfTimeError instead of one that would end too late."""
        started = self.clock()
        if self._since is None:
            self._since = started
        if self.took + self._longest > self.seconds and self.trials:
            raise OutOfTimeError
        self.tell(" and ".join(map(str, changed)) or "as it is")
        try:
            return self.measure(changed)
        finally:
            self.trials += 1
            self._longest = max(self._longest, self.clock() - started)

    def _look(self) -> None:
        alive: list[Changed] = [(variant,) for variant in self.variants]
        for _ in range(SAMPLES):
            if alive:
                self._round([AS_IT_IS, *alive])
            alive = [c for c in alive if c in self._samples and self._promising(c)]
            alive = sorted(alive, key=self._turn_s)[:FINALISTS]
        found = [gain(c, self._samples[AS_IT_IS], self._samples[c]) for c in alive]
        self.single = [each for each in found if each is not None]

    def _confirm(self) -> None:
        """The best values together; else the best one alone."""
        together = best_of_each(self.single)
        for changed in dict.fromkeys((together, together[:1])):
            if not changed or self.confirmed is not None:
                return
            self._samples.clear()
            for _ in range(SAMPLES):
                self._round([AS_IT_IS, changed])
            self.confirmed = gain(changed, self._samples[AS_IT_IS], self._samples.get(changed, []))

    def _round(self, all_: Sequence[Changed]) -> None:
        """One trial of each; settings that do not work are left out from then on."""
        for changed in all_:
            try:
                self._samples.setdefault(changed, []).append(self.one(changed))
            except LocalmoeError:
                if changed == AS_IT_IS:
                    raise
                del self._samples[changed]

    def _turn_s(self, changed: Changed) -> float:
        return median(self._samples[changed]).turn_s

    def _promising(self, changed: Changed) -> bool:
        return promising(self._samples[AS_IT_IS], self._samples[changed])
