"""The search for the best placement of a model on a budget.

Order of preference: dense weights, router, shared experts and KV cache go to the GPUs first, then
the routed experts of as many layers as fit there, down to single tensors of one layer per device.
The other experts stay in RAM, and what RAM cannot keep is read from the disk when a token needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from localmoe.planning.cache_shares import by_gain, layer_uses, missed_bytes, planned_shares
from localmoe.planning.candidates import Candidate, Candidates
from localmoe.planning.device_split import finer_split, fitting_tensors, proportional_split
from localmoe.planning.layout import (
    expert_parts,
    experts_to_host,
    layer_homes,
    projections_to_host,
)
from localmoe.planning.memory import CPU, EngineSettings
from localmoe.planning.plan import Wishes
from localmoe.routing.profile import Profile

DEFAULT_CONTEXTS = (32768, 16384, 8192)
"""Context sizes tried when none is asked for, largest first."""

BATCHES = (512, 256, 128, 64)
"""Prefill batches tried, largest first, until their compute buffers fit."""

MAX_CONTEXT = 10 * 1024 * 1024
"""No larger context is asked about, whatever a header claims: a dry run costs memory per token."""

RESPLITS = 4  # times that layers are split anew between the devices before less is put on them


class PlacementSearch:
    """The search for one model, budget and user. ``tiers``: layer → what ``--experts-on`` says.

    ``profile``: how the experts were used so far; None when that is not known.
    """

    def __init__(
        self,
        candidates: Candidates,
        wishes: Wishes,
        tiers: Mapping[int, str],
        threads: int,
        profile: Profile | None = None,
    ) -> None:
        self._candidates = candidates
        self._model = candidates.model
        self._budgets = candidates.budget.gpus
        self._wishes = wishes
        self._tiers = tiers
        self._threads = threads
        self._profile = profile
        self._expert_bytes = {layer.index: layer.expert_bytes for layer in self._model.layers}
        self._moe = [layer.index for layer in self._model.layers if layer.expert_count]

    def find(self) -> Candidate:
        """The best placement at the wished context; without a wish, at the context that suits."""
        choice: Candidate | None = None
        for context in self._contexts():
            candidate = self.place(context)
            if not candidate.fits:
                choice = choice or candidate
                continue
            if choice is None or not choice.fits or faster(candidate, choice):
                choice = candidate
        assert choice is not None
        return choice

    def _contexts(self) -> list[int]:
        """Tokens, the largest first."""
        if self._wishes.context is not None:
            return [self._wishes.context]
        own = min(self._model.context_train or DEFAULT_CONTEXTS[0], MAX_CONTEXT)
        return sorted({min(size, own) for size in DEFAULT_CONTEXTS}, reverse=True)

    def place(self, context: int) -> Candidate:
        """The best placement at one context size, with the largest batch whose buffers fit."""
        candidate: Candidate | None = None
        for batch in (self._wishes.batch,) if self._wishes.batch else BATCHES:
            settings = EngineSettings(
                context=context,
                batch=min(batch, context),
                ubatch=min(batch, context),
                type_k=self._wishes.type_k,
                type_v=self._wishes.type_v,
                threads=self._threads,
                threads_batch=self._threads,
            )
            candidate = self._without_idle(self._place(settings))
            if candidate.fits:
                break
        assert candidate is not None
        return candidate

    def _place(self, settings: EngineSettings) -> Candidate:
        """The fastest placement that fits, else the one that lacks the least memory.

        What the user fixed by ``--gpu-layers`` and the like is never changed to make it fit.
        """
        wishes = self._wishes
        if not self._budgets or wishes.gpu_layers == 0:
            return self._judge(settings, ())
        settings = dataclasses.replace(
            settings,
            devices=tuple(self._budgets),
            tensor_split=proportional_split(list(self._budgets.values())),
            gpu_layers=-1,
        )
        off = [index for index in self._moe if self._tiers.get(index) in ("ram", "disk")]
        if wishes.gpu_layers is not None or wishes.n_cpu_moe is not None:
            host = [i for i in self._moe if i < (wishes.n_cpu_moe or 0) or i in off]
            wished = wishes.gpu_layers if wishes.gpu_layers is not None else -1
            return self._balanced(dataclasses.replace(settings, gpu_layers=wished), host)
        everything = self._balanced(settings, off)
        if everything.gpus_fit and everything.fits:
            return everything
        host = [index for index in self._moe if self._tiers.get(index) != "gpu"]
        dense = self._dense(settings, host)
        if not dense.gpus_fit:
            wished = any(tier == "gpu" for tier in self._tiers.values())
            return dense if wished else self._fewer_layers(settings, host)
        free = [index for index in host if index not in off]
        filled = self._filled(dense, free, off)
        split = finer_split(self._model, dense, self._budgets, free)
        if split != dense.settings.tensor_split:
            # Borders between the devices moved, so that less memory stays unused on each.
            other = self._judge(dataclasses.replace(dense.settings, tensor_split=split), host)
            if other.gpus_fit:
                other = self._filled(other, free, off)
                filled = other if faster(other, filled) else filled
        best = filled if filled.fits or not dense.fits else dense
        return self._by_routing(best, host, free, off)

    # -- several devices ---------------------------------------------------------------------

    def _judge(
        self, settings: EngineSettings, host: Iterable[int], more: tuple[tuple[str, str], ...] = ()
    ) -> Candidate:
        """The candidate with the experts of ``host`` layers, and by ``more``, on the host."""
        overrides = (*self._wishes.overrides, *experts_to_host(host), *more)
        if not settings.devices and any(device != CPU for _, device in overrides):
            # No layer is on a device, but the user's overrides send tensors to one.
            settings = dataclasses.replace(
                settings,
                devices=tuple(self._budgets),
                tensor_split=proportional_split(list(self._budgets.values())),
            )
        return self._candidates.judge(dataclasses.replace(settings, overrides=overrides))

    def _balanced(self, settings: EngineSettings, host: list[int]) -> Candidate:
        """Layers split between the devices by memory, and split anew while one is too full."""
        candidate = self._judge(settings, host)
        for _ in range(RESPLITS if len(settings.devices) > 1 else 0):
            split = self._split_by_cost(candidate)
            if candidate.gpus_fit or split is None or split == candidate.settings.tensor_split:
                break
            candidate = self._judge(dataclasses.replace(settings, tensor_split=split), host)
        return candidate

    def _split_by_cost(self, candidate: Candidate) -> tuple[float, ...] | None:
        """Layers per device by what a layer has cost on each; None when they cannot all fit."""
        devices = candidate.settings.devices
        homes = [home for home in layer_homes(self._model, candidate.settings) if home in devices]
        room: list[float] = []
        for device in devices:
            used = candidate.memory.on(device)
            layers = homes.count(device)
            each = (used.total - used.compute) / layers if layers else float("inf")
            room.append(max(0.0, (self._budgets[device] - used.compute) / each) if each else 0.0)
        if sum(room) < len(homes):
            return None
        counts = [int(part * len(homes) / sum(room)) for part in room]
        while sum(counts) < len(homes):
            slack = [part - count for part, count in zip(room, counts, strict=True)]
            counts[slack.index(max(slack))] += 1
        return tuple(float(count) for count in counts)

    def _dense(self, settings: EngineSettings, host: list[int]) -> Candidate:
        """Everything on the GPUs but the experts of ``host`` layers.

        A device too small for its share is left out. When no set of devices can hold it, the
        answer is the candidate with all of them, which does not fit.
        """
        first = candidate = self._balanced(settings, host)
        while not candidate.gpus_fit and len(candidate.settings.devices) > 1:
            smallest = min(candidate.settings.devices, key=lambda d: self._budgets[d])
            devices = tuple(d for d in candidate.settings.devices if d != smallest)
            fewer = dataclasses.replace(
                settings,
                devices=devices,
                tensor_split=proportional_split([self._budgets[device] for device in devices]),
            )
            candidate = self._balanced(fewer, host)
        return candidate if candidate.gpus_fit else first

    def _fewer_layers(self, settings: EngineSettings, host: list[int]) -> Candidate:
        """As many layers' dense weights on the GPUs as fit, no experts of ``host`` layers."""
        low, high = 0, len(self._model.layers) + 1  # 0 layers on the GPUs fit, all do not
        alone = dataclasses.replace(settings, devices=(), tensor_split=(), gpu_layers=0)
        best = self._judge(alone, ())
        while high - low > 1:
            middle = (low + high) // 2
            candidate = self._judge(dataclasses.replace(settings, gpu_layers=middle), host)
            if candidate.gpus_fit:
                best, low = candidate, middle
            else:
                high = middle
        return best

    def _without_idle(self, candidate: Candidate) -> Candidate:
        """The candidate without the devices that got no weights: each would only cost buffers."""
        settings = candidate.settings
        used = [i for i, d in enumerate(settings.devices) if candidate.memory.on(d).weights]
        if not used or len(used) == len(settings.devices):
            return candidate
        split = settings.tensor_split or (1.0,) * len(settings.devices)
        fewer = dataclasses.replace(
            settings,
            devices=tuple(settings.devices[i] for i in used),
            tensor_split=tuple(split[i] for i in used) if len(used) > 1 else (),
        )
        other = self._candidates.judge(fewer)
        return other if other.fits and not faster(candidate, other) else candidate

    # -- experts -----------------------------------------------------------------------------

    def _filled(self, dense: Candidate, free: list[int], off: list[int]) -> Candidate:
        """The experts of as many ``free`` layers as fit beside the dense weights.

        The header says how many; the engine is asked, and where it disagrees one layer less is
        tried on the device that is too full. Each device keeps the experts of those of its
        layers that are last in ``free``, and of the next one as many tensors as still fit.
        """
        homes = layer_homes(self._model, dense.settings)
        sizes = self._expert_bytes
        waiting: dict[str, list[int]] = {}  # per device: layers in host memory, the next one last
        kept: dict[str, list[int]] = {}
        for device in dense.settings.devices:
            room = self._budgets[device] - dense.memory.on(device).total
            waiting[device] = [index for index in free if homes[index] == device]
            kept[device] = []
            while waiting[device] and sizes[waiting[device][-1]] <= room:
                room -= sizes[waiting[device][-1]]
                kept[device].append(waiting[device].pop())
        best = dense
        while any(kept.values()):
            candidate = self._judge(dense.settings, _all(waiting, off))
            full = self._full(candidate)
            if not full:
                best = candidate
                break
            for device in full if any(kept[device] for device in full) else kept:
                waiting[device] += kept[device][-1:]
                del kept[device][-1:]
        return self._with_parts(best, waiting, off)

    def _with_parts(
        self, best: Candidate, waiting: dict[str, list[int]], off: list[int]
    ) -> Candidate:
        """Single tensors of one more layer per device, or a smaller layer, in what is left."""
        parts = expert_parts(self._model)
        more: tuple[tuple[str, str], ...] = ()
        for device, layers in waiting.items():
            room = self._budgets[device] - best.memory.on(device).total
            for layer, chosen in fitting_tensors(parts, layers, room)[:2]:
                rest = projections_to_host(layer, parts[layer].keys() - chosen)
                others = {**waiting, device: [index for index in layers if index != layer]}
                candidate = self._judge(best.settings, _all(others, off), (*more, *rest))
                if not self._full(candidate):
                    best, more, waiting = candidate, (*more, *rest), others
                    break
        return best

    def _by_routing(
        self, best: Candidate, host: list[int], free: list[int], off: list[int]
    ) -> Candidate:
        """Other layers' experts on the GPUs, if fewer bytes are then expected from the disk.

        A layer that chooses its experts evenly gains more from GPU memory than one with a few
        favourites, which RAM would keep anyway.
        """
        if self._profile is None or not best.disk or not best.fits:
            return best
        uses = layer_uses(self._model, {i: self._expert_bytes[i] for i in free}, self._profile)
        share = best.room / max(1, sum(best.host_experts.values()))
        order = by_gain(uses, dict.fromkeys(free, share))
        other = self._filled(self._judge(best.settings, host), order, off)
        better = other.fits and self._missed(other) < self._missed(best)
        return other if better else best

    def _missed(self, candidate: Candidate) -> float:
        """Bytes that a token is expected to read from the disk, by the profile."""
        uses = layer_uses(self._model, candidate.host_experts, self._profile)
        return missed_bytes(uses, planned_shares(uses, candidate.room))

    def _full(self, candidate: Candidate) -> list[str]:
        """The devices that would need more memory than they can give."""
        return [
            device
            for device in candidate.settings.devices
            if candidate.memory.on(device).total > self._budgets[device]
        ]


def faster(candidate: Candidate, other: Candidate) -> bool:
    """Whether ``candidate`` has fewer expert bytes on the disk than ``other``, or as many there and
    fewer off the GPUs.
    """
    mine = (candidate.disk, sum(candidate.host_experts.values()))
    return mine < (other.disk, sum(other.host_experts.values()))


def _all(waiting: Mapping[str, list[int]], off: list[int]) -> list[int]:
    """Every layer whose experts are in host memory, in order."""
    return sorted({*off, *(index for layers in waiting.values() for index in layers)})
