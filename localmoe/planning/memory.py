"""Memory as the engine counts it: bytes per device, asked with exactly the settings of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

CPU = "CPU"  # the engine's name of host memory, as a device
OFFLOADED = 32  # tokens; from here on llama.cpp has a GPU multiply a batch by host weights


@dataclass(frozen=True, slots=True)
class RoutedTensor:
    """The weights of all experts of one projection in one layer, and where they are."""

    name: str
    group: int  # tensors of one group are chosen by the same ids: the layer, as a rule
    part: int  # index of the file
    offset: int  # bytes from the start of that file
    nbytes: int
    experts: int


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything handed to llama.cpp that changes memory, speed or tokens.

    The dry run and the run get the same object, so their bytes agree.
    """

    context: int  # tokens
    batch: int = 512  # logical batch, tokens per decode call
    ubatch: int = 512  # physical batch
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attention: bool | None = None  # None: the engine decides
    swa_full: bool = False
    op_offload: bool = True  # large batches: copy host weights to a GPU and multiply there
    devices: tuple[str, ...] = ()  # GPU devices to use, by engine name; () = host only
    tensor_split: tuple[float, ...] = ()  # shares of the devices; () = equal
    gpu_layers: int = 0  # trailing layers on the devices, the output counted as one; -1 = all
    overrides: tuple[tuple[str, str], ...] = ()  # (tensor-name regex, device name)
    remotes: tuple[str, ...] = ()  # "host:port" of the workers of RPC0, RPC1 …, one per device
    load_mode: str = "mmap"  # "mmap" | "none"
    read_ahead: bool = True  # the whole file into the page cache at load; pointless beyond RAM
    repack: bool = False  # llama.cpp's use_extra_bufts
    cache: str = "off"  # experts in host memory: "off" | "page" | "private"
    cache_bytes: int = 0  # private: memory for experts
    cache_most: int = 0  # bytes to which that may grow while memory is left over; 0: not at all
    cache_lent: int = 0  # of ``cache_bytes``: what a full batch's buffers take while it is computed
    cache_shares: tuple[tuple[int, float], ...] = ()  # (layer, share of its experts); () = even
    prompt_cache: int = 0  # bytes of RAM for what was read in other conversations; 0: none is kept
    experts_used: int = 0  # lossy: experts per token; 0 = the model's own
    prefer_cached: float = 0.0  # lossy: how much less probable a resident expert may be (0…1)
    record: str = ""  # a file for the routing of every token
    record_logits: bool = False  # the routers' logits too
    replay: str = ""  # a recorded routing to impose
    predicted: float = 0.0  # replay: share of experts that the prediction gets right; 0: none
    threads: int = 0  # decode; 0 = engine default
    threads_batch: int = 0  # prefill


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on one device. ``device`` is the engine's name; host memory is ``CPU``."""

    device: str
    weights: int
    kv: int  # KV cache and recurrent state
    compute: int  # scratch buffers of the largest batch

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The engine's answer to one dry run."""

    devices: tuple[DeviceMemory, ...]
    exact: bool  # False when an estimate stands in for the engine's own figure

    def on(self, device: str) -> DeviceMemory:
        for entry in self.devices:
            if entry.device == device:
                return entry
        return DeviceMemory(device, 0, 0, 0)

    @property
    def on_devices(self) -> int:
        """Bytes that are not in host memory."""
        return sum(entry.total for entry in self.devices if entry.device != CPU)

    @property
    def weights(self) -> int:
        return sum(d.weights for d in self.devices)

    @property
    def kv(self) -> int:
        return sum(d.kv for d in self.devices)

    @property
    def compute(self) -> int:
        return sum(d.compute for d in self.devices)

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.compute


Measure = Callable[[EngineSettings], MemoryReport]
"""Ask the engine (or, in tests, an invented one) what these settings cost."""
