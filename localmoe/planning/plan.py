"""The plan: what a model will be loaded as, and where each of its layers lives."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from dataclasses import dataclass

from localmoe.planning.memory import CPU, EngineSettings, MemoryReport


class Verdict(enum.Enum):
    """Which memories a model needs; the values are those of the command line contract."""

    GPU = "gpu"
    GPU_RAM = "gpu+ram"
    RAM = "ram"
    GPU_DISK = "gpu+disk"
    GPU_RAM_DISK = "gpu+ram+disk"
    RAM_DISK = "ram+disk"
    TOO_SLOW = "too-slow"  # runs, but memory holds less than what one token reads
    NO = "no"

    @property
    def runs(self) -> bool:
        """Whether it can be loaded at all."""
        return self is not Verdict.NO

    @property
    def fits(self) -> bool:
        """Whether it runs as fast as one may expect of the memories it needs."""
        return self.runs and self is not Verdict.TOO_SLOW


@dataclass(frozen=True, slots=True)
class ExpertsOn:
    """The routed experts of some layers shall live on one tier."""

    tier: str  # "gpu" | "ram" | "disk"
    spans: tuple[tuple[int, int], ...] = ()  # first and last layer, both included; () = all

    def covers(self, layer: int) -> bool:
        return not self.spans or any(first <= layer <= last for first, last in self.spans)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asked for; ``None`` leaves it to the planner."""

    context: int | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    threads: int | None = None
    gpu_layers: int | None = None
    n_cpu_moe: int | None = None  # keep the experts of the first N layers off the GPU
    ram: int | None = None  # bytes of free RAM to plan with
    vram: int | None = None  # bytes of free GPU memory to plan with
    batch: int | None = None
    experts_on: tuple[ExpertsOn, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()  # (tensor-name regex, device); before all rules
    cache: str = "auto"  # experts that do not fit: "auto" | "off" | "page" | "private"
    cache_ram: int | None = None  # bytes that experts in RAM may take at most
    repack: str = "off"  # weights in the order of the processor's kernels: "off" | "on"
    prompt_cache: int | None = 0  # bytes of RAM for what was read in other conversations
    experts: int | None = None  # lossy: experts per token
    prefer_cached: float | None = None  # lossy: how much less probable a resident one may be


@dataclass(frozen=True, slots=True)
class LayerPlacement:
    index: int
    dense: str  # "gpu" | "ram"
    experts: str | None  # "gpu" | "ram" | "disk", the slowest of them; None for a dense layer
    dense_bytes: int
    expert_bytes: int
    expert_count: int
    expert_used: int
    device: str = CPU  # the engine's name of the dense part's device
    experts_gpu: int = 0  # bytes of ``expert_bytes`` on GPUs; a layer may be split by tensors
    experts_ram: int = 0
    experts_disk: int = 0


@dataclass(frozen=True, slots=True)
class Tiers:
    """Bytes per tier: weights, KV and compute together. Disk counts only what RAM cannot keep."""

    gpu: int
    ram: int
    disk: int


@dataclass(frozen=True, slots=True)
class CachePlan:
    regime: str  # "resident" | "page" | "private" | "off" | "none"
    budget: int  # bytes of RAM in which experts may stay
    why: str


@dataclass(frozen=True, slots=True)
class BatchGain:
    """What larger batches bring and cost: expected tokens/s with ``batch`` and with fewer tokens.

    ``prefill`` is of a prompt of ``prompt`` tokens.
    """

    prompt: int
    batch: int
    before: int  # tokens of the smaller batches
    prefill: float
    prefill_before: float
    decode: float
    decode_before: float


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is needed to load the model; with verdict NO, the figures that say why not."""

    verdict: Verdict
    settings: EngineSettings
    memory: MemoryReport
    tiers: Tiers
    layers: tuple[LayerPlacement, ...]
    max_context: int  # tokens; the largest that runs at all, of those trained for; 0: none does
    cache: CachePlan
    ram_budget: int  # bytes of RAM that the plan may use, without the reserve
    ram_reserve: int  # bytes left for everything else
    vram_budget: int
    reason: str  # one sentence: why this verdict; it and those below name options as typed
    advice: tuple[str, ...]  # what would change it, most useful first
    warnings: tuple[str, ...] = ()  # about the wishes; to be said once, before anything runs
    gpu_budgets: tuple[tuple[str, int], ...] = ()  # bytes allowed on each GPU, of ``vram_budget``
    missing_ram: int = (
        0  # bytes of RAM that would keep everything off the disk; 0: nothing is there
    )
    without_offload: MemoryReport | None = None  # where op-offload is on and may be switched off
    paged: int = 0  # bytes of weights that every token needs and RAM cannot keep, of ``tiers.disk``
    larger: tuple[Plan, ...] = ()  # the same with larger batches, where a GPU takes part
    gain: BatchGain | None = None  # why one of them was chosen

    @property
    def promised_ram(self) -> int:
        """Bytes of RAM that the model will take in the end, what it has read included."""
        return self.tiers.ram + self.settings.prompt_cache

    def told(self, tell: Callable[[str], str]) -> Plan:
        """This plan with each of its texts as ``tell`` words it."""
        return dataclasses.replace(
            self,
            cache=dataclasses.replace(self.cache, why=tell(self.cache.why)),
            reason=tell(self.reason),
            advice=tuple(map(tell, self.advice)),
            warnings=tuple(map(tell, self.warnings)),
        )

    def off_the_bus(self) -> Plan:
        """This plan with the host's weights multiplied by the processor in large batches, too."""
        memory = self.without_offload or self.memory
        settings = dataclasses.replace(self.settings, op_offload=False)
        ram = self.tiers.ram + memory.on(CPU).total - self.memory.on(CPU).total
        tiers = dataclasses.replace(self.tiers, gpu=memory.on_devices, ram=ram)
        return dataclasses.replace(
            self, settings=settings, memory=memory, tiers=tiers, without_offload=None, larger=()
        )
