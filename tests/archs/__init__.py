"""Small GGUF files of real architectures: random weights, real structure, real tokenizer.

``generate("qwen3moe", directory)`` → the file (the first part, if it was split).
"""

from __future__ import annotations

import zlib
from pathlib import Path

from gguf import SHARD_NAME_FORMAT

from tests.archs.bad import bad_files
from tests.archs.families import FAMILIES
from tests.archs.vocabulary import CHATML, vocabulary
from tests.archs.writer import random_data, write

ARCHITECTURES: tuple[str, ...] = tuple(FAMILIES)
"""Names for ``generate``; a name is the architecture's own unless one has two kinds of files."""

UNSUPPORTED: dict[str, str] = {}
"""Architectures the engine cannot run from generated weights → the reason."""

__all__ = ["ARCHITECTURES", "CHATML", "UNSUPPORTED", "bad_files", "generate"]


def generate(
    architecture: str,
    directory: Path,
    *,
    seed: int = 0,
    split: int | None = None,
    template: str | None = CHATML,
) -> Path:
    """Writes one of ``ARCHITECTURES`` (once: an existing file is returned as it is).

    Args:
        seed: of the weights; the same seed gives the same bytes.
        split: number of parts, with ``split.*`` metadata.
        template: Jinja chat template; None leaves it out.

    Returns:
        The file, or the first part.
    """
    family = FAMILIES[architecture]
    stem = f"{architecture}-{seed}"
    if template != CHATML:
        stem += f"-{zlib.crc32((template or '').encode()):08x}"
    recipe = family.recipe()
    path = directory / f"{stem}.gguf"
    first = path
    if split:
        count = -(-len(recipe.tensors) // -(-len(recipe.tensors) // split))
        first = directory / SHARD_NAME_FORMAT.format(stem, 1, count)
    if first.exists():
        return first
    words = vocabulary(family.dims.vocab)
    return write(
        recipe,
        path,
        data=random_data(recipe, seed, words),
        vocabulary=words,
        file_type=family.storage.file_type,
        name=architecture,
        split=split,
        template=template,
    )[0]
