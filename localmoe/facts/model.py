"""What a GGUF model is: parts, tensors and their roles, layers and their experts.

``read_model`` is the one entry: any part of a multi-part set → ``Model``.
"""

from __future__ import annotations

import contextlib
import enum
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import FileSource, Header, TensorEntry, Value, read_header


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
    metadata: Mapping[str, Value]  # of the first part; long arrays only as LongArray
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


# ---- reading --------------------------------------------------------------------------------

_PART = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_LAYER = re.compile(r"^blk\.(\d+)\.")
_ROUTED = re.compile(r"\.ffn_(gate|up|down|gate_up)_(ch)?exps(\.|$)")
_SHARED = re.compile(r"_shexp(\.|$)")
_ROUTER = re.compile(r"\.(ffn_gate_inp|exp_probs_b)(_vl)?(\.|$)")
_EXPERT_OF_2023 = re.compile(r"^blk\.\d+\.ffn_(gate|up|down)\.\d+\.weight$")

# llama_ftype (llama.h) → the name people know. From 1024 on the type was guessed.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
}


def role_of(name: str) -> Role:
    """The role of a tensor, from its name alone: the names are llama.cpp's own convention."""
    if _ROUTED.search(name):
        return Role.ROUTED_EXPERT
    if _SHARED.search(name):
        return Role.SHARED_EXPERT
    if _ROUTER.search(name):
        return Role.ROUTER
    return Role.DENSE


def part_paths(path: Path) -> tuple[Path, ...]:
    """All parts of the set that ``path`` belongs to, by name; itself alone if it is no part.

    Raises ModelFileError when parts are missing on disk.
    """
    found = _PART.match(path.name)
    if found is None:
        return (path,)
    count = int(found["count"])
    if not 1 <= int(found["number"]) <= count:
        raise ModelFileError(f"{path.name}: part {found['number']} of {found['count']}?")
    names = [f"{found['stem']}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    parts = tuple(path.with_name(name) for name in names)
    missing = [part.name for part in parts if not part.exists()]
    if missing and path.exists():
        names = missing[:4] + ["…"] * (len(missing) > 4)
        raise ModelFileError(
            f"{len(missing)} of the {count} parts of this model are missing: {', '.join(names)}",
            hint=f"put all parts into {path.parent}",
        )
    return parts


def read_model(path: Path) -> Model:
    """Read the headers of all parts of a model. ``path`` may be any of them.

    Raises ModelFileError, with the reason and a hint.
    """
    paths = part_paths(path)
    headers = []
    for part in paths:
        with contextlib.closing(FileSource(part)) as source:
            headers.append(read_header(source))
    return model_from_headers(paths, headers)


def model_from_headers(paths: Sequence[Path], headers: Sequence[Header]) -> Model:
    """Put the parts of one model together and check that they belong together."""
    first = headers[0]
    _check_parts(paths, headers)
    architecture = first.metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelFileError(
            f"{paths[0].name}: no architecture is named in it",
            hint="it is a side file (projector, vocabulary, imatrix …), not a model",
        )
    tensors = tuple(
        _tensor(entry, part) for part, header in enumerate(headers) for entry in header.tensors
    )
    if not tensors:
        raise ModelFileError(f"{paths[0].name}: it has no tensors, so it is no model")
    if any(_EXPERT_OF_2023.match(tensor.name) for tensor in tensors):
        raise ModelFileError(
            f"{paths[0].name}: it stores each expert as a tensor of its own, as files of 2023 do; "
            "llama.cpp no longer reads that",
            hint="get a newer conversion of the same model",
        )
    layers = _layers(architecture, first.metadata, tensors)
    found = _PART.match(paths[0].name)
    template = first.metadata.get("tokenizer.chat_template")
    total, active = _parameters(tensors, layers)
    return Model(
        name=found["stem"] if found else paths[0].stem,
        paths=tuple(paths),
        size=sum(header.file_size for header in headers),
        header_bytes=sum(header.nbytes for header in headers),
        architecture=architecture,
        quantization=_quantization(first.metadata, tensors),
        metadata=first.metadata,
        tensors=tensors,
        layers=layers,
        context_train=metadata_int(first.metadata, f"{architecture}.context_length"),
        parameters=total,
        active_parameters=active,
        chat_template=template if isinstance(template, str) and template else None,
    )


def metadata_int(metadata: Mapping[str, Value], key: str, default: int = 0) -> int:
    """An integer of the metadata; of a per-layer array, the largest."""
    value = metadata.get(key, default)
    if isinstance(value, tuple):
        numbers = [item for item in value if isinstance(item, int)]
        return max(numbers, default=default)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _check_parts(paths: Sequence[Path], headers: Sequence[Header]) -> None:
    count = len(headers)
    stated = metadata_int(headers[0].metadata, "split.count", 1) or 1
    if count == 1 and stated > 1:
        raise ModelFileError(
            f"{paths[0].name}: it is one of {stated} parts, and its name does not say which",
            hint="parts must keep their names NAME-00001-of-0000N.gguf",
        )
    if count == 1:
        return
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        says = metadata_int(header.metadata, "split.no", -1)
        if says != number or metadata_int(header.metadata, "split.count") != count:
            raise ModelFileError(
                f"{path.name}: inside it says part {says + 1} of "
                f"{metadata_int(header.metadata, 'split.count')}, so the parts are mixed up",
                hint="download the set again",
            )
    tensors = [entry.name for header in headers for entry in header.tensors]
    stated = metadata_int(headers[0].metadata, "split.tensors.count", len(tensors))
    if len(set(tensors)) != len(tensors) or len(tensors) != stated:
        raise ModelFileError(
            f"{paths[0].name}: the parts do not belong together "
            f"({len(set(tensors))} different tensors, {stated} expected)",
            hint="download the set again",
        )


def _tensor(entry: TensorEntry, part: int) -> Tensor:
    found = _LAYER.match(entry.name)
    return Tensor(
        name=entry.name,
        shape=entry.shape,
        type_name=entry.type_name,
        offset=entry.offset,
        nbytes=entry.nbytes,
        part=part,
        layer=int(found[1]) if found else None,
        role=role_of(entry.name),
    )


def _layers(
    architecture: str, metadata: Mapping[str, Value], tensors: Sequence[Tensor]
) -> tuple[Layer, ...]:
    """One row per block that has tensors, in order."""
    dense: Counter[int] = Counter()
    experts: Counter[int] = Counter()
    counts: dict[int, int] = {}
    for tensor in tensors:
        if tensor.layer is None:
            continue
        if tensor.role is Role.ROUTED_EXPERT:
            experts[tensor.layer] += tensor.nbytes
            if len(tensor.shape) == 3:
                counts[tensor.layer] = max(counts.get(tensor.layer, 0), tensor.shape[2])
        else:
            dense[tensor.layer] += tensor.nbytes
    key = f"{architecture}.expert_used_count"
    per_layer = metadata.get(key)
    rows = []
    for index in sorted(set(dense) | set(experts)):
        used = metadata_int(metadata, key)
        if isinstance(per_layer, tuple) and index < len(per_layer):
            item = per_layer[index]
            used = item if isinstance(item, int) else used
        count = counts.get(index, 0)
        rows.append(
            Layer(index, dense[index], experts[index], count, min(used, count) if count else 0)
        )
    return tuple(rows)


def _parameters(tensors: Sequence[Tensor], layers: Sequence[Layer]) -> tuple[int, int]:
    """(all weights, weights one token is multiplied with).

    The token embedding is a table that is looked up, so it is active only where it also serves as
    the output matrix (no ``output.weight``).
    """
    used = {layer.index: (layer.expert_used, max(1, layer.expert_count)) for layer in layers}
    tied = not any(tensor.name == "output.weight" for tensor in tensors)
    total = active = 0
    for tensor in tensors:
        weights = 1
        for size in tensor.shape:
            weights *= size
        total += weights
        if tensor.role is Role.ROUTED_EXPERT and tensor.layer is not None:
            top_k, count = used[tensor.layer]
            active += weights * top_k // count
        elif tensor.name != "token_embd.weight" or tied:
            active += weights
    return total, active


def _quantization(metadata: Mapping[str, Value], tensors: Sequence[Tensor]) -> str:
    """The file type the converter wrote, else the type that most bytes have."""
    stated = metadata.get("general.file_type")
    if isinstance(stated, int) and stated in FILE_TYPES:
        return FILE_TYPES[stated]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.type_name] += tensor.nbytes
    return sizes.most_common(1)[0][0]
