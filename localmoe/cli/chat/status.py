"""The lines at the start of a chat and after each turn. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from rich.text import Text

from localmoe.app.tiers import experts_place, joined, layers_by_tier, tier_names
from localmoe.chat.columns import BETWEEN, flow
from localmoe.chat.context import Meter, bar
from localmoe.chat.events import TurnDone
from localmoe.cli.render import experts_short
from localmoe.facts.model import Model
from localmoe.planning.plan import Plan
from localmoe.terminal.placement import TIER_STYLE
from localmoe.text import clean_line, counted, format_bytes, format_duration, format_size

BAR_CELLS = 10
NEARLY_FULL, FILLING = 0.9, 0.75  # fractions of the context from which the meter warns
UNBOUNDED = 1000  # cells


def card(
    model: Model, plan: Plan, context: int, width: int = UNBOUNDED, speed: str = ""
) -> list[Text]:
    """The first lines of a chat: model, memory per tier, tokens of context, speed.

    ``width`` is in cells; each line has as many facts as fit.
    """
    facts = [model.quantization, format_size(model.size)]
    if model.is_moe:
        facts.append(f"{experts_short(model)} experts")
    first = [Text(clean_line(model.name), "bold"), *(Text(clean_line(f), "dim") for f in facts)]
    second = [*used_memory(plan), Text(f"context {context:,}"), *map(Text, speed.split(BETWEEN))]
    return [*packed(first, width), *packed(second, width)]


def packed(parts: Iterable[Text], width: int) -> list[Text]:
    """The parts that are not empty, on as few lines as hold them."""
    lines = flow((part for part in parts if part.plain), lambda part: cell_len(part.plain), width)
    between = Text.assemble((BETWEEN, "dim"))  # a style of the text itself: ``join`` drops others
    return [between.join(line) for line in lines]


def used_memory(plan: Plan) -> list[Text]:
    """``GPU 5.1 GiB (12 layers)``, ``RAM 17.7 GiB``, ``disk 628 MiB``: bytes on each tier."""
    tiers = (("gpu", plan.tiers.gpu), ("ram", plan.tiers.ram), ("disk", plan.tiers.disk))
    found, names = [], tier_names(plan.settings.devices)
    for tier, count in tiers:
        if not count:
            continue
        layers = sum(layer.dense == tier for layer in plan.layers)
        what = f" ({counted(layers, 'layer')})" if tier == "gpu" else ""
        text = Text(f"{names[tier]} ", style=TIER_STYLE[tier])
        found.append(text.append(f"{format_bytes(count)}{what}", "default"))
    return found


def status_lines(done: TurnDone, meter: Meter, plan: Plan | None, width: int) -> list[Text]:
    """Speed, time to first token, context, cache hit rate, tiers of the experts: always all five.

    The most detailed form that fits on one line of ``width`` cells, else on two, else the shortest.
    """
    count, tps, hits = done.usage.completion_tokens, done.timings.decode_tps, hit_rate(done)
    speed = Text(f"{tps:.1f} tok/s" if tps is not None else "")
    tokens = Text(f"{count:,} {'token' if count == 1 else 'tokens'}")
    first = Text(f"TTFT {format_duration(done.timings.ttft_s)}")
    drawn = Text.assemble("context ", (bar(meter, BAR_CELLS), meter_style(meter)), f" {meter}")
    used = Text(f"context {meter}")
    bare = Text(f"context {meter.used:,}/{meter.context:,}")
    cache = Text(f"cache {100 * hits:.0f} %" if hits is not None else "")
    layers = layers_by_tier(plan) if plan else {}
    experts = Text(experts_place(plan) if plan else "")
    short = Text(joined(layers, plan, "+")) if plan and len(layers) > 1 else experts
    percent = Text(f"context {100 * meter.fraction:.0f} %")
    forms = (
        (speed, tokens, first, drawn, cache, experts),
        (speed, tokens, first, used, cache, experts),
        (speed, first, used, cache, experts),
        (speed, first, bare, cache, experts),
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
    """The fraction of this turn's experts that were in memory already; None: not counted."""
    cache = done.finished.cache if done.finished else None
    return cache.hit_rate if cache else None
