"""Recipes → GGUF files, one tensor in memory at a time."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from gguf import (
    SHARD_NAME_FORMAT,
    GGMLQuantizationType,
    GGUFValueType,
    GGUFWriter,
    LlamaFileType,
)

from tests.archs.blocks import Bytes, random_rows, row_bytes
from tests.archs.recipe import Recipe, TensorSpec, Value
from tests.archs.vocabulary import CHATML, Vocabulary


class TensorData(Protocol):
    """A tensor's bytes: an array, or something that writes itself piece by piece."""

    @property
    def nbytes(self) -> int: ...

    def tofile(self, file: BinaryIO, /) -> Any: ...


Data = Callable[[TensorSpec], TensorData]


def write(
    recipe: Recipe,
    path: Path,
    *,
    data: Data,
    vocabulary: Vocabulary,
    file_type: LlamaFileType,
    name: str,
    split: int | None = None,
    template: str | None = CHATML,
) -> list[Path]:
    """Writes ``path`` (or its ``split`` parts, ``path``'s stem before "-00001-of-…") in order.

    The files appear under their names only when complete; a failure leaves nothing behind.
    """
    logging.getLogger("gguf").setLevel(logging.ERROR)
    partial = path.with_suffix(".partial")
    try:
        parts = _write_all(partial, recipe, data, vocabulary, file_type, name, split, template)
    except BaseException:
        for leftover in partial.parent.glob(f"{partial.stem}*.partial"):
            leftover.unlink()
        raise
    if parts == 1:
        return [partial.rename(path)]
    return [
        partial.with_name(SHARD_NAME_FORMAT.format(partial.stem, i, parts)).rename(
            path.with_name(SHARD_NAME_FORMAT.format(path.stem, i, parts))
        )
        for i in range(1, parts + 1)
    ]


class _Writer(GGUFWriter):  # type: ignore[misc]
    """Packs the arrays of a vocabulary, which are tuples, once for all files that have them."""

    def _pack_val(
        self, val: Any, vtype: Any, add_vtype: bool, sub_type: GGUFValueType | None = None
    ) -> bytes:
        if isinstance(val, tuple):
            return _packed(val)
        packed: bytes = super()._pack_val(val, vtype, add_vtype, sub_type)
        return packed


@lru_cache(maxsize=8)
def _packed(values: tuple[str, ...] | tuple[int, ...]) -> bytes:
    """An array of texts or whole numbers as GGUF has it: type, element type, count, elements."""
    if isinstance(values[0], str):
        kind = GGUFValueType.STRING
        texts = [str(value).encode() for value in values]
        body = b"".join(struct.pack("<Q", len(text)) + text for text in texts)
    else:
        kind = GGUFValueType.INT32
        body = struct.pack(f"<{len(values)}i", *values)
    return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(values)) + body


def _write_all(
    path: Path,
    recipe: Recipe,
    data: Data,
    vocabulary: Vocabulary,
    file_type: LlamaFileType,
    name: str,
    split: int | None,
    template: str | None,
) -> int:
    """Writes ``path`` or its parts; returns how many there are."""
    per_part = -(-len(recipe.tensors) // split) if split else 0
    writer = _Writer(path, recipe.architecture, split_max_tensors=per_part)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_quantization_version(2)
    for key, value in recipe.metadata.items():
        _add(writer, key, value)
    _add_vocabulary(writer, vocabulary, template)
    for spec in recipe.tensors:
        width = row_bytes(spec.shape[0], spec.kind)
        shape = (*reversed(spec.shape[1:]), width)
        writer.add_tensor_info(
            spec.name, shape, np.dtype(np.uint8), spec.rows * width, raw_dtype=spec.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for spec in recipe.tensors:
        writer.write_tensor_data(data(spec))
    parts = len(writer.tensors)
    writer.close()
    return parts


def random_data(recipe: Recipe, seed: int, vocabulary: Vocabulary) -> Data:
    """Independent random weights; output rows of silent tokens are zero, so never the greatest."""
    rng = np.random.default_rng(seed)
    experts = recipe.metadata.get(f"{recipe.architecture}.expert_count")
    tied = all(spec.name != "output.weight" for spec in recipe.tensors)
    output = "token_embd.weight" if tied else "output.weight"

    def data(spec: TensorSpec) -> Bytes:
        if spec.kind is GGMLQuantizationType.I32:  # expert ids of each token, all different
            assert isinstance(experts, int)
            ids = np.argsort(rng.random((spec.rows, experts)), axis=1)[:, : spec.shape[0]]
            return ids.astype(np.int32).view(np.uint8)
        rows = random_rows(rng, spec.rows, spec.shape[0], spec.kind, spec.deviation, spec.mean)
        if spec.name == output:
            rows[list(vocabulary.silent)] = 0
        return rows

    return data


def _add(writer: GGUFWriter, key: str, value: Value) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        _add_array(writer, key, value)


def _add_array(writer: GGUFWriter, key: str, values: Sequence[bool | int | float]) -> None:
    element = (
        GGUFValueType.BOOL
        if isinstance(values[0], bool)
        else GGUFValueType.FLOAT32
        if isinstance(values[0], float)
        else GGUFValueType.UINT32
    )
    writer.add_key_value(key, list(values), GGUFValueType.ARRAY, sub_type=element)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary, template: str | None) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.id("<|endoftext|>"))
    writer.add_pad_token_id(vocabulary.id("<|endoftext|>"))
    writer.add_eos_token_id(vocabulary.id("<|im_end|>"))
    writer.add_eot_token_id(vocabulary.id("<|im_end|>"))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)
