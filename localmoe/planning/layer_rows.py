"""What of each layer is where, of a placement that was decided: the rows of a plan. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from localmoe.facts.model import Model
from localmoe.planning.cache_shares import even_shares, layer_uses, shares
from localmoe.planning.candidates import Candidate
from localmoe.planning.layout import layer_homes
from localmoe.planning.memory import CPU
from localmoe.planning.plan import LayerPlacement
from localmoe.routing.profile import Profile


def layer_rows(
    model: Model, candidate: Candidate, tiers: Mapping[int, str], profile: Profile | None
) -> Iterator[LayerPlacement]:
    """One row per layer. ``tiers``: where the user wants a layer's experts ("ram", "disk")."""
    homes = layer_homes(model, candidate.settings)
    wanted = {index: tier for index, tier in tiers.items() if tier != "gpu"}
    kept = in_ram(model, candidate, wanted, profile)
    for layer in model.layers:
        here = candidate.host_experts.get(layer.index, 0)
        ram = kept.get(layer.index, 0)
        experts: str | None = None
        if layer.expert_count:
            experts = "gpu" if not here else "ram" if ram == here else "disk"
        yield LayerPlacement(
            index=layer.index,
            dense="ram" if homes[layer.index] == CPU else "gpu",
            experts=experts,
            dense_bytes=layer.dense_bytes,
            expert_bytes=layer.expert_bytes,
            expert_count=layer.expert_count,
            expert_used=layer.expert_used,
            device=homes[layer.index],
            experts_gpu=layer.expert_bytes - here,
            experts_ram=ram,
            experts_disk=here - ram,
        )


def in_ram(
    model: Model, candidate: Candidate, tiers: Mapping[int, str], profile: Profile | None
) -> dict[int, int]:
    """Bytes of each layer's experts that stay in RAM; whole layers only where it is wished."""
    host = candidate.host_experts
    kept = {index: host[index] for index in host if tiers.get(index) == "ram"}
    free = {index: count for index, count in host.items() if index not in tiers}
    left = candidate.room - sum(kept.values())
    part = parts(model, free, left, profile)
    kept |= {index: int(part[index] * count) for index, count in free.items() if index in part}
    rounded = min(left, sum(free.values())) - sum(kept[index] for index in free if index in kept)
    for index in free:  # to the byte
        more = min(rounded, free[index] - kept.get(index, 0))
        kept[index] = kept.get(index, 0) + more
        rounded -= more
    return kept


def cache_shares(
    model: Model, candidate: Candidate, tiers: Mapping[int, str], room: int, profile: Profile | None
) -> tuple[tuple[int, float], ...]:
    """(layer, share of its experts) for a cache of ``room`` bytes; () when all are treated alike.

    Layers that shall be in RAM come first; those that shall be on the disk get what is left.
    """
    host = candidate.host_experts
    wanted = {index: tier for index, tier in tiers.items() if index in host and tier != "gpu"}
    if profile is None and not wanted:
        return ()
    found: dict[int, float] = {}
    for tier in ("ram", None, "disk"):
        group = {i: n for i, n in host.items() if wanted.get(i) == tier}
        found |= parts(model, group, max(0, room), profile)
        room -= sum(group.values())
    return tuple(sorted((index, round(share, 6)) for index, share in found.items()))


def parts(
    model: Model, host_experts: Mapping[int, int], room: int, profile: Profile | None
) -> dict[int, float]:
    """The share of each layer's experts in ``room`` bytes."""
    uses = layer_uses(model, host_experts, profile)
    return even_shares(uses, room) if profile is None else shares(uses, room)
