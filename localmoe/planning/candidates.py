"""Candidates for a plan: settings, what they cost by the engine's figures, and whether they fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model
from localmoe.planning import estimate
from localmoe.planning.budget import Budget
from localmoe.planning.layout import expert_bytes_on_host
from localmoe.planning.memory import CPU, EngineSettings, Measure, MemoryReport
from localmoe.planning.work_buffer import work_buffer_of


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to place the model: its settings, their memory, and how it stands to the budget."""

    settings: EngineSettings
    memory: MemoryReport
    host_experts: dict[int, int]  # layer → bytes of routed experts not on a GPU
    disk: int  # bytes of the host experts that stay on the disk: RAM is too small, or as wished
    gpus_fit: bool
    fits: bool  # on the GPUs and in RAM, with room for at least one token's experts
    runs: bool  # the same with less room than that, or none: RAM has KV cache and buffers at least
    one_token: int  # bytes of the host experts that one token reads
    spare: int  # bytes of RAM left for experts beside what every token needs; --cache-ram applied
    paged: int = 0  # bytes of weights that every token needs and RAM cannot keep

    @property
    def room(self) -> int:
        """Bytes of experts that stay in RAM."""
        return sum(self.host_experts.values()) - self.disk

    @property
    def slow_room(self) -> bool:
        """Whether it runs, and holds what one token reads of one layer's experts."""
        layers = sum(1 for size in self.host_experts.values() if size)
        return self.runs and self.spare * layers >= self.one_token

    @property
    def cache_room(self) -> int:
        """Bytes of RAM in which experts may be kept.

        More than ``room`` where the user wants experts on the disk although RAM is free: a cache in
        front of them may use it.
        """
        spare = max(0, min(self.spare, sum(self.host_experts.values())))
        return spare if self.disk else self.room


class Candidates:
    """Makes candidates of one model on one budget; every question to the engine goes through here.

    ``tiers``: layer → "gpu", "ram" or "disk" where the user said so; other layers are free.
    ``cache_ram``: bytes of RAM that the user allows for experts; None: no limit but the budget.
    """

    def __init__(
        self,
        model: Model,
        machine: Machine,
        measure: Measure,
        budget: Budget,
        tiers: Mapping[int, str],
        cache_ram: int | None = None,
    ) -> None:
        self.model = model
        self.budget = budget
        self._measure_engine = measure
        self._tiers = tiers
        self._cache_ram = cache_ram
        self._in_engine = {gpu.device for gpu in machine.gpus if gpu.in_engine}
        self._work_buffer = work_buffer_of(model)
        self._known_experts: dict[tuple[object, ...], dict[int, int]] = {}
        self.remotes = tuple(gpu.remote for gpu in machine.gpus if gpu.remote is not None)

    def measure(self, settings: EngineSettings) -> MemoryReport:
        """The engine's figures, an estimate where its build lacks one of the devices.

        The processor's work buffer, which the engine does not report, is added to them.
        """
        report = self._report(settings)
        experts_on_host = any(self._host_experts(settings).values())
        more = self._work_buffer.size(settings.ubatch, experts_on_host=experts_on_host)
        devices = tuple(
            dataclasses.replace(entry, compute=entry.compute + more)
            if entry.device == CPU
            else entry
            for entry in report.devices
        )
        return dataclasses.replace(report, devices=devices)

    def _report(self, settings: EngineSettings) -> MemoryReport:
        if all(device in self._in_engine for device in settings.devices):
            report = self._measure_engine(settings)
            if report.exact or not settings.devices:
                return report
        host = dataclasses.replace(
            settings, devices=(), tensor_split=(), gpu_layers=0, overrides=(), remotes=()
        )
        return estimate.split(self.model, self._measure_engine(host), settings)

    def judge(self, settings: EngineSettings, *, one_token_only: bool = False) -> Candidate:
        """Measure these settings and compare the result with the budget.

        ``one_token_only``: RAM keeps one token's experts (and those wished there), no more.
        """
        if settings.devices:
            settings = dataclasses.replace(settings, remotes=self.remotes)
        memory = self.measure(settings)
        experts = self._host_experts(settings)
        everything = sum(experts.values())
        to_disk = sum(count for layer, count in experts.items() if self._on(layer, "disk"))
        to_ram = sum(count for layer, count in experts.items() if self._on(layer, "ram"))
        spare = self.budget.ram - (self.ram_use(memory) - everything)
        allowed = spare if self._cache_ram is None else min(spare, self._cache_ram)
        one_token = sum(
            experts.get(layer.index, 0) * layer.expert_used // max(1, layer.expert_count)
            for layer in self.model.layers
        )
        if one_token_only:
            allowed = min(allowed, max(one_token, to_ram))
        over = max(0, everything - to_disk - allowed)
        disk = to_disk + min(over, everything - to_disk - to_ram)
        gpus_fit = all(
            entry.total <= self.budget.gpus.get(entry.device, 0)
            for entry in memory.devices
            if entry.device != CPU
        )
        # With less RAM than one token's experts, every read would evict what the next layer needs.
        in_ram = everything - disk
        enough = disk == 0 or spare >= one_token
        wished = not any(self._on(layer, "gpu") for layer in experts)
        held = gpus_fit and in_ram <= spare and wished
        # What every token needs is read from the mapped file again and again where RAM has no room.
        paged = max(0, -spare)
        mapped = memory.on(CPU).weights - everything
        runs = held or (gpus_fit and wished and not in_ram and 0 < paged <= mapped)
        return Candidate(
            settings,
            memory,
            experts,
            disk,
            gpus_fit,
            held and enough,
            runs,
            one_token,
            allowed,
            paged if runs else 0,
        )

    def _host_experts(self, settings: EngineSettings) -> dict[int, int]:
        """``expert_bytes_on_host``, computed once for each placement."""
        split = settings.tensor_split
        placement = settings.devices, split, settings.gpu_layers, settings.overrides
        if placement not in self._known_experts:
            self._known_experts[placement] = expert_bytes_on_host(self.model, settings)
        return self._known_experts[placement]

    def ram_use(self, memory: MemoryReport) -> int:
        """Bytes taken of the machine's RAM; GPUs without memory of their own take theirs there."""
        homes = (CPU, *self.budget.unified)
        return sum(entry.total for entry in memory.devices if entry.device in homes)

    def _on(self, layer: int, tier: str) -> bool:
        return self._tiers.get(layer) == tier
