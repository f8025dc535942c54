"""The tiers of memory, and which of them hold a plan's experts, in words. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from localmoe.planning.places import holder, kind_of
from localmoe.planning.plan import LayerPlacement, Plan


def tier_names(devices: Sequence[str]) -> dict[str, str]:
    """What each tier is called with these devices: "gpu" may be another machine's memory."""
    return {"gpu": kind_of(devices), "ram": "RAM", "disk": "disk"}


def _places(plan: Plan) -> dict[str, str]:
    """Where something is that is on a tier, the fastest first."""
    return {
        "gpu": f"on {holder(plan.settings.devices)}",
        "ram": "in RAM",
        "split": "in RAM and on disk",
        "disk": "on disk",
    }


def layers_by_tier(plan: Plan) -> dict[str, int]:
    """Tier → number of layers with experts there; a layer on several counts for the slowest."""
    return _counted([layer.experts for layer in plan.layers])


def experts_place(plan: Plan) -> str:
    """``experts in RAM``, ``experts GPU 8 + RAM 16`` (layers); "" for a dense model."""
    counts = layers_by_tier(plan)
    if len(counts) == 1:
        return f"experts {_places(plan)[next(iter(counts))]}"
    return f"experts {joined(counts, plan)}" if counts else ""


def joined(counts: dict[str, int], plan: Plan, plus: str = " + ") -> str:
    """``GPU 8 + RAM 16``."""
    names = tier_names(plan.settings.devices)
    return plus.join(f"{names[tier]} {count}" for tier, count in counts.items())


def experts_sentence(plan: Plan) -> str:
    """``experts in RAM``, ``experts of 8 layers on the GPU, of 16 in RAM`` …"""
    counts = _counted([_tier_or_split(layer) for layer in plan.layers])
    if not counts:
        return "no experts (dense)"
    (tier, count), *others = counts.items()
    places = _places(plan)
    if not others:
        return f"experts {places[tier]}"
    layers = "layer" if count == 1 else "layers"
    rest = "".join(f", of {number} {places[other]}" for other, number in others)
    return f"experts of {count} {layers} {places[tier]}{rest}"


def _tier_or_split(layer: LayerPlacement) -> str | None:
    return "split" if layer.experts_ram and layer.experts_disk else layer.experts


def _counted(tiers: list[str | None]) -> dict[str, int]:
    """How often each tier occurs, the fastest first."""
    found = Counter(tiers)
    return {tier: found[tier] for tier in ("gpu", "ram", "split", "disk") if found[tier]}
