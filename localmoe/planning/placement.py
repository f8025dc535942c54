"""The planner: where a model's weights live on a machine. Pure, given a pure ``Measure``.

Order of preference: dense weights, router, shared experts and KV cache on the GPU first, then the
routed experts of as many layers as fit there, the others in RAM, and what RAM cannot keep is read
from the disk when a token needs it. Every candidate is measured by the engine, never summed up
here; only a device outside the engine build is estimated (``estimate.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning import estimate
from localmoe.planning.advice import advise, explain
from localmoe.planning.budget import Budget, budget_of
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
    planner = _Planner(model, machine, wishes, measure, budget_of(machine, wishes, promised_ram))
    best = planner.best()
    ceiling = planner.max_context(best)
    verdict = planner.verdict(best)
    layers = tuple(_place_layers(model, best))
    budget = planner.budget
    shortfall = planner.ram_use(best.memory) - budget.ram
    return Plan(
        verdict=verdict,
        settings=best.settings,
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
            model, verdict, planner.ram_use(best.memory), budget.ram, budget.vram, best.one_token
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
        self._measure_engine = measure
        self._in_engine = {gpu.device for gpu in machine.gpus if gpu.in_engine}
        self._threads = wishes.threads or min(machine.cores_physical, machine.cores_logical)

    # -- asking ------------------------------------------------------------------------------

    def measure(self, settings: EngineSettings) -> MemoryReport:
        """The engine's figures, or an estimate for a device it does not have."""
        if all(device in self._in_engine for device in settings.devices):
            report = self._measure_engine(settings)
            if report.exact or not settings.devices:
                return report
        host = dataclasses.replace(settings, devices=(), gpu_layers=0, overrides=())
        return estimate.split(self.model, self._measure_engine(host), settings, settings.devices[0])

    def try_out(self, settings: EngineSettings) -> Candidate:
        """Measure and hold against the budget."""
        memory = self.measure(settings)
        experts = estimate.expert_bytes_on_host(self.model, settings)
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
        own = self.model.context_train or DEFAULT_CONTEXTS[0]
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
            candidate = self._place_on_gpu(settings)
            if candidate is None or not candidate.fits:
                candidate = self.try_out(settings)
            if candidate.fits:
                break
        assert candidate is not None
        return candidate

    def _place_on_gpu(self, settings: EngineSettings) -> Candidate | None:
        """The fastest placement that uses the GPUs, or None if nothing of the model fits there."""
        if not self.budget.gpus or self.wishes.gpu_layers == 0:
            return None
        settings = dataclasses.replace(settings, devices=tuple(self.budget.gpus), gpu_layers=-1)
        moe_layers = [layer.index for layer in self.model.layers if layer.expert_count]
        if self.wishes.gpu_layers is not None or self.wishes.n_cpu_moe is not None:
            wished = self.wishes.gpu_layers if self.wishes.gpu_layers is not None else -1
            host = [i for i in moe_layers if i < (self.wishes.n_cpu_moe or 0)]
            return self.try_out(
                dataclasses.replace(settings, gpu_layers=wished, overrides=_to_host(host))
            )

        def experts_on_host(count: int) -> Candidate:
            overrides = _to_host(moe_layers[:count])
            return self.try_out(dataclasses.replace(settings, overrides=overrides))

        found = _least_on_host(len(moe_layers), experts_on_host)
        if found is not None:
            return found
        everything = _to_host(moe_layers)

        def layers_on_host(count: int) -> Candidate:
            on_gpu = len(self.model.layers) + 1 - count
            return self.try_out(
                dataclasses.replace(settings, gpu_layers=on_gpu, overrides=everything)
            )

        return _least_on_host(len(self.model.layers), layers_on_host)

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
        """Whether the same placement fits with other settings."""
        return self.try_out(settings).fits

    def max_context(self, candidate: Candidate) -> int:
        """The largest context with the same verdict (0 when it does not fit at all).

        Memory grows with the context, so a bisection over multiples of 1,024 finds it.
        """
        if not candidate.fits:
            return 0
        verdict = self.verdict(candidate)
        own = max(self.model.context_train, candidate.settings.context)

        def holds(context: int) -> bool:
            settings = dataclasses.replace(candidate.settings, context=context)
            other = self.try_out(settings)
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


def _least_on_host(limit: int, attempt: Callable[[int], Candidate]) -> Candidate | None:
    """The candidate with the smallest count in 0…limit whose GPU part fits, by bisection.

    A larger count leaves less on the GPU. None if not even ``limit`` is small enough.
    """
    best = attempt(limit)
    if not best.gpus_fit:
        return None
    low, high = -1, limit
    while high - low > 1:
        middle = (low + high) // 2
        candidate = attempt(middle)
        if candidate.gpus_fit:
            best, high = candidate, middle
        else:
            low = middle
    return best


def _faster(candidate: Candidate, other: Candidate) -> bool:
    """Whether fewer expert bytes are on a slower tier."""
    mine = (candidate.disk, sum(candidate.host_experts.values()))
    return mine < (other.disk, sum(other.host_experts.values()))


def _to_host(layers: list[int]) -> tuple[tuple[str, str], ...]:
    """The override that keeps the routed experts of some layers in host memory."""
    if not layers:
        return ()
    numbers = "|".join(str(index) for index in layers)
    return ((rf"^blk\.({numbers})\.ffn_(gate|up|down|gate_up)_(ch)?exps", CPU),)


def _place_layers(model: Model, candidate: Candidate) -> Iterator[LayerPlacement]:
    """One row per layer; RAM keeps the experts of the first layers, the disk those of the last."""
    settings = candidate.settings
    on_gpu = estimate.layers_on_device(model, settings) if settings.devices else range(0)
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
            dense="gpu" if layer.index in on_gpu else "ram",
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
