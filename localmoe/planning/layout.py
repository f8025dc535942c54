"""Which device each tensor goes to under given settings: llama.cpp's own rules, restated.

Source: ``load_tensors`` in llama.cpp's src/llama-model.cpp. The planner uses this to choose what to
try; what a choice costs is measured by the engine.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import accumulate

from localmoe.facts.model import Model, Role, Tensor
from localmoe.planning.memory import CPU, EngineSettings

PROJECTIONS = ("gate", "up", "down", "gate_up")
_PROJECTION = re.compile(r"^blk\.(\d+)\.ffn_(gate|up|down|gate_up)_(?:ch)?exps")
_ON_HOST = ("token_embd.", "per_layer_token_embd.")  # looked up row by row


def layer_homes(model: Model, settings: EngineSettings) -> tuple[str, ...]:
    """The device of each layer's dense part; the last entry is that of the output matrices.

    ``gpu_layers`` takes layers from the end, the output as one layer more. Several devices get
    contiguous shares of them, in the proportions of ``tensor_split``.
    """
    count = len(model.layers) + 1
    wanted = settings.gpu_layers if settings.gpu_layers >= 0 else count
    on_devices = min(wanted, count) if settings.devices else 0
    first = count - on_devices
    shares = settings.tensor_split or (1.0,) * len(settings.devices)
    edges = [edge / sum(shares) for edge in accumulate(shares)]
    last = len(settings.devices) - 1
    return tuple(
        CPU
        if i < first
        else settings.devices[min(last, bisect_right(edges, (i - first) / on_devices))]
        for i in range(count)
    )


def home_of(tensor: Tensor, settings: EngineSettings, homes: tuple[str, ...]) -> str:
    """The device of one tensor; overrides win."""
    if settings.overrides:
        known = _overridden(settings.overrides)
        if tensor.name not in known:
            known[tensor.name] = next(
                (to for found, to in _searches(settings.overrides) if found(tensor.name)), None
            )
        if (device := known[tensor.name]) is not None:
            return device
    if tensor.layer is not None:
        return homes[tensor.layer]
    return CPU if tensor.name.startswith(_ON_HOST) else homes[-1]


@lru_cache(maxsize=64)
def _overridden(overrides: tuple[tuple[str, str], ...]) -> dict[str, str | None]:
    """Tensor → the device that the overrides give it, None: no override is for it; as asked for."""
    return {}


@lru_cache(maxsize=64)
def _searches(
    overrides: tuple[tuple[str, str], ...],
) -> tuple[tuple[Callable[[str], re.Match[str] | None], str], ...]:
    """What finds each override's pattern in a name, and the device it names."""
    return tuple((re.compile(pattern).search, device) for pattern, device in overrides)


def expert_parts(model: Model) -> dict[int, dict[str, int]]:
    """Bytes of each projection's routed experts ("gate", "up", "down", "gate_up"), per layer."""
    parts: dict[int, dict[str, int]] = {}
    for tensor in model.tensors:
        found = _PROJECTION.match(tensor.name)
        if tensor.role is Role.ROUTED_EXPERT and tensor.loaded and found is not None:
            layer = parts.setdefault(int(found[1]), {})
            layer[found[2]] = layer.get(found[2], 0) + tensor.nbytes
    return parts


def experts_to_host(layers: Iterable[int]) -> tuple[tuple[str, str], ...]:
    """The override that keeps the routed experts of some layers in host memory."""
    return _to_host(layers, PROJECTIONS)


def projections_to_host(layer: int, projections: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """The override that keeps some projections ("gate", "up", …) of one layer's experts in host
    memory, while the others stay on the device.
    """
    return _to_host((layer,), sorted(projections))


def _to_host(layers: Iterable[int], projections: Iterable[str]) -> tuple[tuple[str, str], ...]:
    numbers = "|".join(str(index) for index in layers)
    names = "|".join(projections)
    return ((rf"^blk\.({numbers})\.ffn_({names})_(ch)?exps", CPU),) if numbers and names else ()


def expert_bytes_on_host(model: Model, settings: EngineSettings) -> dict[int, int]:
    """Routed-expert bytes per layer that stay in host memory (or on disk)."""
    if not settings.devices and not settings.overrides:
        return {
            layer.index: layer.expert_bytes
            for layer in model.layers
            if layer.loaded and layer.expert_bytes
        }
    homes = layer_homes(model, settings)
    result: dict[int, int] = {}
    for tensor in model.tensors:
        if tensor.role is not Role.ROUTED_EXPERT or tensor.layer is None or not tensor.loaded:
            continue
        if home_of(tensor, settings, homes) == CPU:
            result[tensor.layer] = result.get(tensor.layer, 0) + tensor.nbytes
    return result
