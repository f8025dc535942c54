"""Each layer's part of the memory for experts, where they do not all fit. Pure.

What is not known to differ is treated alike: every layer keeps the same share of its experts. A
routing profile knows more. How often an expert is chosen is what keeping it saves, so memory goes
to the experts that are chosen most, of whatever layer they are; which of its experts a layer then
keeps is decided while it runs (docs/policies.md), and only how many is planned. A layer that
chooses evenly misses most at any share below all, so it gains most from being on a GPU as a whole.
docs/placement.md has what this gains on recorded routings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localmoe.facts.model import Model
from localmoe.routing.profile import Profile

ENOUGH = 64  # tokens; a profile of fewer says nothing of a layer
PRIOR_USES = 1.0  # added to the uses of each expert: none is never used
ALIKE = 0.5  # of the room is shared out evenly: a profile has not seen all that will be asked


@dataclass(frozen=True, slots=True)
class LayerUse:
    """The routed experts of one layer, as far as they are in host memory."""

    index: int
    nbytes: int  # of all of them
    used: int  # per token
    chosen: tuple[float, ...]  # part of the layer's choices per expert, descending; sums to 1

    @property
    def each(self) -> float:
        """Bytes of one expert."""
        return self.nbytes / len(self.chosen)

    def missed_bytes(self, share: float) -> float:
        """Bytes per token that are not there when ``share`` of the experts, the best ones, is."""
        kept = share * len(self.chosen)
        whole = int(kept)
        hits = sum(self.chosen[:whole])
        if whole < len(self.chosen):
            hits += (kept - whole) * self.chosen[whole]
        return self.used * self.each * max(0.0, 1 - hits)


def layer_uses(
    model: Model, host_experts: Mapping[int, int], profile: Profile | None
) -> tuple[LayerUse, ...]:
    """The layers with experts in host memory (bytes per layer); evenly used without a profile."""
    return tuple(
        LayerUse(index, nbytes, layer.expert_used, chosen(layer.expert_count, index, profile))
        for index, nbytes in sorted(host_experts.items())
        if nbytes and (layer := model.layers[index]).expert_count
    )


def chosen(experts: int, layer: int, profile: Profile | None) -> tuple[float, ...]:
    """``LayerUse.chosen`` of a layer."""
    row = profile.counts.get(layer, ()) if profile is not None else ()
    if len(row) != experts:
        return (1 / experts,) * experts
    total = sum(row) + PRIOR_USES * experts
    return tuple((uses + PRIOR_USES) / total for uses in sorted(row, reverse=True))


def trusted(model: Model, profile: Profile | None) -> Profile | None:
    """The profile, if it is of such a model and long enough to decide by."""
    if profile is None or profile.tokens < ENOUGH:
        return None
    shape = tuple((e.index, e.expert_count) for e in model.layers if e.expert_count)
    return profile if profile.shape == shape else None


def even_shares(uses: Sequence[LayerUse], room: int) -> dict[int, float]:
    """The same share of every layer's experts, as much as ``room`` bytes hold."""
    total = sum(use.nbytes for use in uses)
    share = min(1.0, room / total) if total else 1.0
    return {use.index: share for use in uses}


def shares_by_use(uses: Sequence[LayerUse], room: int) -> dict[int, float]:
    """Shares with which fewest bytes are missed: ``room`` goes to the experts chosen most.

    A layer keeps at least what a token uses of it. Where there is no room for that, even shares.
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


def shares(uses: Sequence[LayerUse], room: int) -> dict[int, float]:
    """What is planned: between even shares and those by use, as ``docs/placement.md`` compares."""
    even, used = even_shares(uses, room), shares_by_use(uses, room)
    return {index: ALIKE * even[index] + (1 - ALIKE) * used[index] for index in even}


def missed_bytes(uses: Sequence[LayerUse], kept: Mapping[int, float]) -> float:
    """Bytes that a token is expected to read from the disk, with a share of each layer kept."""
    return sum(use.missed_bytes(kept[use.index]) for use in uses)


def by_gain(uses: Sequence[LayerUse], kept: Mapping[int, float]) -> list[int]:
    """The layers by what a byte of memory for all their experts would save; the greatest last."""
    gain = {use.index: use.missed_bytes(kept[use.index]) / use.nbytes for use in uses}
    return sorted(gain, key=lambda index: (gain[index], index))
