"""The generated models of the table of predicted and measured speeds, and those not in it.

``CASES`` are in the table and were never looked at while a constant of the forecast was chosen;
``CALIBRATION`` are what the constants were chosen on. A case that is looked at for that moves over.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType as FileType

from scripts.make_standin import MODELS
from tests.archs import deepseek, hybrids, others, qwen
from tests.archs.families import F16, MXFP4, Q4_K_M, Q8_0, Family, Storage
from tests.archs.recipe import Dims, Types


@dataclass(frozen=True, slots=True)
class Case:
    """One line. ``share``: of the model's size as a hard limit of memory; None: no limit.

    ``learned``: it is forecast with the profile of an earlier session, else without one. ``long``:
    a prompt of 8,192 tokens is read too. Cases of one name run the same file.
    """

    name: str
    family: Family
    share: float | None = None
    learned: bool = False
    long: bool = False


def mixed(kind: Kind, precise: Kind) -> Types:
    """``kind`` for the experts, ``precise`` for the rest; rows that do not fit a block get F16."""

    def types(name: str, shape: tuple[int, ...]) -> Kind:
        chosen = kind if "_exps." in name else precise
        wanted = 32 if chosen in (Kind.Q4_0, Kind.Q8_0) else 256
        return Kind.F16 if shape[0] % wanted else chosen

    return types


Q5_K = Storage(FileType.MOSTLY_Q5_K_M, mixed(Kind.Q5_K, Kind.Q6_K))
Q2_K = Storage(FileType.MOSTLY_Q2_K, mixed(Kind.Q2_K, Kind.Q4_K))
Q4_0 = Storage(FileType.MOSTLY_Q4_0, mixed(Kind.Q4_0, Kind.Q8_0))
Q6_K = Storage(FileType.MOSTLY_Q6_K, mixed(Kind.Q6_K, Kind.Q6_K))
IQ4_XS = Storage(FileType.MOSTLY_IQ4_XS, mixed(Kind.IQ4_XS, Kind.Q6_K))

_QWEN = Dims(
    layers=12,
    embd=2048,
    heads=16,
    kv_heads=4,
    head_dim=128,
    ff=6144,
    experts=64,
    used=8,
    expert_ff=768,
    shared_ff=768,
    vocab=60000,
)


def _published(name: str, layers: int, vocab: int | None = None) -> Family:
    """A published model's shapes, with fewer layers."""
    family = MODELS[name]
    dims = replace(family.dims, layers=layers, vocab=vocab or family.dims.vocab)
    return replace(family, dims=dims)


CASES: tuple[Case, ...] = (
    Case("qwen3moe", Family(qwen.qwen3moe, replace(_QWEN, layers=2, vocab=32000), F16), long=True),
    Case("mixtral", Family(others.llama, replace(MODELS["mixtral-8x7b"].dims, layers=2), Q4_0)),
    Case("gpt-oss", _published("gpt-oss-120b", 2, 32000), long=True),
    Case("olmoe", _published("olmoe-1b-7b", 4), long=True),
    Case("glm-4.7-flash", _published("glm-4.7-flash", 6, 32000), long=True),
    Case(
        "qwen35moe",
        Family(
            qwen.qwen35moe,
            replace(
                _QWEN,
                layers=4,
                vocab=32000,
                linear_state=128,
                linear_key_heads=16,
                linear_value_heads=32,
            ),
            IQ4_XS,
        ),
        long=True,
    ),
    Case(
        "granitemoe",
        Family(others.granitemoe, Dims(6, 1536, 12, 4, 128, 512, 40, 8, 768, vocab=49152), Q6_K),
    ),
    Case(
        "granitehybrid",
        Family(
            hybrids.granitehybrid,
            Dims(8, 1536, 12, 4, 128, 512, 48, 6, 512, 1024, vocab=49152),
            Q5_K,
        ),
        long=True,
    ),
    Case(
        "lfm2moe",
        Family(
            hybrids.lfm2moe,
            Dims(6, 2048, 32, 8, 64, 7168, 32, 4, 1792, dense_lead=2, vocab=65536),
            Q4_0,
        ),
    ),
    Case(
        "bailingmoe2",
        Family(
            others.bailingmoe2,
            Dims(4, 2048, 16, 4, 128, 5120, 128, 8, 512, 512, vocab=32000),
            Q6_K,
        ),
    ),
    Case("phimoe", Family(others.phimoe, Dims(3, 2048, 16, 4, 128, 512, 16, 2, 2048), F16)),
    Case(
        "minimax-m2",
        Family(
            others.minimax_m2,
            Dims(4, 3072, 48, 8, 128, 1536, 64, 8, 1536, vocab=32000),
            IQ4_XS,
        ),
    ),
    Case(
        "ernie4_5-moe",
        Family(
            others.ernie4_5_moe,
            Dims(4, 2560, 20, 4, 128, 12288, 64, 6, 1536, 1536, vocab=32000),
            Q2_K,
        ),
    ),
    Case(
        "deepseek",
        Family(deepseek.deepseek, replace(_QWEN, layers=5, shared_ff=1536, vocab=32000), Q4_K_M),
    ),
    Case("gpt-oss", _published("gpt-oss-120b", 2, 32000), 0.4, long=True),
    Case(
        "mixtral", Family(others.llama, replace(MODELS["mixtral-8x7b"].dims, layers=2), Q4_0), 0.7
    ),
    Case("glm-4.7-flash", _published("glm-4.7-flash", 6, 32000), 0.6),
    Case(
        "minimax-m2",
        Family(
            others.minimax_m2,
            Dims(4, 3072, 48, 8, 128, 1536, 64, 8, 1536, vocab=32000),
            IQ4_XS,
        ),
        0.6,
        learned=True,
    ),
    Case(
        "qwen3moe, Q4_K_M",
        Family(qwen.qwen3moe, replace(_QWEN, layers=6, experts=128, vocab=32000), Q4_K_M),
        0.5,
        learned=True,
        long=True,
    ),
)

CALIBRATION: tuple[Case, ...] = (
    Case("qwen2moe", Family(qwen.qwen2moe, replace(_QWEN, layers=4, experts=32), Q8_0)),
    Case("mixtral", Family(others.llama, replace(MODELS["mixtral-8x7b"].dims, layers=2), Q6_K)),
    Case("qwen3next", _published("qwen3-next-80b-a3b", 4)),
    Case("glm-4.5-air", _published("glm-4.5-air", 3)),
    Case("gpt-oss", _published("gpt-oss-20b", 8)),
    Case("qwen3-30b-a3b", _published("qwen3-30b-a3b", 8)),
    Case(
        "qwen35moe",
        Family(
            qwen.qwen35moe,
            replace(_QWEN, layers=8, linear_state=128, linear_key_heads=16, linear_value_heads=32),
            Q8_0,
        ),
    ),
    Case(
        "nemotron_h_moe",
        Family(
            hybrids.nemotron_h_moe,
            Dims(5, 2560, 20, 4, 128, 2048, 64, 6, 1792, 3584, vocab=131072),
            Q4_K_M,
        ),
    ),
    Case(
        "deepseek2",
        Family(
            deepseek.deepseek2,
            Dims(
                6,
                2048,
                16,
                16,
                128,
                8192,
                64,
                6,
                1408,
                1408,
                vocab=102400,
                query_rank=1536,
                latent_rank=512,
                nope_dim=128,
                value_dim=128,
            ),
            Q4_K_M,
        ),
    ),
    Case(
        "llama, dense",
        Family(others.llama, Dims(12, 2048, 32, 8, 64, 8192, 0, 0, vocab=128256), F16),
    ),
    Case(
        "granitemoe",
        Family(others.granitemoe, Dims(24, 1024, 16, 8, 64, 512, 32, 8, 512, vocab=49152), Q8_0),
    ),
    Case(
        "qwen3moe in 0.5",
        Family(qwen.qwen3moe, replace(_QWEN, layers=12, experts=128), Q4_K_M),
        0.5,
    ),
    Case("olmoe, 0.5 of it in memory", _published("olmoe-1b-7b", 16), 0.5, learned=True),
    Case("qwen2moe in 0.6", Family(qwen.qwen2moe, replace(_QWEN, layers=10), Q8_0), 0.6, True),
    Case(
        "gpt-oss, 4 layers",
        Family(others.gpt_oss, replace(MODELS["gpt-oss-20b"].dims, layers=4, vocab=50000), MXFP4),
    ),
    Case(
        "bailingmoe2, 0.5 of it in memory",
        Family(
            others.bailingmoe2,
            Dims(16, 2048, 16, 4, 128, 5120, 96, 6, 768, 768, vocab=60000),
            Q4_K_M,
        ),
        0.5,
        learned=True,
    ),
    Case("gpt-oss, 0.7 of it in memory", _published("gpt-oss-20b", 14), 0.7, learned=True),
    # too little memory for the stages of a prompt's batches:
    Case(
        "mixtral, 0.65 of it in memory",
        Family(others.llama, replace(MODELS["mixtral-8x7b"].dims, layers=2), Q6_K),
        0.65,
    ),
    Case("gpt-oss, 0.55 of it in memory", _published("gpt-oss-20b", 4, 32000), 0.55),
)
