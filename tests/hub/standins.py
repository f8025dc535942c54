"""Repositories of conversions as published: real headers, tensor data made up by the server."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType as FileType

from localmoe.facts.gguf import read_header
from localmoe.facts.source import FileSource
from scripts.make_standin import MODELS, hollow_data
from tests.archs import deepseek
from tests.archs.families import MXFP4, Family, Storage
from tests.archs.recipe import Dims, q4_k_m, uniform
from tests.archs.vocabulary import Vocabulary, vocabulary
from tests.archs.writer import write
from tests.hub.content import Generated
from tests.hub.repository import Servable

# Twenty quantizations as publishers offer them: name → types and general.file_type.
QUANTS = {
    "Q2_K": Storage(FileType.MOSTLY_Q2_K, uniform(Kind.Q2_K)),
    "Q3_K_S": Storage(FileType.MOSTLY_Q3_K_S, uniform(Kind.Q3_K)),
    "Q3_K_M": Storage(FileType.MOSTLY_Q3_K_M, uniform(Kind.Q3_K)),
    "Q3_K_L": Storage(FileType.MOSTLY_Q3_K_L, uniform(Kind.Q3_K)),
    "Q4_0": Storage(FileType.MOSTLY_Q4_0, uniform(Kind.Q4_0)),
    "Q4_1": Storage(FileType.MOSTLY_Q4_1, uniform(Kind.Q4_1)),
    "Q4_K_S": Storage(FileType.MOSTLY_Q4_K_S, uniform(Kind.Q4_K)),
    "Q4_K_M": Storage(FileType.MOSTLY_Q4_K_M, q4_k_m),
    "UD-Q4_K_XL": Storage(FileType.MOSTLY_Q4_K_M, q4_k_m),
    "Q5_0": Storage(FileType.MOSTLY_Q5_0, uniform(Kind.Q5_0)),
    "Q5_K_S": Storage(FileType.MOSTLY_Q5_K_S, uniform(Kind.Q5_K)),
    "Q5_K_M": Storage(FileType.MOSTLY_Q5_K_M, uniform(Kind.Q5_K)),
    "Q6_K": Storage(FileType.MOSTLY_Q6_K, uniform(Kind.Q6_K)),
    "Q8_0": Storage(FileType.MOSTLY_Q8_0, uniform(Kind.Q8_0)),
    "IQ2_XS": Storage(FileType.MOSTLY_IQ2_XS, uniform(Kind.IQ2_XS)),
    "IQ2_M": Storage(FileType.MOSTLY_IQ2_M, uniform(Kind.IQ2_S)),
    "IQ3_XXS": Storage(FileType.MOSTLY_IQ3_XXS, uniform(Kind.IQ3_XXS)),
    "IQ4_XS": Storage(FileType.MOSTLY_IQ4_XS, uniform(Kind.IQ4_XS)),
    "IQ4_NL": Storage(FileType.MOSTLY_IQ4_NL, uniform(Kind.IQ4_NL)),
    "BF16": Storage(FileType.MOSTLY_BF16, uniform(Kind.BF16)),
}


TERABYTE = Family(
    deepseek.deepseek2,
    Dims(
        layers=61,
        embd=7168,
        heads=64,
        kv_heads=1,
        ff=18432,
        experts=384,
        used=8,
        expert_ff=2048,
        shared_ff=2048,
        vocab=163840,
        context=131072,
    ),
    QUANTS["Q8_0"],
)
"""A trillion weights, as in Kimi-K2."""


@cache
def published_vocabulary(size: int) -> Vocabulary:
    """As many merges as tokens, as byte-pair vocabularies have: a header of 6 MB for 150k."""
    words = vocabulary(size)
    filler = [f"Ġt{i:x} o{i:x}" for i in range(size - len(words.merges))]
    return replace(words, merges=(*words.merges, *filler))


def conversion(
    folder: Path,
    model: str,
    quant: str,
    *,
    split: int | None = None,
    layers: int | None = None,
    vocab: int | None = None,
    family: Family | None = None,
) -> list[Path]:
    """One quantization of a stand-in as sparse files of full size: the parts in order."""
    family = family or MODELS[model]
    dims = replace(
        family.dims, layers=layers or family.dims.layers, vocab=vocab or family.dims.vocab
    )
    storage = MXFP4 if quant == "MXFP4" else QUANTS[quant]
    family = replace(family, dims=dims, storage=storage)
    return write(
        family.recipe(),
        folder / f"{model}-{quant}.gguf",
        data=hollow_data,
        vocabulary=published_vocabulary(dims.vocab),
        file_type=family.storage.file_type,
        name=f"{model} {quant}",
        split=split,
    )


def header_of(path: Path) -> bytes:
    """All bytes before the tensor data."""
    with FileSource(path) as source:
        return source.read(0, read_header(source).data_start)


def served(paths: list[Path]) -> dict[str, Servable]:
    """The same files for a server: headers in memory, the data made up."""
    return {
        path.name: Generated(path.stat().st_size, header_of(path), seed)
        for seed, path in enumerate(paths)
    }


def twenty(folder: Path, model: str = "qwen3-30b-a3b") -> Iterator[list[Path]]:
    """Twenty quantizations of one model, the largest of them in three parts."""
    for quant in QUANTS:
        yield conversion(folder, model, quant, split=3 if quant == "BF16" else None)


def few(folder: Path, model: str = "qwen3-30b-a3b") -> Iterator[list[Path]]:
    """The first four of them with a small vocabulary."""
    for quant in itertools.islice(QUANTS, 4):
        yield conversion(folder, model, quant, vocab=20_000)
