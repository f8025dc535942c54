"""Every generated architecture: how it is built, its small sizes and its storage types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType as FileType

from tests.archs import deepseek, hybrids, others, qwen
from tests.archs.recipe import Dims, Recipe, Types, mxfp4, q4_k_m, uniform


@dataclass(frozen=True, slots=True)
class Storage:
    """A published quantisation: its ``general.file_type`` and the types it gives to tensors."""

    file_type: FileType
    types: Types


Q4_K_M = Storage(FileType.MOSTLY_Q4_K_M, q4_k_m)
Q8_0 = Storage(FileType.MOSTLY_Q8_0, uniform(Kind.Q8_0))
F16 = Storage(FileType.MOSTLY_F16, uniform(Kind.F16))
F32 = Storage(FileType.ALL_F32, uniform(Kind.F32))
MXFP4 = Storage(FileType.MOSTLY_MXFP4_MOE, mxfp4)


@dataclass(frozen=True, slots=True)
class Family:
    """``build(dims, storage.types)`` is the recipe of a file."""

    build: Callable[[Dims, Types], Recipe]
    dims: Dims
    storage: Storage

    def recipe(self) -> Recipe:
        return self.build(self.dims, self.storage.types)


FAMILIES: dict[str, Family] = {
    "qwen3moe": Family(qwen.qwen3moe, Dims(experts=16, used=4), Q4_K_M),
    "gpt-oss": Family(others.gpt_oss, Dims(used=4), MXFP4),
    "qwen3next": Family(qwen.qwen3next, Dims(experts=8), Q4_K_M),
    "deepseek2": Family(deepseek.deepseek2, Dims(layers=3), Q4_K_M),
    "llama-dense": Family(others.llama, Dims(experts=0, ff=768), Q4_K_M),
    "qwen3": Family(qwen.qwen3, Dims(layers=2), Q8_0),
    "mixtral": Family(others.llama, Dims(layers=3), Q4_K_M),
    "qwen2moe": Family(qwen.qwen2moe, Dims(layers=3), Q8_0),
    "qwen35moe": Family(qwen.qwen35moe, Dims(), Q4_K_M),
    "deepseek": Family(deepseek.deepseek, Dims(layers=3, shared_ff=512), Q4_K_M),
    "deepseek32": Family(deepseek.deepseek32, Dims(layers=3), Q4_K_M),
    "deepseek4": Family(
        deepseek.deepseek4,
        Dims(embd=512, heads=8, kv_heads=1, expert_ff=128, shared_ff=128),
        Q4_K_M,
    ),
    "glm4moe": Family(others.glm4moe, Dims(layers=3), Q4_K_M),
    "minimax-m2": Family(others.minimax_m2, Dims(layers=3), Q8_0),
    "nemotron_h_moe": Family(hybrids.nemotron_h_moe, Dims(layers=5), Q4_K_M),
    "llama4": Family(others.llama4, Dims(used=1), Q4_K_M),
    "olmoe": Family(others.olmoe, Dims(layers=2, kv_heads=4), F16),
    "granitemoe": Family(others.granitemoe, Dims(layers=3), Q4_K_M),
    "gemma4": Family(others.gemma4, Dims(layers=3), Q4_K_M),
    "ernie4_5-moe": Family(others.ernie4_5_moe, Dims(layers=3), Q4_K_M),
    "bailingmoe2": Family(others.bailingmoe2, Dims(layers=3, experts=16), Q4_K_M),
    "lfm2moe": Family(hybrids.lfm2moe, Dims(), Q4_K_M),
    "phimoe": Family(others.phimoe, Dims(layers=2, expert_ff=64), F32),
    "granitehybrid": Family(hybrids.granitehybrid, Dims(), Q4_K_M),
}
