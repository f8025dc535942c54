"""``/experts``: where the experts live, where the last answer's came from, the load so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from localmoe.app.tiers import tier_names
from localmoe.engine.events import CacheStats, Finished, LayerLoad
from localmoe.planning.plan import LayerPlacement, Plan
from localmoe.text import clean_line, format_bytes, format_duration

WORST = 5  # layers that are listed


def experts_text(plan: Plan, finished: Finished | None) -> str:
    """The answer of ``/experts``; ``finished`` is the last answer's end, None before the first."""
    layers = [layer for layer in plan.layers if layer.experts is not None]
    if not layers:
        return "this model has no experts: it is dense"
    names = tier_names(plan.settings.devices)
    lines = [
        _placement(list(run), names) for _, run in groupby(layers, key=lambda layer: layer.experts)
    ]
    lines.append(f"cache: {clean_line(plan.cache.regime)}: {clean_line(plan.cache.why)}")
    if finished is None:
        return "\n".join([*lines, "ask something to see where its experts come from"])
    lines += ["", *_came_from(layers, finished.completion_tokens, finished.cache, names)]
    if finished.load:
        lines += ["", *load_so_far(finished.load)]
    return "\n".join(lines)


def _placement(run: list[LayerPlacement], names: Mapping[str, str]) -> str:
    first, last = run[0], run[-1]
    assert first.experts is not None
    span = f"layer {first.index}" if first is last else f"layers {first.index}–{last.index}"
    size = format_bytes(sum(layer.expert_bytes for layer in run))
    each = f"{first.expert_used} of {first.expert_count} per token"
    return f"{span}: {names[first.experts]}, {size}, {each}"


def sources(
    layers: Sequence[LayerPlacement], tokens: int, cache: CacheStats | None
) -> dict[str, float]:
    """Tier → how many experts the answer used from there.

    The cache counts the experts in host memory. Those on a GPU are not counted but computed: each
    token uses the same number of experts in every layer.
    """
    per_token = {"gpu": 0.0, "ram": 0.0}
    for layer in layers:
        on_gpu = layer.experts_gpu / layer.expert_bytes if layer.expert_bytes else 0.0
        per_token["gpu"] += layer.expert_used * on_gpu
        per_token["ram"] += layer.expert_used * (1 - on_gpu)
    if cache is None:
        return {tier: tokens * used for tier, used in per_token.items()} | {"disk": 0.0}
    if per_token["ram"]:
        tokens = round((cache.hits + cache.misses) / per_token["ram"])
    return {"gpu": tokens * per_token["gpu"], "ram": cache.hits, "disk": cache.misses}


def _came_from(
    layers: Sequence[LayerPlacement],
    tokens: int,
    cache: CacheStats | None,
    names: Mapping[str, str],
) -> list[str]:
    counts = sources(layers, tokens, cache)
    total = sum(counts.values())
    if not total:
        return ["last answer: no expert was needed after the prompt"]
    shares = " · ".join(
        f"{names[tier]} {100 * count / total:.1f} %" for tier, count in counts.items() if count
    )
    lines = [f"last answer: {round(total):,} experts, from {shares}"]
    if cache is None:
        return lines
    lines += [
        f"  read from disk  {cache.misses:,} experts; {format_bytes(cache.bytes_read)} with the "
        f"prompt; computing waited {format_duration(cache.stall_s)}",
        f"  in memory now   {format_bytes(cache.resident_bytes)} of {format_bytes(cache.budget)}",
    ]
    if cache.preferred:
        lines.append(f"  taken over      {cache.preferred:,} choices by experts in memory (lossy)")
    missing = [layer for layer in cache.layers if layer.misses]
    worst = sorted(missing, key=lambda layer: -layer.misses)[:WORST]
    if worst:
        rates = (
            f"{layer.layer} ({100 * layer.hits / (layer.hits + layer.misses):.0f} %)"
            for layer in worst
        )
        lines.append(f"  layers that read most, and their hit rate: {', '.join(rates)}")
    return lines


def load_so_far(load: Sequence[LayerLoad]) -> list[str]:
    """How evenly the experts were used since the model was loaded."""
    experts, used = sum(e.experts for e in load), sum(e.used for e in load)
    entropy = sum(e.entropy for e in load) / len(load)
    uneven = sorted(load, key=lambda e: e.entropy)[:WORST]
    named = ", ".join(f"{e.layer} ({e.busiest:.1f})" for e in uneven)
    return [
        f"load so far: {used:,} of {experts:,} experts used, entropy {entropy:.2f} of 1",
        f"  layers used least evenly, and their busiest ÷ mean: {named}",
    ]
