"""What a chat says of itself: the card at its start, the line after each turn. Pure."""

from __future__ import annotations

from itertools import groupby

from rich.cells import cell_len
from rich.text import Text

from localmoe.chat.context import Meter, bar
from localmoe.chat.conversation import TurnDone
from localmoe.cli.render import TIER_NAME, TIER_STYLE, experts_short
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.text import clean_line, format_bytes, format_duration

BAR_CELLS = 10
NEARLY_FULL, FILLING = 0.9, 0.75  # fractions of the context from which the meter warns


def card(model: Model, plan: Plan, context: int) -> list[Text]:
    """The first lines: which model, where it lives, how long the talk may get."""
    name = Text(clean_line(model.name), "bold")
    facts = [model.quantization, format_bytes(model.size)]
    if model.is_moe:
        facts.append(f"{experts_short(model)} experts")
    first = Text(" · ", "dim").join([name, *(Text(clean_line(f), "dim") for f in facts)])
    second = [*homes(plan), Text(f"context {context:,}")]
    return [first, Text(" · ", "dim").join(second)]


def homes(plan: Plan) -> list[Text]:
    """``GPU 12 layers``, ``RAM 17.7 GiB``, ``disk 628 MiB``: what is used of each."""
    tiers = (("gpu", plan.tiers.gpu), ("ram", plan.tiers.ram), ("disk", plan.tiers.disk))
    found = []
    for tier, count in tiers:
        if not count:
            continue
        layers = sum(layer.dense == tier for layer in plan.layers)
        what = f" ({layers} layers)" if tier == "gpu" else ""
        text = Text(f"{TIER_NAME[tier]} ", style=TIER_STYLE[tier])
        found.append(text.append(f"{format_bytes(count)}{what}", "default"))
    return found


def expert_homes(plan: Plan) -> str:
    """``experts in RAM``, ``experts: 8 layers GPU, 16 RAM`` …"""
    homes_of = [layer.experts for layer in plan.layers if layer.experts]
    if not homes_of:
        return ""
    runs = [(tier, len(list(run))) for tier, run in groupby(sorted(homes_of, key=_TIERS.index))]
    if len(runs) == 1:
        return {"gpu": "experts on the GPU", "ram": "experts in RAM", "disk": "experts on disk"}[
            runs[0][0]
        ]
    return "experts " + " + ".join(f"{TIER_NAME[tier]} {count}" for tier, count in runs)


_TIERS = ("gpu", "ram", "disk")


def status_line(done: TurnDone, meter: Meter, plan: Plan | None, width: int) -> Text:
    """One line of at most ``width`` cells: the most telling figures that have room."""
    count, tps, hits = done.usage.completion_tokens, done.timings.decode_tps, hit_rate(done)
    speed = Text(f"{tps:.1f} tok/s" if tps is not None else "")
    tokens = Text(f"{count:,} {'token' if count == 1 else 'tokens'}")
    first = Text(f"TTFT {format_duration(done.timings.ttft_s)}")
    used = Text(f"context {meter}")
    drawn = Text.assemble("context ", (bar(meter, BAR_CELLS), meter_style(meter)), f" {meter}")
    percent = Text(f"context {100 * meter.fraction:.0f} %")
    cache = Text(f"cache {100 * hits:.0f} %" if hits is not None else "")
    homes = Text(expert_homes(plan) if plan else "")
    for parts in (
        (speed, tokens, first, drawn, cache, homes),
        (speed, tokens, first, used, cache, homes),
        (speed, first, used, cache, homes),
        (speed, first, used, cache),
        (speed, used, cache),
        (speed, used),
        (speed, percent),
    ):
        line = Text(" · ").join([part for part in parts if part.plain])
        if cell_len(line.plain) <= width:
            break
    line.stylize_before("dim")
    return line


def meter_style(meter: Meter) -> str:
    """Green, then yellow, then red."""
    if meter.fraction >= NEARLY_FULL:
        return "red"
    return "yellow" if meter.fraction >= FILLING else "green"


def hit_rate(done: TurnDone) -> float | None:
    """Of the experts that this turn wanted, the part that was in memory; None: not counted."""
    cache = done.finished.cache if done.finished else None
    return cache.hit_rate if cache else None


def why_it_ended(done: TurnDone, context: int) -> str | None:
    """A sentence when the answer did not end by itself."""
    if done.finish_reason == "interrupted":
        return "interrupted; what is there is kept"
    if done.finish_reason != "length":
        return None
    if done.usage.total >= context:
        return f"stopped: the context of {context:,} tokens is full (--ctx N makes it larger)"
    return f"stopped after {done.usage.completion_tokens:,} tokens, as asked (/set max_tokens)"
