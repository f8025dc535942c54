"""Which experts are used how often: for the model's profile on disk, and for a chat to show."""

from __future__ import annotations

import math
from collections.abc import Sequence

from localmoe.engine.events import LayerLoad
from localmoe.engine.worker.expert_cache import ExpertCache
from localmoe.errors import StorageError
from localmoe.facts.model import Model
from localmoe.planning.memory import EngineSettings, RoutedTensor
from localmoe.routing import profile
from localmoe.routing.profile import LayerUsage


class Learning:
    """Counts the uses of experts from now on; the native helper does the counting.

    ``tensors`` are those that the cache serves. ``keep``: the counts are added to the model's
    profile on disk, but never where the choices are not the router's own: where a recorded routing
    is imposed, or experts are swapped to save reading.
    """

    def __init__(
        self,
        cache: ExpertCache,
        model: Model,
        tensors: Sequence[RoutedTensor],
        settings: EngineSettings,
        *,
        keep: bool,
    ) -> None:
        own = not (settings.replay or settings.prefer_cached or settings.experts_used)
        self._keep = keep and own
        self._cache = cache
        self._name = model.name
        self._key = profile.key_of(model)
        groups = list({tensor.group: tensor.experts for tensor in tensors}.items())
        # Layer → place among the groups. Without grovemoe's second set of experts of a layer, whose
        # group number is beyond the number of layers.
        self._places = {
            group: place for place, (group, _) in enumerate(groups) if group < len(model.layers)
        }
        self._learnt = {
            layer.index: LayerUsage.none(layer.expert_count)
            for layer in model.layers
            if layer.expert_count and layer.loaded
        }
        self._now = self._learnt
        self._sessions = 1
        cache.count_uses()

    def load(self) -> tuple[LayerLoad, ...]:
        """How the experts of each layer were used since the model was loaded."""
        self._now = {
            layer: self._cache.usage(place, len(known.uses))
            if (place := self._places.get(layer)) is not None
            else known
            for layer, known in self._learnt.items()
        }
        return tuple(
            load_of(layer, usage.uses) for layer, usage in self._now.items() if usage.tokens
        )

    def favourites(self) -> list[tuple[int, int]]:
        """(place among the groups, expert) pairs of the profile on disk, the most used first."""
        known = profile.load(self._key)
        pairs = known.favourites() if known is not None else []
        return [
            (self._places[layer], expert)
            for layer, expert in pairs
            if layer in self._places and expert < len(self._learnt[layer].uses)
        ]

    def learn(self) -> None:
        """Add to the profile what ``load`` has seen since the last time."""
        new = {layer: usage.since(self._learnt[layer]) for layer, usage in self._now.items()}
        if not self._keep or not any(usage.tokens for usage in new.values()):
            return
        try:
            profile.learn(self._key, profile.of_usage(self._name, new, self._sessions))
        except StorageError:
            self._keep = False  # only a better guess is lost
        self._learnt, self._sessions = self._now, 0


def load_of(layer: int, uses: Sequence[int]) -> LayerLoad:
    """How evenly one layer's experts were used; at least one was."""
    total, experts = sum(uses), len(uses)
    entropy = -sum(n / total * math.log(n / total) for n in uses if n)
    return LayerLoad(
        layer=layer,
        experts=experts,
        used=sum(n > 0 for n in uses),
        entropy=entropy / math.log(experts) if experts > 1 else 1.0,
        busiest=max(uses) * experts / total,
    )
