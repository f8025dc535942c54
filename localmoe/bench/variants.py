"""Settings that may be faster on this machine, and when a difference is more than noise. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from localmoe.planning.memory import EngineSettings

TURN_READ, TURN_WRITTEN = 500, 250  # tokens of the turn that settings are compared by
LEAST_GAIN = 1.05  # less is not worth a line in a file
SAMPLES = 3  # of each side, before anything is said
CHANGES_ANSWERS = frozenset({"kv-type", "repack"})  # slightly: something is rounded otherwise


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting, by its long name on the command line, with another value."""

    setting: str  # "threads" | "batch" | "kv-type" | "cache" | "repack"
    now: int | str
    value: int | str

    def __str__(self) -> str:
        return f"{self.setting} {self.value}"


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run showed. Tokens per second."""

    prefill_tps: float
    decode_tps: float

    @property
    def turn_s(self) -> float:
        """Seconds of a turn that reads TURN_READ tokens and writes TURN_WRITTEN."""
        return TURN_READ / self.prefill_tps + TURN_WRITTEN / self.decode_tps


@dataclass(frozen=True, slots=True)
class Gain:
    """Variants together against the settings as they are, from runs in turn; medians."""

    variants: tuple[Variant, ...]
    before: Sample
    after: Sample

    @property
    def factor(self) -> float:
        """How many times sooner a turn is done."""
        return self.before.turn_s / self.after.turn_s


def variants(
    settings: EngineSettings,
    regime: str,
    cores: tuple[int, int],
    prompt: int,
    fixed: Collection[str] = (),
) -> tuple[Variant, ...]:
    """What to try, the most promising first.

    ``regime``: of the expert cache in force; ``cores``: physical and logical; ``prompt``: tokens
    that a trial reads, so that larger batches would not be seen; ``fixed``: settings that somebody
    has chosen.
    """
    found = (
        *_threads(settings.threads or cores[0], cores),
        *_cache(regime),
        *_batch(settings.ubatch, prompt),
        *_kv_type(settings),
        *_repack(settings, regime),
    )
    return tuple(variant for variant in found if variant.setting not in fixed)


def _threads(now: int, cores: tuple[int, int]) -> Iterator[Variant]:
    """All cores, hyperthreads too; one left to the system; half of them."""
    physical, logical = cores
    others = dict.fromkeys((logical, physical, now - 1, now // 2))
    for count in [count for count in others if count >= 1 and count != now][:3]:
        yield Variant("threads", now, count)


def _cache(regime: str) -> Iterator[Variant]:
    """The other way to serve experts that do not fit."""
    other = {"private": "page", "page": "private", "off": "private"}.get(regime)
    if other:
        yield Variant("cache", regime, other)


def _batch(now: int, prompt: int) -> Iterator[Variant]:
    for size in (2 * now, now // 2):
        if 32 <= size <= prompt:
            yield Variant("batch", now, size)


def _kv_type(settings: EngineSettings) -> Iterator[Variant]:
    if settings.type_k == settings.type_v == "f16":
        yield Variant("kv-type", "f16", "q8_0")


def _repack(settings: EngineSettings, regime: str) -> Iterator[Variant]:
    """Copies of the weights for the processor's kernels, where all of them are in RAM."""
    if regime == "resident" and not settings.devices and not settings.repack:
        yield Variant("repack", "off", "on")


def median(samples: Sequence[Sample]) -> Sample:
    """The median of each figure by itself."""
    return Sample(
        statistics.median(sample.prefill_tps for sample in samples),
        statistics.median(sample.decode_tps for sample in samples),
    )


def promising(before: Sequence[Sample], after: Sequence[Sample]) -> bool:
    """Whether more runs could still show a gain."""
    return median(after).turn_s < median(before).turn_s


def gain(
    changed: tuple[Variant, ...], before: Sequence[Sample], after: Sequence[Sample]
) -> Gain | None:
    """The gain, if it is outside the noise: each run after beats each one before."""
    if min(len(before), len(after)) < SAMPLES:
        return None
    if max(s.turn_s for s in after) >= min(s.turn_s for s in before):
        return None
    found = Gain(changed, median(before), median(after))
    return found if found.factor >= LEAST_GAIN else None


def best_of_each(gains: Sequence[Gain]) -> tuple[Variant, ...]:
    """The best value of each setting, the greatest gain first; at most three settings."""
    chosen: dict[str, Variant] = {}
    for each in sorted(gains, key=lambda g: -g.factor):
        (variant,) = each.variants
        chosen.setdefault(variant.setting, variant)
    return tuple(chosen.values())[:3]
