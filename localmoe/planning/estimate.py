"""Bytes per device where the engine cannot be asked: devices that its build does not have.

The engine still measures the whole model on the host; this splits its figures by the header. The
result is marked inexact.
"""

from __future__ import annotations

from collections import Counter

from localmoe.facts.model import Model
from localmoe.planning.layout import home_of, layer_homes
from localmoe.planning.memory import CPU, DeviceMemory, EngineSettings, MemoryReport

HOST_COMPUTE_SHARE = 10  # the host's compute buffer is this part (1/10) of a device's


def split(model: Model, host: MemoryReport, settings: EngineSettings) -> MemoryReport:
    """Divides ``host``, the engine's figures with everything on the host, among the devices.

    Weights go where the header says; the KV cache in proportion to the layers; every device gets
    a compute buffer of full size.
    """
    homes = layer_homes(model, settings)
    used = [device for device in settings.devices if device in homes]
    if not used:
        return MemoryReport(host.devices, exact=False)
    weights: Counter[str] = Counter()
    for tensor in model.tensors:
        if tensor.loaded:
            weights[home_of(tensor, settings, homes)] += tensor.nbytes
    names = {tensor.name for tensor in model.tensors}
    if "output.weight" not in names and homes[-1] != CPU:  # tied: the device gets a copy
        weights[homes[-1]] += sum(
            tensor.nbytes for tensor in model.tensors if tensor.name == "token_embd.weight"
        )
    layers = Counter(homes[:-1])
    count = max(1, len(model.layers))

    def on(device: str, compute: int) -> DeviceMemory:
        return DeviceMemory(device, weights[device], host.kv * layers[device] // count, compute)

    return MemoryReport(
        (
            on(CPU, host.compute // HOST_COMPUTE_SHARE),
            *(on(device, host.compute) for device in used),
        ),
        exact=False,
    )
