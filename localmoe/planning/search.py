"""The search for the best placement of a model on a budget.

Order of preference: dense weights, router, shared experts and KV cache go to the GPUs first, then
the routed experts of as many layers as fit there, down to single tensors of one layer per device.
The other experts stay in RAM, and what RAM cannot keep is read from the disk when a token needs it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from localmoe.planning.cache_shares import by_gain, layer_uses, missed_bytes, planned_shares
from localmoe.planning.candidates import Candidate, Candidates
from localmoe.planning.context import (
    CONVERSATION,
    DEFAULT_CONTEXTS,
    LAST_CONTEXTS,
    contexts_to_try,
    usable_context,
)
from localmoe.planning.device_split import finer_split, proportional_split, tensors_that_fit
from localmoe.planning.layout import (
    expert_parts,
    experts_to_host,
    layer_homes,
    projections_to_host,
)
from localmoe.planning.memory import CPU, EngineSettings
from localmoe.planning.places import is_remote
from localmoe.planning.plan import Wishes
from localmoe.routing.profile import Profile

BATCHES = (512, 256, 128, 64)
"""Prefill batches tried, largest first, until their compute buffers fit."""

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
        self._parts = expert_parts(self._model)
        self._expert_bytes = {layer.index: layer.expert_bytes for layer in self._model.layers}
        self._moe = [layer.index for layer in self._model.layers if layer.expert_count]

    def find(self) -> Candidate:
        """The best placement at the wished context; without a wish, at the context that suits.

        That is the largest of ``DEFAULT_CONTEXTS`` that moves nothing to a slower tier, neither
        experts nor layers. Where not even the smallest of them fits, context and batch shrink until
        the rest does.
        """
        if self._wishes.context is not None:
            return self.place(usable_context(self._wishes.context))
        choice: Candidate | None = None
        for context in contexts_to_try(DEFAULT_CONTEXTS, self._model):
            candidate = self.place_with(context, self._batches[0])
            if candidate.fits and (choice is None or off_devices(candidate) < off_devices(choice)):
                choice = candidate
        return choice or self._shrunk(candidate, self._smaller_sizes())

    def _smaller_sizes(self) -> list[tuple[int, int]]:
        """(context, batch) to try when the default contexts do not fit: less context first, as long
        as it holds a conversation, then smaller batches, then still less context.
        """
        contexts = contexts_to_try(LAST_CONTEXTS, self._model)
        least = min((size for size in contexts if size >= CONVERSATION), default=contexts[0])
        full, *smaller = self._batches
        return [
            *((size, full) for size in contexts if size >= least),
            *((least, batch) for batch in smaller),
            *((size, self._batches[-1]) for size in contexts if size < least),
        ]

    def place(self, context: int) -> Candidate:
        """The best placement at one context size, with a full batch.

        Where its buffers leave too little memory, the batch shrinks until the rest fits."""
        first = self.place_with(context, self._batches[0])
        return self._shrunk(first, [(context, batch) for batch in self._batches[1:]])

    def _shrunk(self, first: Candidate, sizes: Sequence[tuple[int, int]]) -> Candidate:
        """``first`` if it fits, else with the first of ``sizes`` (context, batch) that does, or the
        first that runs at all.

        RAM then keeps one token's experts and no more, and the GPUs keep their layers, even if a
        smaller batch leaves some memory free. Otherwise a little more memory, which allows the
        larger batch, would mean fewer experts in memory and slower decoding. Only where more layers
        fit on GPUs beside the smaller batch, all is placed anew.
        """
        if first.fits or not sizes:
            return first
        tried = [first]
        if first.gpus_fit:
            for context, batch in sizes:
                n = min(batch, context)
                settings = dataclasses.replace(first.settings, context=context, batch=n, ubatch=n)
                tried.append(self._candidates.judge(settings, one_token_only=True))
                if tried[-1].fits:
                    anew = self.place_with(context, batch) if settings.devices else tried[-1]
                    return anew if anew.fits and on_host(anew) < on_host(tried[-1]) else tried[-1]
        if self._budgets:
            for context, batch in sizes:
                tried.append(self.place_with(context, batch))
                if tried[-1].fits:
                    return tried[-1]
        running = [candidate for candidate in tried if candidate.runs]
        for good in (lambda c: c.slow_room, lambda c: not c.paged, lambda c: True):
            for candidate in filter(good, running):
                return candidate
        return tried[-1]

    @property
    def _batches(self) -> tuple[int, ...]:
        return (self._wishes.batch,) if self._wishes.batch else BATCHES

    def place_with(self, context: int, batch: int) -> Candidate:
        """The best placement at this context, with batches of so many tokens."""
        settings = EngineSettings(
            context=context,
            batch=min(batch, context),
            ubatch=min(batch, context),
            type_k=self._wishes.type_k,
            type_v=self._wishes.type_v,
            threads=self._threads,
            threads_batch=self._threads,
            repack=self._wishes.repack == "on",
            # A mapping of the file beside the copies would be counted a second time.
            load_mode="none" if self._wishes.repack == "on" else "mmap",
        )
        devices = tuple(self._budgets)
        best = self._without_idle(self._place(settings, devices))
        while self._devices_are_free and len(here := [d for d in devices if not is_remote(d)]) > 1:
            smallest = min(here, key=lambda device: self._budgets[device])
            devices = tuple(device for device in devices if device != smallest)
            there = best.memory.weights - best.memory.on(CPU).weights
            if best.fits and sum(self._budgets[device] for device in devices) < there:
                break
            other = self._without_idle(self._place(settings, devices))
            if other.fits and (not best.fits or off_devices(other) <= off_devices(best)):
                best = other
        return best

    @property
    def _devices_are_free(self) -> bool:
        """Whether a GPU may be left unused beside others: a small one costs buffers, and takes the
        layers that would make a larger one useful. Workers are used, since somebody named them.
        """
        wishes = self._wishes
        fixed = wishes.gpu_layers is not None or wishes.n_cpu_moe is not None
        return not (fixed or wishes.experts_on or wishes.overrides)

    def _place(self, settings: EngineSettings, devices: tuple[str, ...]) -> Candidate:
        """The fastest placement on these devices that fits, else what lacks the least memory.

        What the user fixed by ``--gpu-layers`` and the like is never changed to make it fit.
        """
        wishes = self._wishes
        if not self._budgets or wishes.gpu_layers == 0:
            return self._judge(settings, ())
        settings = dataclasses.replace(
            settings,
            devices=devices,
            tensor_split=proportional_split([self._budgets[device] for device in devices]),
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
        """As many layers' dense weights on the GPUs as fit, no experts of ``host`` layers.

        The last device is filled first, with the last layers, then the one before it: so more
        memory on any of them never means fewer layers on all of them.
        """
        devices: tuple[str, ...] = ()
        alone = dataclasses.replace(settings, devices=devices, tensor_split=(), gpu_layers=0)
        best = self._judge(alone, ())
        counts: tuple[int, ...] = ()  # layers on each of them
        for device in reversed(settings.devices):
            low, high = 0, len(self._model.layers) + 2 - (used := sum(counts))
            while high - low > 1:
                middle = (low + high) // 2
                split = tuple(float(count) for count in (middle, *counts)) if counts else ()
                sized = dataclasses.replace(settings, tensor_split=split, gpu_layers=used + middle)
                sized = dataclasses.replace(sized, devices=(device, *devices))
                candidate = self._judge(sized, host)
                if candidate.gpus_fit:
                    best, low = candidate, middle
                else:
                    high = middle
            if low:
                devices, counts = (device, *devices), (low, *counts)
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
        """The experts of ``free`` layers on the GPUs, as many as fit beside the dense weights.

        Each device takes the layers that it has the dense part of, the last in ``free`` first, and
        of each layer one tensor after the other, in an order that does not depend on the memory:
        so more memory only ever adds tensors. The header says how many fit; the engine is asked,
        and where it disagrees one tensor less is tried on the device that is too full.
        """
        homes = layer_homes(self._model, dense.settings)
        taken = {
            device: tensors_that_fit(
                self._parts,
                [index for index in reversed(free) if homes[index] == device],
                self._budgets[device] - dense.memory.on(device).total,
            )
            for device in dense.settings.devices
        }
        while any(taken.values()):
            candidate = self._with_experts(dense, free, off, taken.values())
            full = [device for device in self._full(candidate) if taken[device]]
            if not self._full(candidate):
                return candidate
            for device in full or taken:
                del taken[device][-1:]
        return dense

    def _with_experts(
        self,
        dense: Candidate,
        free: list[int],
        off: list[int],
        taken: Iterable[Sequence[tuple[int, str]]],
    ) -> Candidate:
        """``dense`` with the ``taken`` (layer, projection) on the layer's device, not the host."""
        on_gpu: dict[int, set[str]] = {}
        for layer, projection in (tensor for tensors in taken for tensor in tensors):
            on_gpu.setdefault(layer, set()).add(projection)
        host = list(off)
        more: list[tuple[str, str]] = []
        for index in free:
            left = self._parts[index].keys() - on_gpu.get(index, set())
            if index not in on_gpu:
                host.append(index)
            elif left:
                more += projections_to_host(index, left)
        return self._judge(dense.settings, sorted(host), tuple(more))

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
    return off_devices(candidate)[:2] < off_devices(other)[:2]


def on_host(candidate: Candidate) -> int:
    """Bytes of weights off the GPUs."""
    return candidate.memory.on(CPU).weights


def off_devices(candidate: Candidate) -> tuple[int, int, int]:
    """Bytes by which candidates are compared: experts on the disk, experts off the GPUs, weights
    off the GPUs.
    """
    return candidate.disk, sum(candidate.host_experts.values()), on_host(candidate)
