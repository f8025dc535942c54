"""The planner: where a model's weights live on a machine. Pure, given a pure ``Measure``.

Order of preference: dense weights, router, shared experts and KV cache on the GPU first, then the
routed experts of as many layers as fit there, the others in RAM, and what RAM cannot keep is read
from the disk when a token needs it. Every candidate is measured by the engine, never summed up
here; only a device outside the engine build is estimated (``estimate.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning import estimate
from localmoe.planning.advice import advise, explain
from localmoe.planning.budget import MIB, Budget, budget_of
from localmoe.planning.layout import expert_bytes_on_host, experts_to_host, layer_homes
from localmoe.planning.memory import CPU, EngineSettings, Measure, MemoryReport
from localmoe.planning.plan import (
    CachePlan,
    LayerPlacement,
    Plan,
    Tiers,
    Verdict,
    Wishes,
)

DEFAULT_CONTEXTS = (32768, 16384, 8192)
"""Context sizes tried when none is asked for, largest first."""

BATCHES = (512, 256, 128, 64)
"""Prefill batches tried, largest first, until their compute buffers fit."""

CONTEXT_STEP = 1024  # granularity of max_context, tokens
MAX_CONTEXT = 10 * 1024 * 1024
"""No larger context is asked about, whatever a header claims: a dry run costs memory per token."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings, what they cost, and what that means within the budget."""

    settings: EngineSettings
    memory: MemoryReport
    host_experts: dict[int, int]  # layer → bytes of routed experts not on a GPU
    disk: int  # bytes of those that RAM cannot keep
    gpus_fit: bool
    fits: bool  # on the GPUs and in RAM, with room for at least one token's experts
    one_token: int  # bytes of the host experts that one token reads

    @property
    def room(self) -> int:
        """RAM in which experts may stay."""
        return sum(self.host_experts.values()) - self.disk


def make_plan(
    model: Model,
    machine: Machine,
    wishes: Wishes,
    measure: Measure,
    promised_ram: int = 0,
) -> Plan:
    """Decide settings and placement. Never raises for "does not fit": the verdict says so."""
    planner = _Planner(
        model, machine, wishes, measure, budget_of(model, machine, wishes, promised_ram)
    )
    best = planner.best()
    ceiling = planner.max_context(best)
    verdict = planner.verdict(best)
    layers = tuple(_place_layers(model, best))
    budget = planner.budget
    shortfall = planner.ram_use(best.memory) - budget.ram
    return Plan(
        verdict=verdict,
        settings=dataclasses.replace(best.settings, read_ahead=best.disk == 0),
        memory=best.memory,
        tiers=Tiers(
            gpu=sum(d.total for d in best.memory.devices if d.device != CPU),
            ram=best.memory.on(CPU).total - best.disk,
            disk=best.disk,
        ),
        layers=layers,
        max_context=ceiling,
        cache=_cache(best, verdict),
        ram_budget=budget.ram,
        ram_reserve=budget.reserve,
        vram_budget=budget.vram,
        reason=explain(
            model, verdict, planner.ram_use(best.memory), budget, best.memory, best.one_token
        ),
        advice=tuple(advise(model, wishes, verdict, shortfall, best.settings, planner.would_fit)),
    )


class _Planner:
    """The search for one model on one budget; every question to the engine goes through here."""

    def __init__(
        self, model: Model, machine: Machine, wishes: Wishes, measure: Measure, budget: Budget
    ) -> None:
        self.model = model
        self.wishes = wishes
        self.budget = budget
        self._machine = machine
        self._measure_engine = measure
        self._in_engine = {gpu.device for gpu in machine.gpus if gpu.in_engine}
        self._threads = wishes.threads or min(machine.cores_physical, machine.cores_logical)

    # -- asking ------------------------------------------------------------------------------

    def measure(self, settings: EngineSettings) -> MemoryReport:
        """The engine's figures, or an estimate for devices it does not have."""
        if all(device in self._in_engine for device in settings.devices):
            report = self._measure_engine(settings)
            if report.exact or not settings.devices:
                return report
        host = dataclasses.replace(
            settings, devices=(), tensor_split=(), gpu_layers=0, overrides=()
        )
        return estimate.split(self.model, self._measure_engine(host), settings)

    def try_out(self, settings: EngineSettings) -> Candidate:
        """Measure and hold against the budget."""
        memory = self.measure(settings)
        experts = expert_bytes_on_host(self.model, settings)
        over = max(0, self.ram_use(memory) - self.budget.ram)
        disk = min(over, sum(experts.values()))
        one_token = sum(
            experts.get(layer.index, 0) * layer.expert_used // max(1, layer.expert_count)
            for layer in self.model.layers
        )
        gpus_fit = all(
            entry.total <= self.budget.gpus.get(entry.device, 0)
            for entry in memory.devices
            if entry.device != CPU
        )
        # Below one token's experts every read would evict what the next layer needs.
        ram_fits = over == 0 or (over <= disk and sum(experts.values()) - disk >= one_token)
        return Candidate(
            settings, memory, experts, disk, gpus_fit, gpus_fit and ram_fits, one_token
        )

    def ram_use(self, memory: MemoryReport) -> int:
        """Bytes of the machine's RAM: the host's, and those of GPUs that have none of their own."""
        homes = (CPU, *self.budget.unified)
        return sum(entry.total for entry in memory.devices if entry.device in homes)

    # -- choosing ----------------------------------------------------------------------------

    def best(self) -> Candidate:
        """The plan's settings: context and batch first as wished, then what fits."""
        choice: Candidate | None = None
        for context in self._contexts():
            candidate = self.place(context)
            if not candidate.fits:
                choice = choice or candidate
                continue
            if choice is None or not choice.fits or _faster(candidate, choice):
                choice = candidate
        assert choice is not None
        return choice

    def _contexts(self) -> list[int]:
        """Largest first."""
        if self.wishes.context is not None:
            return [self.wishes.context]
        own = min(self.model.context_train or DEFAULT_CONTEXTS[0], MAX_CONTEXT)
        return sorted({min(size, own) for size in DEFAULT_CONTEXTS}, reverse=True)

    def place(self, context: int) -> Candidate:
        """The best placement at one context size, with the largest batch whose buffers fit."""
        candidate: Candidate | None = None
        for batch in (self.wishes.batch,) if self.wishes.batch else BATCHES:
            settings = EngineSettings(
                context=context,
                batch=min(batch, context),
                ubatch=min(batch, context),
                type_k=self.wishes.type_k,
                type_v=self.wishes.type_v,
                threads=self._threads,
                threads_batch=self._threads,
            )
            candidate = self._place(settings)
            if candidate.fits:
                break
        assert candidate is not None
        return candidate

    def _place(self, settings: EngineSettings) -> Candidate:
        """The fastest placement that fits, else the one that lacks least; wishes are not bent."""
        if not self.budget.gpus or self.wishes.gpu_layers == 0:
            return self.try_out(settings)
        settings = dataclasses.replace(
            settings,
            devices=tuple(self.budget.gpus),
            tensor_split=_shares(list(self.budget.gpus.values())),
            gpu_layers=-1,
        )
        moe_layers = [layer.index for layer in self.model.layers if layer.expert_count]
        if self.wishes.gpu_layers is not None or self.wishes.n_cpu_moe is not None:
            wished = self.wishes.gpu_layers if self.wishes.gpu_layers is not None else -1
            host = [i for i in moe_layers if i < (self.wishes.n_cpu_moe or 0)]
            overrides = experts_to_host(host)
            return self.try_out(
                dataclasses.replace(settings, gpu_layers=wished, overrides=overrides)
            )
        everything = self.try_out(settings)
        if everything.gpus_fit and everything.fits:
            return everything
        settings = dataclasses.replace(settings, overrides=experts_to_host(moe_layers))
        dense = self.try_out(settings)
        if dense.gpus_fit:
            return self._experts_on_gpus(dense, moe_layers)
        return self._layers_on_gpus(settings)

    def _experts_on_gpus(self, dense: Candidate, moe_layers: list[int]) -> Candidate:
        """All dense weights on the GPUs, and the routed experts of as many layers as fit there.

        The header says how many; the engine is asked, and where it disagrees one layer less is
        tried on the device that is too full. Each device keeps the experts of its last layers.
        """
        homes = layer_homes(self.model, dense.settings)
        sizes = {layer.index: layer.expert_bytes for layer in self.model.layers}
        kept: dict[str, list[int]] = {}
        for device, budget in self.budget.gpus.items():
            free = budget - dense.memory.on(device).total
            kept[device] = []
            for index in reversed([i for i in moe_layers if homes[i] == device]):
                if sizes[index] > free:
                    break
                free -= sizes[index]
                kept[device].append(index)
        while any(kept.values()):
            on_gpus = {index for indices in kept.values() for index in indices}
            host = [index for index in moe_layers if index not in on_gpus]
            settings = dataclasses.replace(dense.settings, overrides=experts_to_host(host))
            candidate = self.try_out(settings)
            full = [
                device
                for device, budget in self.budget.gpus.items()
                if candidate.memory.on(device).total > budget
            ]
            if not full:
                return candidate
            for device in full if any(kept[device] for device in full) else kept:
                del kept[device][-1:]
        return dense

    def _layers_on_gpus(self, settings: EngineSettings) -> Candidate:
        """All routed experts on the host, and as many layers' dense weights on the GPUs as fit."""
        low, high = 0, len(self.model.layers) + 1  # low fits (nothing is there), high does not
        host_only = dataclasses.replace(settings, devices=(), tensor_split=(), gpu_layers=0)
        best = self.try_out(dataclasses.replace(host_only, overrides=()))
        while high - low > 1:
            middle = (low + high) // 2
            candidate = self.try_out(dataclasses.replace(settings, gpu_layers=middle))
            if candidate.gpus_fit:
                best, low = candidate, middle
            else:
                high = middle
        return best

    # -- judging -----------------------------------------------------------------------------

    def verdict(self, candidate: Candidate) -> Verdict:
        if not candidate.fits:
            return Verdict.NO
        tiers = []
        on_gpu = bool(candidate.settings.devices)
        if on_gpu:
            tiers.append("gpu")
        layers = list(_place_layers(self.model, candidate))
        if not on_gpu or any("ram" in (layer.dense, layer.experts) for layer in layers):
            tiers.append("ram")
        if candidate.disk:
            tiers.append("disk")
        return Verdict("+".join(tiers))

    def would_fit(self, settings: EngineSettings) -> bool:
        """Whether the model fits, placed anew, with the context and KV types of ``settings``."""
        wishes = dataclasses.replace(self.wishes, type_k=settings.type_k, type_v=settings.type_v)
        other = _Planner(self.model, self._machine, wishes, self._measure_engine, self.budget)
        return other.place(settings.context).fits

    def max_context(self, candidate: Candidate) -> int:
        """The largest context with the same verdict, placed anew (0 when it does not fit at all).

        Memory grows with the context, so a bisection over multiples of 1,024 finds it.
        """
        if not candidate.fits:
            return 0
        verdict = self.verdict(candidate)
        own = max(min(self.model.context_train, MAX_CONTEXT), candidate.settings.context)
        own = min(own, self._reach(candidate))

        def holds(context: int) -> bool:
            other = self.place(context)
            return other.fits and self.verdict(other) is verdict

        if holds(own):
            return own
        low, high = candidate.settings.context // CONTEXT_STEP, own // CONTEXT_STEP + 1
        while high - low > 1:
            middle = (low + high) // 2
            if holds(middle * CONTEXT_STEP):
                low = middle
            else:
                high = middle
        return max(low * CONTEXT_STEP, candidate.settings.context)

    def _reach(self, candidate: Candidate) -> int:
        """A context that is certainly too large for all memory together, from two dry runs.

        KV cache and buffers grow linearly; a quarter is added for what does not.
        """
        context = candidate.settings.context
        wider = self.measure(dataclasses.replace(candidate.settings, context=2 * context))
        growth = (wider.total - candidate.memory.total) / context  # bytes per token
        room = self.budget.ram + self.budget.vram
        if growth <= 0:
            return MAX_CONTEXT
        return context + CONTEXT_STEP + int(1.25 * room / growth)


def _shares(budgets: list[int]) -> tuple[float, ...]:
    """Proportions of several devices, in MiB: readable, and the same wherever they are used."""
    return tuple(float(max(1, budget // MIB)) for budget in budgets) if len(budgets) > 1 else ()


def _faster(candidate: Candidate, other: Candidate) -> bool:
    """Whether fewer expert bytes are on a slower tier."""
    mine = (candidate.disk, sum(candidate.host_experts.values()))
    return mine < (other.disk, sum(other.host_experts.values()))


def _place_layers(model: Model, candidate: Candidate) -> Iterator[LayerPlacement]:
    """One row per layer; RAM keeps the experts of the first layers, the disk those of the last."""
    homes = layer_homes(model, candidate.settings)
    room = candidate.room
    for layer in model.layers:
        experts: str | None = None
        if layer.expert_count:
            host = candidate.host_experts.get(layer.index, 0)
            if host == 0:
                experts = "gpu"
            elif candidate.disk == 0 or host <= room:
                experts, room = "ram", room - host
            else:
                experts, room = "disk", 0
        yield LayerPlacement(
            index=layer.index,
            dense="ram" if homes[layer.index] == CPU else "gpu",
            experts=experts,
            dense_bytes=layer.dense_bytes,
            expert_bytes=layer.expert_bytes,
            expert_count=layer.expert_count,
            expert_used=layer.expert_used,
        )


def _cache(candidate: Candidate, verdict: Verdict) -> CachePlan:
    if not verdict.fits:
        return CachePlan("none", 0, "the model does not fit")
    experts = sum(candidate.host_experts.values())
    if not experts:
        return CachePlan("resident", 0, "no expert is left to cache")
    if not candidate.disk:
        return CachePlan("resident", experts, "all experts fit in memory")
    return CachePlan(
        "page",
        candidate.room,
        "the system's page cache keeps the experts used most; the others are read when needed",
    )
