"""Invented models and machines, and an invented engine that measures by simple rules."""

from __future__ import annotations

import re

from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Layer, Model, Role, Tensor
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
    parts: int = 1,
) -> Model:
    """``layers`` equal layers; ``expert_mib`` per expert and layer, in ``parts`` tensors (1, 3)."""
    tensors = [
        _tensor("token_embd.weight", embedding_mib * MIB, None, Role.DENSE),
        _tensor("output.weight", embedding_mib * MIB, None, Role.DENSE),
    ]
    rows = []
    for i in range(layers):
        tensors.append(_tensor(f"blk.{i}.attn_q.weight", dense_mib * MIB, i, Role.DENSE))
        each = int(expert_mib * MIB) * experts
        names = (("gate_up",) if parts == 1 else ("gate", "up", "down")) if experts else ()
        tensors += [
            _experts(f"blk.{i}.ffn_{name}_exps.weight", each // parts, i, experts) for name in names
        ]
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


def _experts(name: str, nbytes: int, layer: int, count: int) -> Tensor:
    shape = (nbytes // count, count)
    return Tensor(name, shape, "Q8_0", 0, nbytes, 0, layer, Role.ROUTED_EXPERT)


def engine(model: Model, kv_per_token: int = 48 * 1024) -> Measure:
    """Exact sums: weights by name, KV linear in the context, compute linear in the batch."""

    def measure(settings: EngineSettings) -> MemoryReport:
        kv_size = {"f16": 1.0, "q8_0": 0.53}[settings.type_k]
        kv = int(settings.context * kv_per_token * kv_size)
        compute = settings.ubatch * 600 * 1024
        names = settings.devices
        count = len(model.layers) + 1  # the output counts as a layer, the last one
        wanted = count if settings.gpu_layers < 0 else settings.gpu_layers
        taken = min(wanted, count) if names else 0
        split = settings.tensor_split or (1.0,) * len(names)

        def home_of_layer(index: int) -> str:
            """The first device whose share of the taken layers, summed up, goes beyond this one."""
            position = index - (count - taken)
            if position < 0:
                return CPU
            reached = 0.0
            for name, part in zip(names, split, strict=True):
                reached += part / sum(split)
                if position / taken < reached:
                    return name
            return names[-1]

        bytes_on = dict.fromkeys((CPU, *names), 0)
        layers_on = dict.fromkeys((CPU, *names), 0)
        for layer in model.layers:
            layers_on[home_of_layer(layer.index)] += 1
        for tensor in model.tensors:
            home = CPU
            if tensor.layer is not None:
                home = home_of_layer(tensor.layer)
            elif tensor.name == "output.weight":
                home = home_of_layer(count - 1)
            for pattern, target in settings.overrides:
                if re.search(pattern, tensor.name):
                    home = target
                    break
            bytes_on[home] += tensor.nbytes
        return MemoryReport(
            tuple(
                DeviceMemory(
                    name,
                    bytes_on[name],
                    kv * layers_on[name] // len(model.layers),
                    compute // 8 if name == CPU and names else compute,
                )
                for name in (CPU, *names)
            ),
            exact=True,
        )

    return measure
