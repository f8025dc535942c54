"""Invented models and machines, and an invented engine that measures by simple rules."""

from __future__ import annotations

import re

from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Layer, Model, Role, Tensor
from localmoe.planning import estimate
from localmoe.planning.memory import CPU, DeviceMemory, EngineSettings, Measure, MemoryReport

MIB = 1024 * 1024
GIB = 1024 * MIB


def machine(ram_gib: float, *vram_gib: float, total_gib: float | None = None) -> Machine:
    """``ram_gib`` available (of ``total_gib``), one engine GPU per figure in ``vram_gib``."""
    total = int((total_gib or ram_gib) * GIB)
    return Machine(
        os="Linux",
        cpu="invented",
        cores_physical=8,
        cores_logical=16,
        ram_total=total,
        ram_available=int(ram_gib * GIB),
        ram_limited_by=None,
        gpus=tuple(
            Gpu(f"card {i}", int(v * GIB), int(v * GIB), True, f"GPU{i}", "invented")
            for i, v in enumerate(vram_gib)
        ),
        disk_free=500 * GIB,
    )


def moe_model(
    layers: int = 24,
    experts: int = 128,
    used: int = 8,
    expert_mib: float = 3.0,
    dense_mib: int = 16,
    embedding_mib: int = 200,
    context: int = 131072,
) -> Model:
    """``layers`` equal layers; ``expert_mib`` per expert and layer."""
    tensors = [
        _tensor("token_embd.weight", embedding_mib * MIB, None, Role.DENSE),
        _tensor("output.weight", embedding_mib * MIB, None, Role.DENSE),
    ]
    rows = []
    for i in range(layers):
        tensors.append(_tensor(f"blk.{i}.attn_q.weight", dense_mib * MIB, i, Role.DENSE))
        each = int(expert_mib * MIB) * experts
        if experts:
            tensors.append(_tensor(f"blk.{i}.ffn_gate_up_exps.weight", each, i, Role.ROUTED_EXPERT))
        rows.append(Layer(i, dense_mib * MIB, each, experts, used if experts else 0))
    size = sum(t.nbytes for t in tensors)
    return Model(
        name="invented",
        paths=(),
        size=size,
        header_bytes=0,
        architecture="qwen3moe",
        quantization="Q4_K_M",
        metadata={},
        tensors=tuple(tensors),
        layers=tuple(rows),
        context_train=context,
        parameters=size,
        active_parameters=size,
        chat_template=None,
    )


def _tensor(name: str, nbytes: int, layer: int | None, role: Role) -> Tensor:
    return Tensor(name, (nbytes,), "Q8_0", 0, nbytes, 0, layer, role)


def engine(model: Model, kv_per_token: int = 48 * 1024) -> Measure:
    """Exact sums: weights by name, KV linear in the context, compute linear in the batch."""

    def measure(settings: EngineSettings) -> MemoryReport:
        kv_size = {"f16": 1.0, "q8_0": 0.53}[settings.type_k]
        kv = int(settings.context * kv_per_token * kv_size)
        compute = settings.ubatch * 600 * 1024
        on_device = estimate.layers_on_device(model, settings) if settings.devices else range(0)
        names = settings.devices
        bytes_on = dict.fromkeys((CPU, *names), 0)
        for tensor in model.tensors:
            home = CPU
            if tensor.layer is not None and tensor.layer in on_device:
                index = (tensor.layer - on_device.start) * len(names) // len(on_device)
                home = names[index]
            elif tensor.name == "output.weight" and names:
                home = names[-1]
            for pattern, target in settings.overrides:
                if re.search(pattern, tensor.name):
                    home = target
            bytes_on[home] += tensor.nbytes
        share = len(on_device) / len(model.layers) / max(1, len(names))
        rows = [DeviceMemory(CPU, bytes_on[CPU], kv, compute)]
        if names:
            host_kv = kv - int(kv * share) * len(names)
            rows = [DeviceMemory(CPU, bytes_on[CPU], host_kv, compute // 8)]
            rows += [DeviceMemory(n, bytes_on[n], int(kv * share), compute) for n in names]
        return MemoryReport(tuple(rows), exact=True)

    return measure
