"""Each layer's part of the memory for experts, where they do not all fit. Pure.

Without a routing profile every layer keeps the same share of its experts. A profile says how often
each expert was chosen, and every choice of an expert that is kept saves one read; so memory goes to
the experts that are chosen most, whichever layer they belong to. Only the number of experts per
layer is planned; which ones a layer keeps is decided while it runs (docs/policies.md). A layer that
chooses all its experts equally often has the most misses at any share below 1, so it gains most
from being on a GPU as a whole. docs/placement.md has what this gains on recorded routings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localmoe.facts.model import Model
from localmoe.routing.profile import Profile

ENOUGH = 64  # tokens; a profile of fewer is too short to tell the layers apart
PRIOR_USES = 1.0  # added to the uses of each expert, so that none counts as never used
EVEN_PART = 0.5  # of the memory is shared out evenly: the next questions may be of another kind


@dataclass(frozen=True, slots=True)
class LayerUse:
    """The routed experts of one layer that are not on a GPU, and how often they are chosen."""

    index: int
    nbytes: int  # of all these experts
    used: int  # experts per token (top-k)
    chosen: tuple[float, ...]  # each expert's share of the layer's choices, descending; sums to 1

    @property
    def each(self) -> float:
        """Bytes of one expert."""
        return self.nbytes / len(self.chosen)

    def missed_bytes(self, share: float) -> float:
        """Expert bytes per token that must be read when the most chosen ``share`` (0 to 1) of the
        experts is in memory.
        """
        kept = share * len(self.chosen)
        whole = int(kept)
        hits = sum(self.chosen[:whole])
        if whole < len(self.chosen):
            hits += (kept - whole) * self.chosen[whole]
        return self.used * self.each * max(0.0, 1 - hits)


def layer_uses(
    model: Model, host_experts: Mapping[int, int], profile: Profile | None
) -> tuple[LayerUse, ...]:
    """One ``LayerUse`` per layer of ``host_experts`` (layer → bytes of experts not on a GPU).

    Without a profile all experts of a layer count as chosen equally often.
    """
    return tuple(
        LayerUse(
            index, nbytes, layer.expert_used, chosen_shares(layer.expert_count, index, profile)
        )
        for index, nbytes in sorted(host_experts.items())
        if nbytes and (layer := model.layers[index]).expert_count
    )


def chosen_shares(experts: int, layer: int, profile: Profile | None) -> tuple[float, ...]:
    """What ``LayerUse.chosen`` is for one layer; even where the profile lacks that layer."""
    row = profile.counts.get(layer, ()) if profile is not None else ()
    if len(row) != experts:
        return (1 / experts,) * experts
    total = sum(row) + PRIOR_USES * experts
    return tuple((uses + PRIOR_USES) / total for uses in sorted(row, reverse=True))


def trusted(model: Model, profile: Profile | None) -> Profile | None:
    """The profile, if it belongs to a model of this shape and has at least ``ENOUGH`` tokens."""
    if profile is None or profile.tokens < ENOUGH:
        return None
    shape = tuple((e.index, e.expert_count) for e in model.layers if e.expert_count)
    return profile if profile.shape == shape else None


def even_shares(uses: Sequence[LayerUse], room: int) -> dict[int, float]:
    """Layer → share of its experts kept: the same for all, the largest that ``room`` bytes hold."""
    total = sum(use.nbytes for use in uses)
    share = min(1.0, room / total) if total else 1.0
    return {use.index: share for use in uses}


def shares_by_use(uses: Sequence[LayerUse], room: int) -> dict[int, float]:
    """Layer → share of its experts kept, so that the fewest bytes are read: ``room`` bytes go to
    the experts chosen most.

    A layer keeps at least as many experts as one token uses. Where ``room`` is too small even for
    that, the shares are even.
    """
    kept = {use.index: min(use.used, len(use.chosen)) for use in uses}
    left = room - sum(kept[use.index] * use.each for use in uses)
    if left < 0:
        return even_shares(uses, room)
    # A miss costs an expert's bytes and keeping it takes as many, so the choices alone decide.
    each = {use.index: use.each for use in uses}
    wanted = sorted(
        (-use.used * part, use.index) for use in uses for part in use.chosen[kept[use.index] :]
    )
    for _, index in wanted:
        if each[index] <= left:
            kept[index] += 1
            left -= each[index]
    return {use.index: kept[use.index] / len(use.chosen) for use in uses}


def planned_shares(uses: Sequence[LayerUse], room: int) -> dict[int, float]:
    """Layer → share of its experts kept by a plan: the mean of the even share and that by use."""
    even, used = even_shares(uses, room), shares_by_use(uses, room)
    return {index: EVEN_PART * even[index] + (1 - EVEN_PART) * used[index] for index in even}


def missed_bytes(uses: Sequence[LayerUse], kept: Mapping[int, float]) -> float:
    """Bytes that a token is expected to read from the disk. ``kept``: layer → share in memory."""
    return sum(use.missed_bytes(kept[use.index]) for use in uses)


def by_gain(uses: Sequence[LayerUse], kept: Mapping[int, float]) -> list[int]:
    """The layers in the order of what they gain from a GPU: bytes no longer read per byte of memory
    when all experts of the layer move there. The greatest gain comes last.
    """
    gain = {use.index: use.missed_bytes(kept[use.index]) / use.nbytes for use in uses}
    return sorted(gain, key=lambda index: (gain[index], index))
