"""The search for the best placement: settings are tried out until none better is left to try.

Order of preference: dense weights, router, shared experts and KV cache on the GPUs first, then the
routed experts of as many layers as fit there, down to single tensors of one layer per device; the
others in RAM, and what RAM cannot keep is read from the disk when a token needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from localmoe.planning.cache_shares import by_gain, layer_uses, missed_bytes, shares
from localmoe.planning.candidates import Candidate, Trials
from localmoe.planning.device_split import fillings, proportional, redealt
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

RESHARES = 4  # times that layers are dealt anew to several devices before less is put on them


class Search:
    """One model, one budget, one user's wishes. ``tiers``: what ``--experts-on`` says per layer.

    ``profile``: how the experts were used so far, where that is known.
    """

    def __init__(
        self,
        trials: Trials,
        wishes: Wishes,
        tiers: Mapping[int, str],
        threads: int,
        profile: Profile | None = None,
    ) -> None:
        self._trials = trials
        self._model = trials.model
        self._budgets = trials.budget.gpus
        self._wishes = wishes
        self._tiers = tiers
        self._threads = threads
        self._profile = profile
        self._expert_bytes = {layer.index: layer.expert_bytes for layer in self._model.layers}
        self._moe = [layer.index for layer in self._model.layers if layer.expert_count]

    def best(self) -> Candidate:
        """Context and batch first as wished, then what fits."""
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
        """Largest first."""
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
        """The fastest placement that fits, else the one that lacks least; wishes are not bent."""
        wishes = self._wishes
        if not self._budgets or wishes.gpu_layers == 0:
            return self._try(settings, ())
        settings = dataclasses.replace(
            settings,
            devices=tuple(self._budgets),
            tensor_split=proportional(list(self._budgets.values())),
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
        shares = redealt(self._model, dense, self._budgets, free)
        if shares != dense.settings.tensor_split:
            # Layers dealt so that less is left over on each device.
            other = self._try(dataclasses.replace(dense.settings, tensor_split=shares), host)
            if other.gpus_fit:
                other = self._filled(other, free, off)
                filled = other if faster(other, filled) else filled
        best = filled if filled.fits or not dense.fits else dense
        return self._by_routing(best, host, free, off)

    # -- several devices ---------------------------------------------------------------------

    def _try(
        self, settings: EngineSettings, host: Iterable[int], more: tuple[tuple[str, str], ...] = ()
    ) -> Candidate:
        """With the experts of ``host`` layers, and what ``more`` overrides say, in host memory."""
        overrides = (*self._wishes.overrides, *experts_to_host(host), *more)
        if not settings.devices and any(device != CPU for _, device in overrides):
            # No layer is on a device, but tensors that the user sends there.
            settings = dataclasses.replace(
                settings,
                devices=tuple(self._budgets),
                tensor_split=proportional(list(self._budgets.values())),
            )
        return self._trials.try_out(dataclasses.replace(settings, overrides=overrides))

    def _balanced(self, settings: EngineSettings, host: list[int]) -> Candidate:
        """Layers dealt to the devices in proportion to their memory, and anew where one is full."""
        candidate = self._try(settings, host)
        for _ in range(RESHARES if len(settings.devices) > 1 else 0):
            shares = self._reshared(candidate)
            if candidate.gpus_fit or shares is None or shares == candidate.settings.tensor_split:
                break
            candidate = self._try(dataclasses.replace(settings, tensor_split=shares), host)
        return candidate

    def _reshared(self, candidate: Candidate) -> tuple[float, ...] | None:
        """Layers per device by what one of them has cost there; None where they cannot all fit."""
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
        """All but ``host`` layers' experts on the GPUs; a device too small for a share is left out.

        Where no set of them can hold it, the answer is that of all devices.
        """
        first = candidate = self._balanced(settings, host)
        while not candidate.gpus_fit and len(candidate.settings.devices) > 1:
            smallest = min(candidate.settings.devices, key=lambda d: self._budgets[d])
            devices = tuple(d for d in candidate.settings.devices if d != smallest)
            fewer = dataclasses.replace(
                settings,
                devices=devices,
                tensor_split=proportional([self._budgets[device] for device in devices]),
            )
            candidate = self._balanced(fewer, host)
        return candidate if candidate.gpus_fit else first

    def _fewer_layers(self, settings: EngineSettings, host: list[int]) -> Candidate:
        """As many layers' dense weights on the GPUs as fit, no experts of ``host`` layers."""
        low, high = 0, len(self._model.layers) + 1  # low fits (nothing is there), high does not
        alone = dataclasses.replace(settings, devices=(), tensor_split=(), gpu_layers=0)
        best = self._try(alone, ())
        while high - low > 1:
            middle = (low + high) // 2
            candidate = self._try(dataclasses.replace(settings, gpu_layers=middle), host)
            if candidate.gpus_fit:
                best, low = candidate, middle
            else:
                high = middle
        return best

    def _without_idle(self, candidate: Candidate) -> Candidate:
        """The same without devices that got nothing: each would only cost buffers."""
        settings = candidate.settings
        used = [i for i, d in enumerate(settings.devices) if candidate.memory.on(d).weights]
        if not used or len(used) == len(settings.devices):
            return candidate
        shares = settings.tensor_split or (1.0,) * len(settings.devices)
        fewer = dataclasses.replace(
            settings,
            devices=tuple(settings.devices[i] for i in used),
            tensor_split=tuple(shares[i] for i in used) if len(used) > 1 else (),
        )
        other = self._trials.try_out(fewer)
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
            candidate = self._try(dense.settings, _all(waiting, off))
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
            for layer, chosen in fillings(parts, layers, room)[:2]:
                rest = projections_to_host(layer, parts[layer].keys() - chosen)
                others = {**waiting, device: [index for index in layers if index != layer]}
                candidate = self._try(best.settings, _all(others, off), (*more, *rest))
                if not self._full(candidate):
                    best, more, waiting = candidate, (*more, *rest), others
                    break
        return best

    def _by_routing(
        self, best: Candidate, host: list[int], free: list[int], off: list[int]
    ) -> Candidate:
        """Other layers on the GPUs, where fewer bytes are then expected to be read from the disk.

        As much memory there serves a layer that chooses evenly better than one whose favourites
        would be in RAM anyway.
        """
        if self._profile is None or not best.disk or not best.fits:
            return best
        uses = layer_uses(self._model, {i: self._expert_bytes[i] for i in free}, self._profile)
        share = best.room / max(1, sum(best.host_experts.values()))
        order = by_gain(uses, dict.fromkeys(free, share))
        other = self._filled(self._try(best.settings, host), order, off)
        better = other.fits and self._missed(other) < self._missed(best)
        return other if better else best

    def _missed(self, candidate: Candidate) -> float:
        """Bytes that a token is expected to read from the disk, by the profile."""
        uses = layer_uses(self._model, candidate.host_experts, self._profile)
        return missed_bytes(uses, shares(uses, candidate.room))

    def _full(self, candidate: Candidate) -> list[str]:
        """The devices on which it is too much."""
        return [
            device
            for device in candidate.settings.devices
            if candidate.memory.on(device).total > self._budgets[device]
        ]


def faster(candidate: Candidate, other: Candidate) -> bool:
    """Whether fewer expert bytes are on a slower tier."""
    mine = (candidate.disk, sum(candidate.host_experts.values()))
    return mine < (other.disk, sum(other.host_experts.values()))


def _all(waiting: Mapping[str, list[int]], off: list[int]) -> list[int]:
    """Every layer whose experts are in host memory, in order."""
    return sorted({*off, *(index for layers in waiting.values() for index in layers)})
