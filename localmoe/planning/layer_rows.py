"""The layer table of a plan: how many bytes of each layer are on GPU, in RAM, on the disk. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from localmoe.facts.model import Model
from localmoe.planning.cache_shares import even_shares, layer_uses, planned_shares
from localmoe.planning.candidates import Candidate
from localmoe.planning.layout import layer_homes
from localmoe.planning.memory import CPU
from localmoe.planning.plan import LayerPlacement
from localmoe.routing.profile import Profile


def layer_rows(
    model: Model, candidate: Candidate, tiers: Mapping[int, str], profile: Profile | None
) -> Iterator[LayerPlacement]:
    """One row per layer. ``tiers``: layer → "gpu", "ram" or "disk" where the user said so."""
    homes = layer_homes(model, candidate.settings)
    wanted = {index: tier for index, tier in tiers.items() if tier != "gpu"}
    kept = bytes_in_ram(model, candidate, wanted, profile)
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


def bytes_in_ram(
    model: Model, candidate: Candidate, tiers: Mapping[int, str], profile: Profile | None
) -> dict[int, int]:
    """Layer → bytes of its experts that stay in RAM. ``tiers``: layer → "ram" or "disk".

    A layer wished in RAM stays whole; the others share what is left.
    """
    host = candidate.host_experts
    kept = {index: host[index] for index in host if tiers.get(index) == "ram"}
    free = {index: count for index, count in host.items() if index not in tiers}
    left = candidate.room - sum(kept.values())
    part = layer_shares(model, free, left, profile)
    kept |= {index: int(part[index] * count) for index, count in free.items() if index in part}
    rounded = min(left, sum(free.values())) - sum(kept[index] for index in free if index in kept)
    for index in free:  # what rounding down has left over, so that the rows add up to the byte
        more = min(rounded, free[index] - kept.get(index, 0))
        kept[index] = kept.get(index, 0) + more
        rounded -= more
    return kept


def cache_shares_of(
    model: Model, candidate: Candidate, tiers: Mapping[int, str], room: int, profile: Profile | None
) -> tuple[tuple[int, float], ...]:
    """``EngineSettings.cache_shares``: (layer, share of its experts) for a cache of ``room`` bytes.

    Empty when every layer gets the same share. Layers wished in RAM are served first; those wished
    on the disk get what the others leave.
    """
    host = candidate.host_experts
    wanted = {index: tier for index, tier in tiers.items() if index in host and tier != "gpu"}
    if profile is None and not wanted:
        return ()
    found: dict[int, float] = {}
    for tier in ("ram", None, "disk"):
        group = {i: n for i, n in host.items() if wanted.get(i) == tier}
        found |= layer_shares(model, group, max(0, room), profile)
        room -= sum(group.values())
    return tuple(sorted((index, round(share, 6)) for index, share in found.items()))


def layer_shares(
    model: Model, host_experts: Mapping[int, int], room: int, profile: Profile | None
) -> dict[int, float]:
    """Layer → share of its experts that ``room`` bytes hold. ``host_experts``: layer → bytes."""
    uses = layer_uses(model, host_experts, profile)
    return even_shares(uses, room) if profile is None else planned_shares(uses, room)
