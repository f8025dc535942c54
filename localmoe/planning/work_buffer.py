"""The memory in which ggml's processor backend prepares a multiplication. Pure.

The engine's report of its buffers leaves it out, since the backend allocates it with the first
graph that it computes. Source of the formula: ``ggml_graph_plan`` in llama.cpp's ggml-cpu.c.
"""

from __future__ import annotations

from dataclasses import dataclass

from localmoe.facts.model import Model, Role

CACHE_LINE = 64  # bytes
THREADS = 256  # a cache line for each; more cores shall not need more memory in a plan
ROW_MAP = 8  # bytes per token and expert: where a row of the batch goes
QUANTIZED = 292 / 256  # bytes per value of a batch, made ready for quantized weights (Q8_K)
HALF = 2.0  # … for F16 and BF16 weights


@dataclass(frozen=True, slots=True)
class WorkBuffer:
    """What each multiplication of a model needs, as figures that do not depend on the batch."""

    dense: float  # bytes per token, of the largest dense matrix
    routed: tuple[tuple[float, int, int], ...]  # (bytes per token, experts, experts per token)

    def size(self, tokens: int, *, experts_on_host: bool) -> int:
        """Bytes for batches of ``tokens`` tokens; the largest multiplication decides."""
        sizes = [tokens * self.dense]
        if experts_on_host:
            sizes += [
                tokens * values + experts * (8 + CACHE_LINE + ROW_MAP * used * tokens)
                for values, experts, used in self.routed
            ]
        return int(max(sizes)) + CACHE_LINE * THREADS


def work_buffer_of(model: Model, experts_used: int = 0) -> WorkBuffer:
    """The work buffer of ``model``. ``experts_used``: experts per token; 0: the model's own."""
    dense = 0.0
    routed: set[tuple[float, int, int]] = set()
    for tensor in model.tensors:
        if not tensor.loaded or len(tensor.shape) < 2 or tensor.type_name == "F32":
            continue
        each = HALF if tensor.type_name in ("F16", "BF16") else QUANTIZED
        if tensor.role is not Role.ROUTED_EXPERT:
            dense = max(dense, each * tensor.shape[0])
        elif tensor.layer is not None and len(tensor.shape) > 2:
            used = experts_used or model.layers[tensor.layer].expert_used
            # The down projection has an input of its own for every expert of a token.
            inputs = used if "_down_" in tensor.name else 1
            routed.add((each * tensor.shape[0] * inputs, tensor.shape[-1], used))
    return WorkBuffer(dense, tuple(sorted(routed)))
