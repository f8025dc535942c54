"""The models on this machine, each under one name: the one that is shown and that can be typed.

The name is the file's own, as far as no other model here answers to it::

    small-Q8_0                     a file of our folder, of the Hub cache, of llama.cpp
    user/repo:Q8_0                 one of the Hub cache, when two files are called small-Q8_0
    qwen3:30b                      as Ollama calls it; LM Studio's are publisher/repository:QUANT
    /home/me/models/small.gguf     when nothing shorter is unique
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from localmoe.facts.local_files import (
    CachedFile,
    cached_files,
    model_name,
    own_files,
    quant_of,
    quant_within,
)
from localmoe.facts.other_programs import other_files
from localmoe.text import clean_line

BUNDLED = "nano"
LOCALMOE, HUB_CACHE = "localmoe", "Hub cache"


@dataclass(frozen=True, slots=True)
class Installed:
    """A model on this machine."""

    name: str  # to show and to type; unique here
    path: Path  # its first file
    program: str  # whose it is: LOCALMOE, HUB_CACHE, "LM Studio", "Ollama", "llama.cpp"
    repo: str = ""  # "user/name", where it is known
    within: str = ""  # its path in that repository, if it is in the Hub cache
    label: str = ""  # what follows ``repo:`` to mean it, if it is in the Hub cache
    quant: str = ""  # as its name states it


def models_package() -> Path:
    """The folder of bundled data: installed as ``localmoe_models``, ``models/`` in a checkout."""
    installed = find_spec("localmoe_models")
    if installed is not None and installed.origin is not None:
        return Path(installed.origin).parent
    return Path(__file__).parents[2] / "models"


def bundled_path() -> Path:
    return models_package() / f"{BUNDLED}.gguf"


def installed_models() -> list[Installed]:
    """Every model on this machine, each file once.

    The bundled one, those of our folder, of the Hub cache, of other programs.
    """
    candidates = [*_own(), *_cached(cached_files()), *_of_others()]
    return _named(_each_once(candidates))


def cached_models(repo: str, revision: str | None = None) -> list[Installed]:
    """The models of one repository (``user/name``) in the Hub cache; at one revision if named."""
    return _named(_cached(cached_files(repo, revision)))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A model that has no name yet. ``names``: what it could be called, the shortest first."""

    model: Installed
    names: tuple[str, ...]


def _own() -> Iterable[_Candidate]:
    path = bundled_path()
    if path.is_file():
        yield _Candidate(Installed(BUNDLED, path, LOCALMOE, quant="Q8_0"), (BUNDLED,))
    for path in own_files():
        model = Installed("", path, LOCALMOE, quant=quant_of(path))
        yield _Candidate(model, (model_name(path), str(path)))


def _cached(found: Sequence[CachedFile]) -> list[_Candidate]:
    labels = labels_of({(file.repo, file.within): quant_within(file.within) for file in found})
    candidates = []
    for file in found:
        label = labels[file.repo, file.within]
        within, quant = str(file.within), quant_within(file.within)
        model = Installed("", file.path, HUB_CACHE, file.repo, within, label, quant)
        names = (model_name(file.path), f"{file.repo}:{label}", str(file.path))
        candidates.append(_Candidate(model, names))
    return candidates


def _of_others() -> Iterable[_Candidate]:
    for file in other_files():
        repo, _, tag = file.name.partition(":")
        quant = quant_of(PurePosixPath(tag)) or quant_of(file.path)
        model = Installed("", file.path, file.program, repo if "/" in repo else "", quant=quant)
        yield _Candidate(model, (file.name, str(file.path)))


def labels_of(
    quants: dict[tuple[str, PurePosixPath], str],
) -> dict[tuple[str, PurePosixPath], str]:
    """What to write after ``repo:`` for each file of (repository, path) → quantization.

    Its quantization where that means one file of the repository, else its path. Pure.
    """
    count = Counter((repo, quant) for (repo, _), quant in quants.items())
    return {
        (repo, path): quant if quant and count[repo, quant] == 1 else str(path)
        for (repo, path), quant in quants.items()
    }


def _each_once(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """The candidates without files that another program's folder links to."""
    found: dict[str, _Candidate] = {}
    for candidate in candidates:
        # Two names in the Hub cache may share one content: they are two models all the same.
        real = os.path.realpath(candidate.model.path)
        before = found.get(real)
        if before is None or before.model.program == candidate.model.program:
            found[real if before is None else str(candidate.model.path)] = candidate
    return list(found.values())


def _named(candidates: Sequence[_Candidate]) -> list[Installed]:
    """Give each the first of its names that no other model could have. Pure."""
    claims: dict[str, set[int]] = defaultdict(set)
    for number, candidate in enumerate(candidates):
        for name in candidate.names:
            claims[clean_line(name).lower()].add(number)
    models = []
    for candidate in candidates:
        names = [clean_line(name) for name in candidate.names]
        free = [name for name in names if len(claims[name.lower()]) == 1]
        bundled = candidate.names == (BUNDLED,)
        name = BUNDLED if bundled else (free or names[-1:])[0]
        models.append(replace(candidate.model, name=name))
    return models
