"""What a GGUF model is: parts, tensors and their roles, layers and their experts.

``read_model`` is the one entry: any part of a multi-part set → ``Model``.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

Value = int | float | bool | str | tuple["Value", ...]


class Role(enum.Enum):
    """What a tensor is for; decides where a plan may put it."""

    DENSE = "dense"  # attention, norms, dense feed-forward, embeddings, output
    ROUTER = "router"  # ffn_gate_inp and its biases
    SHARED_EXPERT = "shared"  # *_shexp: used by every token
    ROUTED_EXPERT = "routed"  # *_exps: only the top-k experts of a token are read


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a tensor table. ``shape`` is in GGUF order (fastest dimension first)."""

    name: str
    shape: tuple[int, ...]
    type_name: str  # "Q4_K", "F32" …
    offset: int  # bytes from the start of its part's file
    nbytes: int
    part: int  # index into Model.paths
    layer: int | None  # N of "blk.N.", else None
    role: Role


@dataclass(frozen=True, slots=True)
class Layer:
    """Bytes of one layer, split by what a token needs of it."""

    index: int
    dense_bytes: int  # dense + router + shared experts
    expert_bytes: int  # all routed experts together; 0 for a dense layer
    expert_count: int  # routed experts in this layer (from the tensors' own shape)
    expert_used: int  # top-k


@dataclass(frozen=True, slots=True)
class Model:
    """A GGUF model on disk (or its header alone)."""

    name: str  # short, for people: the file's stem without the part suffix
    paths: tuple[Path, ...]  # all parts in order
    size: int  # bytes of all parts
    header_bytes: int  # bytes of all parts before their tensor data
    architecture: str
    quantization: str  # "Q4_K_M", "MXFP4", … from general.file_type, else the commonest type
    metadata: Mapping[str, Value]  # of the first part; long arrays are kept as tuples
    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    context_train: int  # the model's own context length, 0 if unknown
    parameters: int  # total weights
    active_parameters: int  # weights that one token touches
    chat_template: str | None

    @property
    def dense_bytes(self) -> int:
        """Bytes that every token needs: everything except routed experts."""
        return sum(t.nbytes for t in self.tensors if t.role is not Role.ROUTED_EXPERT)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts."""
        return sum(t.nbytes for t in self.tensors if t.role is Role.ROUTED_EXPERT)

    @property
    def is_moe(self) -> bool:
        return any(layer.expert_count for layer in self.layers)
