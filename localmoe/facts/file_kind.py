"""What a GGUF file is: a model, or something that belongs to one.

The header says so, in ``general.type`` and ``general.architecture``. A name alone proves nothing:
there are models called ``…-MTP-…`` and ``Draft-…``, and drafts with the name of a model. It decides
only where no header can be read. Architectures: llama.cpp's src/llama-arch.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from localmoe.errors import ModelFileError
from localmoe.facts.gguf import Value, metadata_entries
from localmoe.facts.source import ByteSource, FileSource

MODEL = "model"
PROJECTOR = "an image projector (mmproj)"
ADAPTER = "a LoRA adapter"
IMPORTANCE_MATRIX = "an importance matrix"
DRAFT = "a draft for speculative decoding"
VOCABULARY = "a vocabulary alone"

_BY_TYPE = {
    "mmproj": PROJECTOR,
    "adapter": ADAPTER,
    "imatrix": IMPORTANCE_MATRIX,
    "vocab": VOCABULARY,
}
_BY_ARCHITECTURE = {"clip": PROJECTOR, "imatrix": IMPORTANCE_MATRIX}
# What predicts tokens for another model, and cannot run without it.
_DRAFTS = re.compile(r"eagle\d*|dflash\d*|dspark\d*|medusa|.+[-_](?:assistant|draft|mtp)")
_KEYS = 64  # looked at; the two that matter are among the first as a rule

_PROJECTOR_NAME = re.compile(r"(^|[-_.])mmproj([-_.]|$)", re.IGNORECASE)
_SIDE_NAME = re.compile(
    r"(^|[-_./])(mmproj|imatrix|draft(er)?|mtp|nextn|eagle\d*|dflash\d*|dspark\d*|medusa"
    r"|speculator|assistant|lora|adapter)([-_./]|$)",
    re.IGNORECASE,
)


def kind_of(metadata: Mapping[str, Value]) -> str:
    """``MODEL``, or what the file is instead, in words that fit behind "is"."""
    architecture, stated = metadata.get("general.architecture"), metadata.get("general.type")
    if isinstance(stated, str) and stated in _BY_TYPE:
        return _BY_TYPE[stated]
    if not isinstance(architecture, str):
        return MODEL
    if _DRAFTS.fullmatch(architecture):
        return DRAFT
    return _BY_ARCHITECTURE.get(architecture, MODEL)


def read_kind(source: ByteSource) -> str | None:
    """The kind of a file by the first keys of its header; None for what is no GGUF header.

    Raises what ``source`` raises for bytes that it cannot get, unless that is a ModelFileError.
    """
    found: dict[str, Value] = {}
    with suppress(ModelFileError):
        for number, (key, value) in enumerate(metadata_entries(source)):
            if key in ("general.architecture", "general.type"):
                found[key] = value
            # A vocabulary is long, and nothing of interest follows it.
            if len(found) == 2 or number >= _KEYS or key.startswith("tokenizer."):
                break
    return kind_of(found) if found else None


def is_model_file(path: Path) -> bool:
    """Whether a file on this machine is a model: by its header, else by its name."""
    kind = None
    with suppress(ModelFileError), FileSource(path) as source:
        kind = read_kind(source)
    return kind == MODEL if kind is not None else not named_as_side_file(path.name)


def named_as_side_file(name: str) -> bool:
    """Whether a name or a path has a word in it that names of projectors and drafts have."""
    return bool(_SIDE_NAME.search(re.sub(r"(?i)\.gguf$", "", name)))


def named_as_projector(name: str) -> bool:
    """Whether it is the name of an image projector, which no model has."""
    return bool(_PROJECTOR_NAME.search(re.sub(r"(?i)\.gguf$", "", name)))
