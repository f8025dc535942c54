"""Which files of a repository, or of a folder, a word after the colon of a name means. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

from localmoe.facts.local_files import is_gguf, model_name, quant_of, quant_within

T = TypeVar("T")
Files = Sequence[PurePosixPath]
"""The files of one model: paths in the repository, the parts of a set in their order."""


def narrowed(items: Sequence[T], wanted: str, files_of: Callable[[T], Files]) -> list[T]:
    """Those of ``items`` that ``wanted`` means, by the most exact reading that fits any.

    A file (any part) by its path, then by its name; then, with or without ``.gguf`` behind it, a
    quantization, the end of a file's name with its quantization (``i1-Q4_K_M``), a file's name, a
    folder. What differs in case only is a second choice. Quantizations must be equal: ``Q4_K_XL``
    is another than ``UD-Q4_K_XL``.
    """
    for fits in (*_file_readings(wanted), *_readings(wanted)):
        if found := [item for item in items if fits(files_of(item))]:
            return found
    return []


def _file_readings(wanted: str) -> Iterator[Callable[[Files], bool]]:
    if not is_gguf(wanted):
        return
    lower = wanted.lower()
    yield lambda files: any(str(file) == wanted for file in files)
    yield lambda files: any(str(file).lower() == lower for file in files)
    yield lambda files: any(file.name == wanted for file in files)
    yield lambda files: any(file.name.lower() == lower for file in files)


def _readings(wanted: str) -> Iterator[Callable[[Files], bool]]:
    wanted = wanted[: -len(".gguf")] if is_gguf(wanted) else wanted
    lower, upper = wanted.lower(), wanted.upper()
    quant = quant_of(PurePosixPath(wanted))
    yield lambda files: quant_within(files[0]) in (upper, upper.removesuffix("_MOE"))
    yield lambda files: bool(quant) and quant == quant_of(files[0]) and _ends_with(files[0], lower)
    yield lambda files: str(files[0].with_name(model_name(files[0]))) == wanted
    yield lambda files: str(files[0].with_name(model_name(files[0]))).lower() == lower
    yield lambda files: model_name(files[0]).lower() == lower
    yield lambda files: lower in [str(folder).lower() for folder in files[0].parents][:-1]


def _ends_with(file: PurePosixPath, end: str) -> bool:
    """Whether a file's name ends in these words."""
    before, found, after = model_name(file).lower().rpartition(end)
    return bool(found) and not after and (not before or before[-1] in "-_.")
