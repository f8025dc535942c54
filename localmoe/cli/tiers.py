"""The tiers of memory, and which of them hold a plan's experts, in words. Pure."""

from __future__ import annotations

from collections import Counter

from localmoe.planning.plan import LayerPlacement, Plan

TIER_NAME = {"gpu": "GPU", "ram": "RAM", "disk": "disk"}
TIER_STYLE = {"gpu": "green", "ram": "cyan", "disk": "yellow"}
PLACES = {"gpu": "on the GPU", "ram": "in RAM", "split": "in RAM and on disk", "disk": "on disk"}


def layers_by_tier(plan: Plan) -> dict[str, int]:
    """Tier → number of layers with experts there; a layer on several counts for the slowest."""
    return _counted([layer.experts for layer in plan.layers])


def experts_place(plan: Plan) -> str:
    """``experts in RAM``, ``experts GPU 8 + RAM 16`` (layers); "" for a dense model."""
    counts = layers_by_tier(plan)
    if len(counts) == 1:
        return f"experts {PLACES[next(iter(counts))]}"
    return f"experts {joined(counts)}" if counts else ""


def joined(counts: dict[str, int], plus: str = " + ") -> str:
    """``GPU 8 + RAM 16``."""
    return plus.join(f"{TIER_NAME[tier]} {count}" for tier, count in counts.items())


def experts_sentence(plan: Plan) -> str:
    """``experts in RAM``, ``experts of 8 layers on the GPU, of 16 in RAM`` …"""
    counts = _counted([_tier_or_split(layer) for layer in plan.layers])
    if not counts:
        return "no experts (dense)"
    (tier, count), *others = counts.items()
    if not others:
        return f"experts {PLACES[tier]}"
    layers = "layer" if count == 1 else "layers"
    rest = "".join(f", of {number} {PLACES[other]}" for other, number in others)
    return f"experts of {count} {layers} {PLACES[tier]}{rest}"


def _tier_or_split(layer: LayerPlacement) -> str | None:
    return "split" if layer.experts_ram and layer.experts_disk else layer.experts


def _counted(tiers: list[str | None]) -> dict[str, int]:
    """How often each tier occurs, in the order of PLACES."""
    found = Counter(tiers)
    return {tier: found[tier] for tier in PLACES if found[tier]}
