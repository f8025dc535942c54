"""The planner: where a model's weights live on a machine. Pure, given a pure ``Measure``.

``search.py`` has the order of preference, ``candidates.py`` judges one candidate. Every candidate
is measured by the engine, never summed up here; only a device outside the engine build is estimated
(``estimate.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from localmoe.errors import UsageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning.advice import Decision, advise, explain
from localmoe.planning.budget import Budget, budget_of, prompt_cache_bytes
from localmoe.planning.cache import most_bytes
from localmoe.planning.cache_plan import plan_cache
from localmoe.planning.cache_shares import trusted
from localmoe.planning.candidates import Candidate, Candidates
from localmoe.planning.context import (
    DEFAULT_CONTEXTS,
    MAX_CONTEXT,
    context_warnings,
    trained_context,
)
from localmoe.planning.layer_rows import cache_shares_of, layer_rows
from localmoe.planning.memory import CPU, EngineSettings, Measure
from localmoe.planning.places import is_remote
from localmoe.planning.plan import CachePlan, Plan, Tiers, Verdict, Wishes
from localmoe.planning.prefill import BATCHES
from localmoe.planning.search import PlacementSearch
from localmoe.routing.profile import Profile
from localmoe.wording import option

NOT_REPACKED = (
    "--repack is left aside: weights are copied into another order where all of them are in RAM"
)
CONTEXT_STEP = 1024  # granularity of max_context, tokens


def make_plan(
    model: Model,
    machine: Machine,
    wishes: Wishes,
    measure: Measure,
    promised_ram: int = 0,
    profile: Profile | None = None,
) -> Plan:
    """Decide settings and placement. Never raises for "does not fit": the verdict says so.

    ``profile``: how this model's experts were used so far; it decides which layers gain most from
    a GPU, and how many experts of each stay in RAM, where some are on the disk.

    Raises UsageError for a wish that names what is not there: a device, a layer.
    """
    _check_experts(model, wishes)
    budget = budget_of(model, machine, wishes, promised_ram)
    placement = _Placement(
        *(model, machine, _known(wishes, budget), measure, budget, trusted(model, profile)),
        promised_ram,
    )
    candidate = placement.search.find()
    verdict = placement.verdict(candidate)
    if wishes.repack == "on" and (verdict is not Verdict.RAM or candidate.disk):
        usual = dataclasses.replace(wishes, repack="off")
        plan = make_plan(model, machine, usual, measure, promised_ram, profile)
        return dataclasses.replace(plan, warnings=(*plan.warnings, NOT_REPACKED))
    if not verdict.fits and wishes.prompt_cache is None:  # better without than not at all
        without = dataclasses.replace(wishes, prompt_cache=0)
        return make_plan(model, machine, without, measure, promised_ram, profile)
    plan = placement.described(candidate, verdict, placement.max_context(candidate))
    larger = placement.larger(candidate, verdict)
    return dataclasses.replace(
        plan,
        larger=tuple(placement.described(other, verdict, plan.max_context) for other in larger),
    )


class _Placement:
    """One model on one budget: its best placement, and how that would change with other wishes."""

    def __init__(
        self,
        model: Model,
        machine: Machine,
        wishes: Wishes,
        measure: Measure,
        budget: Budget,
        profile: Profile | None,
        promised: int = 0,
    ) -> None:
        self.model = model
        self.wishes = wishes
        self.budget = budget
        self.profile = profile
        self.tiers = _tiers(model, wishes)
        self._machine = machine
        self._measure = measure
        self._promised = promised
        self.candidates = Candidates(model, machine, measure, budget, self.tiers, wishes.cache_ram)
        threads = wishes.threads or min(machine.cores_physical, machine.cores_logical)
        self.search = PlacementSearch(self.candidates, wishes, self.tiers, threads, profile)

    def verdict(self, candidate: Candidate) -> Verdict:
        if not candidate.fits:
            return Verdict.TOO_SLOW if candidate.runs else Verdict.NO
        tiers = []
        on_gpu = bool(candidate.settings.devices)
        if on_gpu:
            tiers.append("gpu")
        layers = list(layer_rows(self.model, candidate, self.tiers, self.profile))
        if not on_gpu or any(
            "ram" in (row.dense, row.experts) or row.experts_ram for row in layers
        ):
            tiers.append("ram")
        if candidate.disk:
            tiers.append("disk")
        return Verdict("+".join(tiers))

    def described(self, candidate: Candidate, verdict: Verdict, max_context: int) -> Plan:
        """The plan that a candidate is, with what is to be said of it."""
        budget, machine = self.budget, self._machine
        decision = Decision(
            self.model,
            self.wishes,
            verdict,
            candidate,
            budget,
            need=self.candidates.ram_use(candidate.memory),
            taken=machine.ram_total - machine.ram_available,
            unused=machine.ram_available - self._promised - (self.wishes.ram or 0),
        )
        settings, cache = self.cached(candidate, verdict)
        memory = candidate.memory
        # What a cache may change. The buffers of a larger batch are lent by the experts' memory.
        batch = min(settings.ubatch, candidate.settings.ubatch)
        if batch != candidate.settings.ubatch:
            counted = dataclasses.replace(settings, batch=batch, ubatch=batch)
            memory = self.candidates.measure(counted)
        without_offload = None
        if settings.devices and settings.op_offload and candidate.host_experts:
            unoffloaded = dataclasses.replace(settings, op_offload=False)
            without_offload = self.candidates.measure(unoffloaded)
        return Plan(
            verdict=verdict,
            settings=settings,
            memory=memory,
            tiers=Tiers(
                gpu=memory.on_devices,
                ram=memory.on(CPU).total
                - candidate.disk
                - candidate.paged
                + max(0, settings.cache_bytes - candidate.room),
                disk=candidate.disk + candidate.paged,
            ),
            layers=tuple(layer_rows(self.model, candidate, self.tiers, self.profile)),
            max_context=max_context,
            cache=cache,
            ram_budget=budget.ram,
            ram_reserve=budget.reserve,
            vram_budget=budget.vram,
            reason=explain(decision),
            advice=tuple(advise(decision, self)),
            gpu_budgets=tuple(budget.gpus.items()),
            warnings=tuple(context_warnings(self.model, self.wishes.context)),
            missing_ram=max(0, decision.shortfall) if verdict.fits and candidate.disk else 0,
            without_offload=without_offload,
            paged=candidate.paged,
        )

    def larger(self, candidate: Candidate, verdict: Verdict) -> Iterator[Candidate]:
        """The same with larger batches, which GPUs read prompts faster with; ``tuned`` chooses.

        Their buffers take memory on the devices, so that some experts may have to leave.
        """
        settings = candidate.settings
        on_gpu = any(not is_remote(device) for device in settings.devices)
        if not on_gpu or not candidate.fits or self.wishes.batch is not None:
            return
        for size in BATCHES:
            if settings.ubatch < size <= settings.context:
                other = self.search.place_with(settings.context, size)
                if self.verdict(other) is not verdict:
                    return
                yield other

    def instead(self, context: int, **changed: object) -> Candidate:
        """What would be planned at this context with other wishes."""
        wishes = dataclasses.replace(self.wishes, **changed)  # type: ignore[arg-type]
        budget = self.budget
        if wishes.ram != self.wishes.ram or wishes.vram != self.wishes.vram:
            budget = budget_of(self.model, self._machine, wishes)
        other = _Placement(self.model, self._machine, wishes, self._measure, budget, self.profile)
        return other.search.place(context)

    def without_remotes(self, context: int) -> Candidate:
        """What would be planned with the devices of this machine alone."""
        here = tuple(gpu for gpu in self._machine.gpus if gpu.remote is None)
        machine = dataclasses.replace(self._machine, gpus=here)
        names = {gpu.device for gpu in here}
        gpus = {name: room for name, room in self.budget.gpus.items() if name in names}
        budget = dataclasses.replace(self.budget, gpus=gpus)
        other = _Placement(self.model, machine, self.wishes, self._measure, budget, self.profile)
        return other.search.place(context)

    def cached(self, candidate: Candidate, verdict: Verdict) -> tuple[EngineSettings, CachePlan]:
        """The candidate's settings with an expert cache where one is needed, and why."""
        wishes = self.wishes
        settings = dataclasses.replace(
            candidate.settings,
            read_ahead=candidate.disk + candidate.paged == 0,
            prompt_cache=prompt_cache_bytes(self._machine, wishes),
            experts_used=wishes.experts or 0,
            prefer_cached=wishes.prefer_cached or 0.0,
        )
        if not verdict.runs:
            return settings, CachePlan("none", 0, "the model does not fit")
        wish, room = wishes.cache, candidate.cache_room
        if wish == "auto" and room > candidate.room:
            wish = "private"  # experts wished on the disk are cached in the RAM that is free
        settings, plan = plan_cache(
            self.model,
            settings,
            candidate.host_experts,
            room,
            wish,
            wishes.cache_ram,
            self._machine.mappings,
            None if wishes.batch or settings.devices else self._buffers(settings),
            steady=self._room_when_free(candidate),
            paged=candidate.paged,
        )
        if plan.regime != "private":
            return settings, plan
        if wishes.ram is None and wishes.cache_ram is None:
            # Nobody has named a bound, so what is left over while it runs may be used too.
            most = most_bytes(self.model, candidate.host_experts, self._machine.mappings)
            settings = dataclasses.replace(settings, cache_most=most)
        shares = cache_shares_of(
            self.model, candidate, self.tiers, settings.cache_bytes, self.profile
        )
        if self.profile is not None:
            tokens = f"{self.profile.tokens:,.0f} recorded tokens"
            plan = dataclasses.replace(plan, why=f"{plan.why}; shared out by {tokens}")
        return dataclasses.replace(settings, cache_shares=shares), plan

    def _room_when_free(self, candidate: Candidate) -> int:
        """Bytes of RAM for experts when nothing else runs and the KV cache is empty."""
        free = dataclasses.replace(self._machine, ram_available=self._machine.ram_total)
        taken = self.candidates.ram_use(candidate.memory) - candidate.memory.on(CPU).kv
        room = budget_of(self.model, free, self.wishes).ram + sum(candidate.host_experts.values())
        return max(0, room - taken)

    def _buffers(self, settings: EngineSettings) -> Callable[[int], int]:
        """Bytes of the engine's buffers in RAM for batches of so many tokens."""

        def buffers(batch: int) -> int:
            sized = dataclasses.replace(settings, batch=batch, ubatch=batch)
            return self.candidates.measure(sized).on(CPU).compute

        return buffers

    def max_context(self, candidate: Candidate) -> int:
        """The largest context at which the model runs at all, placed anew, of those it was trained
        for; 0 when ``candidate`` does not fit.

        Memory grows with the context, so a bisection over multiples of 1,024 finds it.
        """
        if not candidate.fits:
            return candidate.settings.context if candidate.runs else 0
        context = candidate.settings.context
        trained = trained_context(self.model) or max(DEFAULT_CONTEXTS[0], context)
        most = min(trained, self._reach(candidate))
        if most <= context or self.search.place(most).fits:
            return most
        low, high = context // CONTEXT_STEP, most // CONTEXT_STEP + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.search.place(middle * CONTEXT_STEP).fits:
                low = middle
            else:
                high = middle
        return max(low * CONTEXT_STEP, context)

    def _reach(self, candidate: Candidate) -> int:
        """A context that is certainly too large for all memory together, from two dry runs.

        KV cache and buffers grow linearly; a quarter is added for what does not.
        """
        context = candidate.settings.context
        wider = self.candidates.measure(
            dataclasses.replace(candidate.settings, context=2 * context)
        )
        growth = (wider.total - candidate.memory.total) / context  # bytes per token
        room = self.budget.ram + self.budget.vram
        if growth <= 0:
            return MAX_CONTEXT
        return context + CONTEXT_STEP + int(1.25 * room / growth)


def _check_experts(model: Model, wishes: Wishes) -> None:
    """llama.cpp ends the process when a token is to use more experts than there are."""
    counts = [layer.expert_count for layer in model.layers if layer.expert_count]
    if wishes.experts is None or (counts and wishes.experts <= min(counts)):
        return
    most = f"its layers have {min(counts)} experts" if counts else "it has no experts"
    raise UsageError(
        f"{option('experts', wishes.experts)}: {most}",
        hint="leave it out: the model's own number is what it was trained with",
    )


def _known(wishes: Wishes, budget: Budget) -> Wishes:
    """The wishes with devices called as the engine calls them. Raises UsageError."""
    names = {name.lower(): name for name in (*budget.gpus, CPU)} | {"ram": CPU, "host": CPU}
    overrides = []
    for pattern, device in wishes.overrides:
        if device.lower() not in names:
            raise UsageError(
                f"{option('override')} {pattern}={device}: there is no such device to plan with",
                hint=f"the devices here are {', '.join((*budget.gpus, CPU))}",
            )
        overrides.append((pattern, names[device.lower()]))
    return dataclasses.replace(wishes, overrides=tuple(overrides))


def _tiers(model: Model, wishes: Wishes) -> dict[int, str]:
    """What ``--experts-on`` says of each layer; a later wish wins. Raises UsageError."""
    tiers: dict[int, str] = {}
    moe = [layer.index for layer in model.layers if layer.expert_count]
    for wish in wishes.experts_on:
        layers = [index for index in moe if wish.covers(index)]
        if not layers:
            known = f"{moe[0]} to {moe[-1]}" if moe else "none"
            raise UsageError(
                f"{option('experts-on', wish.tier)}: none of these layers has experts",
                hint=f"layers with experts: {known}",
            )
        tiers |= dict.fromkeys(layers, wish.tier)
    return tiers
