"""Small GGUF files for these tests: well-formed by the ``gguf`` package, hostile by hand."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

Shape = tuple[int, ...]

STRING, ARRAY, UINT8, UINT32, FLOAT32, BOOL, UINT64 = 8, 9, 0, 4, 6, 7, 10

EXPERTS: dict[str, Shape] = {  # shapes fastest dimension first
    "token_embd.weight": (64, 100),
    "output.weight": (64, 100),
    "blk.0.attn_q.weight": (64, 64),
    "blk.0.ffn_gate_inp.weight": (64, 8),
    "blk.0.ffn_gate_inp_shexp.weight": (64,),
    "blk.0.exp_probs_b.bias": (8,),
    "blk.0.ffn_up_exps.weight": (64, 32, 8),
    "blk.0.ffn_down_exps.weight": (32, 64, 8),
    "blk.0.ffn_up_shexp.weight": (64, 32),
    "blk.0.ffn_norm_exps.weight": (64,),
}


def write_model(
    path: Path,
    tensors: Mapping[str, Shape] = EXPERTS,
    *,
    architecture: str = "testmoe",
    keys: Mapping[str, Any] | None = None,
    split: int = 0,
) -> list[Path]:
    """F32 tensors by name and shape; ``keys`` replaces the usual metadata. All parts in order."""
    writer = GGUFWriter(path, architecture, split_max_tensors=split)
    usual = {f"{architecture}.block_count": 1, f"{architecture}.expert_used_count": 2}
    for key, value in (usual if keys is None else keys).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(tuple(reversed(shape)), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}*.gguf"))


def string(text: str | bytes) -> bytes:
    """A GGUF string."""
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    """One metadata entry."""
    return string(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, elements: bytes) -> bytes:
    """An array's value; ``count`` may lie."""
    return struct.pack("<IQ", kind, count) + elements


def tensor(
    name: str | bytes, shape: Sequence[int], kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """One row of the tensor table."""
    count = len(shape) if dims is None else dims
    return (
        string(name)
        + struct.pack("<I", count)
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )


def gguf(
    keys: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    data: int = 0,
    alignment: int = 32,
) -> bytes:
    """A file of these entries; ``data`` zero bytes follow the padded header."""
    n_tensors = len(tensors) if tensor_count is None else tensor_count
    n_keys = len(keys) if key_count is None else key_count
    head = magic + struct.pack("<IQQ", version, n_tensors, n_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)
