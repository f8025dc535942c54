"""What a GGUF model is: parts, tensors and their roles, layers and their experts.

``read_model`` is the one entry: any part of a multi-part set → ``Model``.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import ModelFileError
from localmoe.facts.file_kind import MODEL, kind_of
from localmoe.facts.ggml_types import FILE_TYPES
from localmoe.facts.gguf import Header, LongArray, Value
from localmoe.facts.parts import PartName, read_parts
from localmoe.facts.roles import Role, layer_of, role_of
from localmoe.text import clean_line

__all__ = ["Layer", "LongArray", "Model", "Role", "Tensor", "Value", "read_model"]

MAX_NAME = 64  # characters of an architecture's name; real ones have under 20
MAX_LAYERS = 512  # llama.cpp's LLAMA_MAX_LAYERS
_GUESSED = 1024  # LLAMA_FTYPE_GUESSED, a flag on top of general.file_type
_ENCODER_PREFIXES = ("v.", "a.", "mm.", "resampler.")  # tools/mtmd/clip-impl.h
_LOOKED_UP = ("token_embd.weight", "per_layer_token_embd.weight")  # one row per token is read


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
    loaded: bool = True  # False in MTP layers, which the engine leaves on disk

    @property
    def elements(self) -> int:
        """Weights in this tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layer:
    """Bytes of one layer, split by what a token needs of it.

    An MTP layer (multi-token prediction, ``nextn`` in llama.cpp) is not loaded: all its figures
    are 0. It keeps its place, because ``gpu_layers`` counts it.
    """

    index: int
    dense_bytes: int  # dense + router + shared experts
    expert_bytes: int  # all routed experts together; 0 for a dense layer
    expert_count: int  # routed experts in this layer (from the tensors' own shape)
    expert_used: int  # top-k
    loaded: bool = True  # False for an MTP layer


@dataclass(frozen=True, slots=True)
class Model:
    """A GGUF model on disk (or its header alone).

    MTP layers count in ``size`` and ``tensors`` only: the engine does not load them. Neither does
    a token touch the token embedding beyond one row, so ``active_parameters`` leaves it out,
    unless it serves as the output matrix too (tied).
    """

    name: str  # short, for people: the file's stem without the part suffix
    paths: tuple[Path, ...]  # all parts in order
    size: int  # bytes of all parts
    header_bytes: int  # bytes of all parts before their tensor data
    architecture: str
    quantization: str  # "Q4_K_M", "MXFP4", … from general.file_type, else the commonest type
    metadata: Mapping[str, Value]  # of the first part; arrays as tuples, long ones as LongArray
    tensors: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    context_train: int  # the model's own context length, 0 if unknown
    parameters: int  # total weights
    active_parameters: int  # weights that one token touches
    chat_template: str | None

    @property
    def dense_bytes(self) -> int:
        """Bytes that every token needs: everything loaded except routed experts."""
        return sum(t.nbytes for t in self.tensors if t.loaded and t.role is not Role.ROUTED_EXPERT)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts that are loaded."""
        return sum(t.nbytes for t in self.tensors if t.loaded and t.role is Role.ROUTED_EXPERT)

    @property
    def is_moe(self) -> bool:
        return any(layer.expert_count for layer in self.layers)


def read_model(path: str | os.PathLike[str]) -> Model:
    """Read the header of a model; ``path`` may be any part of a multi-part set.

    No tensor data is read. Raises ModelFileError for whatever is not a complete GGUF model.
    """
    paths, headers = read_parts(Path(path))
    metadata = headers[0].metadata
    part = PartName.parse(paths[0].name)
    name = part.stem if part else paths[0].stem
    try:
        architecture = _architecture(metadata)
        tensors = _tensors(headers, _mtp_layers(headers, metadata, architecture))
        layers = _layers(tensors, metadata, architecture)
    except ModelFileError as error:
        message = f"{clean_line(paths[0].name)}: {error.message}"
        raise ModelFileError(message, hint=error.hint) from error
    used = {layer.index: layer.expert_used for layer in layers}
    template = metadata.get("tokenizer.chat_template")
    return Model(
        name=name,
        paths=paths,
        size=sum(header.size for header in headers),
        header_bytes=sum(header.data_start for header in headers),
        architecture=architecture,
        quantization=_quantization(metadata, tensors),
        metadata=metadata,
        tensors=tensors,
        layers=layers,
        context_train=max(0, _integer(metadata, f"{architecture}.context_length", 0)),
        parameters=sum(t.elements for t in tensors if t.loaded),
        active_parameters=_active_parameters(tensors, used),
        chat_template=template if isinstance(template, str) else None,
    )


def _architecture(metadata: Mapping[str, Value]) -> str:
    hint = "name the model file itself"
    kind = kind_of(metadata)
    if kind != MODEL:
        raise ModelFileError(f"{kind}, not a model", hint=hint)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelFileError("no general.architecture: not a model", hint=hint)
    if len(architecture) > MAX_NAME:
        raise ModelFileError(f"an architecture name of {len(architecture)} characters")
    return architecture


def _mtp_layers(
    headers: tuple[Header, ...], metadata: Mapping[str, Value], architecture: str
) -> frozenset[int]:
    """Layers that only predict further tokens: the last ``nextn_predict_layers``.

    They must have ``nextn`` tensors: granite-switch counts a layer there that is used.
    """
    count = _integer(metadata, f"{architecture}.nextn_predict_layers", 0)
    if count <= 0:
        return frozenset()
    first = _integer(metadata, f"{architecture}.block_count", 0) - count
    marked = (layer_of(t.name) for h in headers for t in h.tensors if ".nextn." in t.name)
    return frozenset(layer for layer in marked if layer is not None and layer >= max(1, first))


def _tensors(headers: tuple[Header, ...], mtp: frozenset[int]) -> tuple[Tensor, ...]:
    tensors = []
    for part, header in enumerate(headers):
        for info in header.tensors:
            layer = layer_of(info.name)
            tensors.append(
                Tensor(
                    name=info.name,
                    shape=info.shape,
                    type_name=info.type.name,
                    offset=info.offset,
                    nbytes=info.nbytes,
                    part=part,
                    layer=layer,
                    role=role_of(info.name, info.shape),
                    loaded=layer not in mtp,
                )
            )
    if not tensors:
        raise ModelFileError("no tensors: a vocabulary alone, not a model")
    if not any(tensor.loaded for tensor in tensors if tensor.layer is not None) and mtp:
        raise ModelFileError(
            "only layers that predict further tokens (MTP): a draft, not a model",
            hint="name the model file itself",
        )
    encoder = [t for t in tensors if t.name.startswith(_ENCODER_PREFIXES)]
    if encoder:
        raise ModelFileError(
            f"holds an image or audio encoder too ({len(encoder)} tensors like "
            f'"{clean_line(encoder[0].name)}"), which llama.cpp wants in a file of its own',
            hint="Ollama packs both into one file; get the model from the Hub: localmoe fit",
        )
    return tuple(tensors)


def _layers(
    tensors: tuple[Tensor, ...], metadata: Mapping[str, Value], architecture: str
) -> tuple[Layer, ...]:
    seen = max((t.layer for t in tensors if t.layer is not None), default=-1)
    count = max(_integer(metadata, f"{architecture}.block_count", 0), seen + 1)
    if count > MAX_LAYERS:
        raise ModelFileError(f"{count} layers; {MAX_LAYERS} is the most that llama.cpp can run")
    used = _expert_used(metadata, architecture, count)
    dense, routed, experts = [0] * count, [0] * count, [0] * count
    mtp = {t.layer for t in tensors if not t.loaded}
    for tensor in tensors:
        if tensor.layer is None or not tensor.loaded:
            continue
        if tensor.role is not Role.ROUTED_EXPERT:
            dense[tensor.layer] += tensor.nbytes
            continue
        routed[tensor.layer] += tensor.nbytes
        if "_exps." in tensor.name and tensor.name.endswith(".weight"):
            here = tensor.shape[-1]
            if experts[tensor.layer] not in (0, here):
                raise ModelFileError(
                    f"layer {tensor.layer} has {experts[tensor.layer]} experts in one tensor "
                    f"and {here} in another"
                )
            experts[tensor.layer] = here
    key = f"{architecture}.expert_used_count"
    if any(experts) and key not in metadata:
        raise ModelFileError(
            f"the metadata lack {clean_line(key)}: how many of {max(experts)} experts a token uses",
            hint="get another conversion of this model",
        )
    for index in range(count):
        if experts[index] and not 1 <= used[index] <= experts[index]:
            raise ModelFileError(
                f"layer {index} uses {used[index]} of {experts[index]} experts per token"
            )
    return tuple(
        Layer(i, dense[i], routed[i], experts[i], used[i] if experts[i] else 0, i not in mtp)
        for i in range(count)
    )


def _expert_used(metadata: Mapping[str, Value], architecture: str, count: int) -> list[int]:
    """Top-k of each layer; the key holds one number, or one per layer."""
    key = f"{architecture}.expert_used_count"
    value = metadata.get(key, 0)
    if not isinstance(value, tuple):
        return [_integer(metadata, key, 0)] * count
    numbers = [v for v in value if isinstance(v, int)]
    if len(numbers) != len(value) or len(value) < count:
        raise ModelFileError(f"{key} does not hold one number for each of {count} layers")
    return numbers[:count]


def _active_parameters(tensors: tuple[Tensor, ...], used: Mapping[int, int]) -> int:
    tied = all(t.name != "output.weight" for t in tensors)
    active = 0
    for tensor in tensors:
        if not tensor.loaded:
            continue
        if tensor.name in _LOOKED_UP and not (tied and tensor.name == "token_embd.weight"):
            continue
        if tensor.role is Role.ROUTED_EXPERT and tensor.layer is not None:
            experts = tensor.shape[-1]  # grovemoe's chunk experts are fewer than the experts
            active += tensor.elements * min(used[tensor.layer], experts) // experts
        else:
            active += tensor.elements
    return active


def _quantization(metadata: Mapping[str, Value], tensors: tuple[Tensor, ...]) -> str:
    file_type = metadata.get("general.file_type")
    if isinstance(file_type, int) and not isinstance(file_type, bool):
        known = FILE_TYPES.get(file_type & ~_GUESSED)
        if known is not None:
            return known
    weights: Counter[str] = Counter()
    moe = any(t.role is Role.ROUTED_EXPERT for t in tensors)
    for tensor in tensors:
        if tensor.role is Role.ROUTED_EXPERT or not moe:
            weights[tensor.type_name] += tensor.elements
    return weights.most_common(1)[0][0]


def _integer(metadata: Mapping[str, Value], key: str, default: int) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelFileError(f"{clean_line(key)[:80]} is not a whole number")
    return value
