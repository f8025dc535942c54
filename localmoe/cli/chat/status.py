"""What a chat says of itself: the card at its start, the lines after each turn. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.cells import cell_len
from rich.text import Text

from localmoe.chat.columns import BETWEEN, flow
from localmoe.chat.context import Meter, bar
from localmoe.chat.conversation import TurnDone
from localmoe.cli.render import TIER_NAME, TIER_STYLE, experts_short
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.text import clean_line, format_bytes, format_duration

BAR_CELLS = 10
NEARLY_FULL, FILLING = 0.9, 0.75  # fractions of the context from which the meter warns
UNBOUNDED = 1000  # cells
_TIERS = ("gpu", "ram", "disk")


def card(
    model: Model, plan: Plan, context: int, width: int = UNBOUNDED, speed: str = ""
) -> list[Text]:
    """The first lines: which model, where it lives, how long the talk may get, how fast it is."""
    facts = [model.quantization, format_bytes(model.size)]
    if model.is_moe:
        facts.append(f"{experts_short(model)} experts")
    first = [Text(clean_line(model.name), "bold"), *(Text(clean_line(f), "dim") for f in facts)]
    second = [*homes(plan), Text(f"context {context:,}"), *map(Text, speed.split(BETWEEN))]
    return [*packed(first, width), *packed(second, width)]


def packed(parts: Iterable[Text], width: int) -> list[Text]:
    """The parts that are not empty, on as few lines as hold them."""
    lines = flow((part for part in parts if part.plain), lambda part: cell_len(part.plain), width)
    between = Text.assemble((BETWEEN, "dim"))  # the style of its letters: a join takes its own on
    return [between.join(line) for line in lines]


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
    """``experts in RAM``, ``experts GPU 8 + RAM 16`` (layers) …"""
    counts = _expert_layers(plan)
    if len(counts) == 1:
        ((tier, _),) = counts
        return {"gpu": "experts on the GPU", "ram": "experts in RAM", "disk": "experts on disk"}[
            tier
        ]
    return f"experts {_spread(counts)}" if counts else ""


def _expert_layers(plan: Plan) -> list[tuple[str, int]]:
    """How many layers have their experts on each tier."""
    tiers = sorted((layer.experts for layer in plan.layers if layer.experts), key=_TIERS.index)
    return [(tier, len(list(run))) for tier, run in groupby(tiers)]


def _spread(counts: Sequence[tuple[str, int]], plus: str = " + ") -> str:
    return plus.join(f"{TIER_NAME[tier]} {count}" for tier, count in counts)


def status_lines(done: TurnDone, meter: Meter, plan: Plan | None, width: int) -> list[Text]:
    """Speed, first token, context, cache, homes of the experts, none of them left out.

    One line where ``width`` cells are enough, else two, with less detail; more in a window of less
    than 40 columns.
    """
    count, tps, hits = done.usage.completion_tokens, done.timings.decode_tps, hit_rate(done)
    speed = Text(f"{tps:.1f} tok/s" if tps is not None else "")
    tokens = Text(f"{count:,} {'token' if count == 1 else 'tokens'}")
    first = Text(f"TTFT {format_duration(done.timings.ttft_s)}")
    drawn = Text.assemble("context ", (bar(meter, BAR_CELLS), meter_style(meter)), f" {meter}")
    used = Text(f"context {meter}")
    bare = Text(f"context {meter.used:,}/{meter.context:,}")
    cache = Text(f"cache {100 * hits:.0f} %" if hits is not None else "")
    layers = _expert_layers(plan) if plan else []
    homes = Text(expert_homes(plan) if plan else "")
    short = Text(_spread(layers, "+")) if len(layers) > 1 else homes
    percent = Text(f"context {100 * meter.fraction:.0f} %")
    forms = (
        (speed, tokens, first, drawn, cache, homes),
        (speed, tokens, first, used, cache, homes),
        (speed, first, used, cache, homes),
        (speed, first, bare, cache, homes),
        (speed, first, cache, bare, short),
        (speed, first, cache, percent, short),
    )
    laid = [packed(form, width) for form in forms]
    fitting = [lines for lines in laid if all(cell_len(line.plain) <= width for line in lines)]
    few = (lines for most in (1, 2) for lines in fitting if len(lines) <= most)
    lines = next(few, laid[-1])
    for line in lines:
        line.stylize_before("dim")
    return lines


def meter_style(meter: Meter) -> str:
    """Green, then yellow, then red."""
    if meter.fraction >= NEARLY_FULL:
        return "red"
    return "yellow" if meter.fraction >= FILLING else "green"


def hit_rate(done: TurnDone) -> float | None:
    """Of the experts that this turn wanted, the part that was in memory; None: not counted."""
    cache = done.finished.cache if done.finished else None
    return cache.hit_rate if cache else None
