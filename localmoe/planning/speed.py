"""How fast a plan will be: decode, prefill and the first token, with a range. Pure.

Seconds = bytes and multiplications of each tier ÷ the rates measured of it (``facts.bandwidth``),
plus operations × their fixed cost, plus bytes of experts missing in memory ÷ the disk's rate.
``planning/clock.py`` does the sums.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from localmoe.facts.bandwidth import Rates, value_at
from localmoe.facts.model import Model
from localmoe.planning.clock import MISS, Clock
from localmoe.planning.experience import Correction
from localmoe.planning.memory import EngineSettings, MemoryReport
from localmoe.planning.plan import BatchGain, CachePlan, Plan, Tiers, Verdict
from localmoe.planning.prefill import LONG
from localmoe.planning.seconds import Seconds
from localmoe.routing.profile import Profile

PROMPT = 512  # tokens of the prompt that a first token is forecast for
WORTH = 0.9  # larger batches read a long prompt in so much of the time, or are not used
BATCH_COST = 1.05  # what else is timed may take so many times as long for their buffers


@dataclass(frozen=True, slots=True)
class Range:
    """``expected`` is the best guess; nine of ten measurements lie between ``low`` and ``high``."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a plan will do, with a prompt of ``prompt_tokens``."""

    decode: Range  # tokens per second
    prefill: Range  # tokens per second
    loaded_first_token: (
        Range  # seconds to the first token, when the model is loaded and has read a prompt
    )
    first_token: Range  # seconds to the first token from a cold start, loading included
    prompt_tokens: int
    prompt_bytes: float  # per token of that prompt: experts read from the disk, the model loaded
    limit: str  # of decoding: "compute", "ram", "disk", "gpu", "worker" or "network"
    why: str  # one short sentence with the numbers behind it
    sent_bytes: int = 0  # of weights that ``first_token`` sends to workers


def forecast(
    model: Model,
    plan: Plan,
    rates: Rates,
    *,
    profile: Profile | None = None,
    prompt_tokens: int = PROMPT,
    decode: Correction | None = None,
    prefill: Correction | None = None,
    sent: bool = False,
) -> Forecast:
    """The forecast for a plan that fits, on a machine with these rates; ``rates.disk[0]`` is the
    disk that the model is on.

    ``profile``: how the model's experts were used here; None: a real trace of another model stands
    in. ``decode`` and ``prefill``: corrections by earlier runs. ``sent``: the plan's workers have
    kept the weights of an earlier load.
    """
    prompt_tokens = max(1, min(prompt_tokens, plan.settings.context))
    clock = Clock(model, plan, rates, profile)
    step = _corrected(clock.decode(prompt_tokens), decode)
    reading = _corrected(clock.prefill(prompt_tokens), prefill)
    first = clock.start(sent=sent) + _corrected(clock.prefill(prompt_tokens, cold=True), prefill)
    return Forecast(
        decode=Range(1 / step.most, 1 / step.expected, 1 / step.least),
        prefill=Range(
            prompt_tokens / reading.most,
            prompt_tokens / reading.expected,
            prompt_tokens / reading.least,
        ),
        loaded_first_token=Range(reading.least, reading.expected, reading.most),
        first_token=Range(first.least, first.expected, first.most),
        prompt_tokens=prompt_tokens,
        prompt_bytes=clock.prompt_bytes(prompt_tokens) / prompt_tokens,
        limit=clock.limit(prompt_tokens),
        why=clock.why(prompt_tokens)
        + (f", × {decode.factor:.2f} as in earlier runs" if decode else ""),
        sent_bytes=0 if sent else clock.sent_bytes,
    )


def tuned(
    model: Model,
    plan: Plan,
    rates: Rates,
    *,
    profile: Profile | None = None,
    keep_threads: bool = False,
) -> Plan:
    """``plan`` with the settings that these rates say are fastest: at most as many threads as
    planned, whether large batches' experts are copied to a GPU, and how large batches are there.

    So a machine with more cores, or with a GPU behind a slow bus, is never slower than one without.
    ``keep_threads``: the user has chosen them.
    """

    def threaded(choice: Plan) -> Plan:
        if keep_threads:
            return choice
        decode, prefill = clock(choice).fastest_threads(PROMPT, PROMPT)
        settings = dataclasses.replace(choice.settings, threads=decode, threads_batch=prefill)
        return dataclasses.replace(choice, settings=settings)

    def clock(choice: Plan) -> Clock:
        return Clock(model, choice, rates, profile)

    def seconds(choice: Plan) -> tuple[float, float, float]:
        """Expected, to read a long prompt and a usual one, and for a token of the answer."""
        known = clock(choice)
        first = known.prefill(prompt).expected, known.prefill(PROMPT).expected
        return *first, known.decode(PROMPT).expected

    prompt = min(LONG, plan.settings.context)
    choices = (plan, plan.off_the_bus()) if plan.without_offload else (plan,)
    best = usual = min(map(threaded, choices), key=lambda x: clock(x).prefill(PROMPT).expected)
    long, short, step = before = seconds(usual)
    for other in map(threaded, plan.larger):
        then = seconds(other)
        bounded = then[1] <= BATCH_COST * short and then[2] <= BATCH_COST * step
        if bounded and then[0] < WORTH * long:
            long = then[0]
            gain = BatchGain(
                *(prompt, other.settings.ubatch, usual.settings.ubatch),
                *(prompt / long, prompt / before[0], 1 / then[2], 1 / step),
            )
            best = dataclasses.replace(other, gain=gain)
    return dataclasses.replace(best, larger=())


def in_memory_speed(model: Model, rates: Rates, threads: int) -> tuple[float, float]:
    """The two figures that a forecast of decoding is made of, on the processor alone: tokens/s with
    every expert in memory, and bytes/s at which experts come from the disk that are not.

    What ``forecast`` expects of a private cache is both ``together``, with ``HIDDEN``.
    """
    settings = EngineSettings(context=PROMPT, threads=threads, threads_batch=threads)
    plan = Plan(
        verdict=Verdict.RAM,
        settings=settings,
        memory=MemoryReport((), exact=False),
        tiers=Tiers(0, 0, 0),
        layers=(),
        max_context=PROMPT,
        cache=CachePlan("resident", 0, ""),
        ram_budget=0,
        ram_reserve=0,
        vram_budget=0,
        reason="",
        advice=(),
    )
    clock = Clock(model, plan, rates, None)
    return 1 / clock.computing(PROMPT).expected, 1 / clock.reading(1.0).expected


def experts_read_speed(rates: Rates, size: float) -> float:
    """``in_memory_speed``'s second figure for reads of ``size`` bytes, where no model is known."""
    return value_at(rates.disk[0].reads, size) / MISS["private"]


def _corrected(seconds: Seconds, correction: Correction | None) -> Seconds:
    """``seconds`` corrected by earlier runs; the range never gets wider than without them."""
    if correction is None:
        return seconds
    moved = seconds.scaled(correction.factor)
    spread = correction.spread
    if spread is None:
        return moved
    expected = moved.expected
    return Seconds(
        max(expected / spread, moved.least), expected, min(expected * spread, moved.most)
    )
