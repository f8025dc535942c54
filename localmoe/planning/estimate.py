"""Bytes per device where the engine cannot be asked: a device its build does not have.

The engine still measures the whole model on the host; this splits its figures by the header. The
result is marked inexact.
"""

from __future__ import annotations

import re

from localmoe.facts.model import Model, Role, Tensor
from localmoe.planning.memory import CPU, DeviceMemory, EngineSettings, MemoryReport


def layers_on_device(model: Model, settings: EngineSettings) -> range:
    """Indices of the layers that ``gpu_layers`` puts on the device: the last ones.

    llama.cpp counts the output matrices as one layer more, and takes it first.
    """
    count = len(model.layers)
    wanted = settings.gpu_layers if settings.gpu_layers >= 0 else count + 1
    return range(max(0, count + 1 - wanted), count)


def device_of(
    tensor: Tensor, settings: EngineSettings, on_device: range, device: str, *, output: bool
) -> str:
    """Where llama.cpp would put one tensor, given one device beside the host."""
    for pattern, target in settings.overrides:
        if re.search(pattern, tensor.name):
            return target
    if tensor.layer is not None:
        return device if tensor.layer in on_device else CPU
    if tensor.name.startswith("token_embd") or tensor.name.startswith("per_layer_token_embd"):
        return CPU  # looked up row by row: llama.cpp keeps it on the host
    return device if output else CPU


def split(model: Model, host: MemoryReport, settings: EngineSettings, device: str) -> MemoryReport:
    """``host`` (everything on the host) divided between the host and one ``device``.

    Weights by the header; KV by the share of layers; the compute buffer is needed on the device in
    full, and on the host a tenth of it, for the tensors that pass through.
    """
    on_device = layers_on_device(model, settings)
    output = settings.gpu_layers != 0
    moved = sum(
        tensor.nbytes
        for tensor in model.tensors
        if tensor.loaded and device_of(tensor, settings, on_device, device, output=output) == device
    )
    tied = not any(tensor.name == "output.weight" for tensor in model.tensors)
    if tied and output:  # the embedding serves as output too, so the device gets a copy
        moved += sum(t.nbytes for t in model.tensors if t.name == "token_embd.weight")
    share = len(on_device) / max(1, len(model.layers))
    kv = round(host.kv * share)
    weights = max(0, host.weights - min(moved, host.weights))
    if share == 0 and not output:
        return MemoryReport(host.devices, exact=False)
    return MemoryReport(
        (
            DeviceMemory(CPU, weights, host.kv - kv, host.compute // 10),
            DeviceMemory(device, moved, kv, host.compute),
        ),
        exact=False,
    )


def expert_bytes_on_host(model: Model, settings: EngineSettings) -> dict[int, int]:
    """Routed-expert bytes per layer that stay in host memory (or on disk) under ``settings``."""
    result: dict[int, int] = {}
    on_device = layers_on_device(model, settings) if settings.devices else range(0)
    for tensor in model.tensors:
        if tensor.role is not Role.ROUTED_EXPERT or tensor.layer is None or not tensor.loaded:
            continue
        if device_of(tensor, settings, on_device, "device", output=True) == CPU:
            result[tensor.layer] = result.get(tensor.layer, 0) + tensor.nbytes
    return result
