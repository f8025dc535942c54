"""What a model file shall contain: metadata and tensor specifications, before any data exists."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gguf import GGMLQuantizationType as Kind

Value = bool | int | float | str | Sequence[bool] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes a family is built with; every field is a count of values or of things."""

    layers: int = 4
    embd: int = 256
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 512  # dense feed-forward
    experts: int = 8
    used: int = 2  # top-k
    expert_ff: int = 256
    shared_ff: int = 256
    dense_lead: int = 1  # leading dense layers, in families that have them
    vocab: int = 512
    context: int = 8192
    rope_base: float = 10000.0
    window: int = 64  # sliding attention window
    query_rank: int = 256  # latent attention (DeepSeek)
    latent_rank: int = 256
    nope_dim: int = 64
    value_dim: int = 64
    linear_state: int = 64  # gated delta nets (Qwen)
    linear_key_heads: int = 2
    linear_value_heads: int = 4


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor. ``shape`` is in GGUF order (fastest dimension first)."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    deviation: float
    mean: float = 0.0

    @property
    def rows(self) -> int:
        return math.prod(self.shape[1:])


Types = Callable[[str, tuple[int, ...]], Kind]


class Recipe:
    """Collects metadata and tensors of one architecture; ``types`` chooses the storage types."""

    def __init__(self, architecture: str, types: Types) -> None:
        self.architecture = architecture
        self.metadata: dict[str, Value] = {}
        self.tensors: list[TensorSpec] = []
        self._types = types

    def keys(self, values: dict[str, Value]) -> None:
        """Adds metadata under the architecture's prefix."""
        self.metadata |= {f"{self.architecture}.{name}": value for name, value in values.items()}

    def tensor(
        self,
        name: str,
        *shape: int,
        mean: float | None = None,
        deviation: float | None = None,
        kind: Kind | None = None,
    ) -> None:
        """Adds one tensor. Norms scatter around 1, biases around 0, weights keep variance."""
        centre, spread = _statistics(name, shape)
        self.tensors.append(
            TensorSpec(
                name,
                shape,
                kind or (Kind.F32 if _always_f32(name, shape) else self._types(name, shape)),
                spread if deviation is None else deviation,
                centre if mean is None else mean,
            )
        )


def _statistics(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if "attn_q_norm" in name or "attn_k_norm" in name:
        return 2.0, 0.1
    if "norm" in name and name.endswith(".weight"):
        return 1.0, 0.1
    if name.endswith(".scale"):
        return 1.0, 0.1
    if name.endswith(".bias"):
        return 0.0, 0.1
    gain = 1.0
    if name.startswith("output.") or "ffn_gate_inp" in name:
        gain = 4.0
    elif any(part in name for part in _ATTENDING):
        gain = 2.0
    return 0.0, gain / math.sqrt(shape[0])


# Sharp attention, so that a token far back still matters: scores deviate by about 4.
_ATTENDING = (".attn_q.", ".attn_k.", ".attn_q_b.", ".attn_kv_a_mqa.")


_F32_ONLY = (
    "ffn_gate_inp",
    "ssm_conv1d",
    "ssm_a",
    "ssm_d",
    "ssm_norm",
    "shortconv.conv",
    "hc_",
    "_ape.",
)


def _always_f32(name: str, shape: tuple[int, ...]) -> bool:
    """What no published quantisation touches: vectors, routers, convolutions."""
    return len(shape) == 1 or name.endswith(".bias") or any(part in name for part in _F32_ONLY)


def uniform(kind: Kind) -> Types:
    """One type everywhere, as in the F16, F32 and Q8_0 files."""
    return lambda name, shape: _fitting(kind, shape[0])


def q4_k_m(name: str, shape: tuple[int, ...]) -> Kind:
    """As in Q4_K_M files: Q6_K for the output and half of the value and down projections."""
    layer = int(name.split(".")[1]) if name.startswith("blk.") else 0
    half = ("attn_v." in name or "ffn_down" in name) and layer % 2
    precise = name == "output.weight" or half
    return _fitting(Kind.Q6_K if precise else Kind.Q4_K, shape[0])


def mxfp4(name: str, shape: tuple[int, ...]) -> Kind:
    """As in gpt-oss files: MXFP4 experts, everything else Q8_0."""
    return _fitting(Kind.MXFP4 if "_exps.weight" in name else Kind.Q8_0, shape[0])


def _fitting(kind: Kind, columns: int) -> Kind:
    """``kind`` where its rows divide into blocks, else the next type that does."""
    if kind in (Kind.Q4_K, Kind.Q6_K) and columns % 256:
        kind = Kind.Q8_0
    if kind in (Kind.Q8_0, Kind.MXFP4) and columns % 32:
        kind = Kind.F16
    return kind
