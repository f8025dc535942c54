"""From a name to files of a Hub repository. Pure: nothing is asked of the network here.

    parse("unsloth/GLM-4.6-GGUF:Q4_K_M")   → Reference
    model_files(listing)                   → the models in a repository, one per quantization
    choose(models, reference)              → the one that was asked for

A name is an alias of the catalog, ``user/repo`` or a Hub URL, each with an optional ``:QUANT``
(or ``:FILE.gguf``). Rules people know: case does not matter; ``Q4_K_XL`` never means
``UD-Q4_K_XL``; projectors, importance matrices and drafts are not models; the parts of a set are
one model, and an incomplete set is refused before its first byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from localmoe.errors import TransferError, UnknownModelError
from localmoe.facts import catalog
from localmoe.facts.local_files import DEFAULT_QUANT, is_side_file, model_name, quant_of
from localmoe.facts.parts import PartName
from localmoe.text import FORBIDDEN, clean_line

SHOWN = 12  # choices that a message names
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository at one revision, as its listing describes it."""

    path: str  # within the repository, with "/"
    size: int  # bytes
    etag: str  # sha256 of the content (LFS), else the git blob's id
    lfs: bool = True  # whether ``etag`` is the content's sha256


@dataclass(frozen=True, slots=True)
class Reference:
    """What a name says: a repository, and which of its models."""

    text: str  # as it was typed, for messages
    repo: str  # "user/name"
    wanted: str = ""  # a quantization, or a file's path; "": not said
    revision: str | None = None
    entry: catalog.Entry | None = None  # the catalog's entry of that repository


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """One model of a repository: a file, or the parts of a set in order."""

    name: str  # file name without part number and suffix
    quant: str  # "Q4_K_M", "UD-Q4_K_XL" …; "" when the name states none
    files: tuple[RepoFile, ...]
    missing: tuple[str, ...] = ()  # paths of parts that the repository lacks

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(file.size for file in self.files)

    @property
    def label(self) -> str:
        """How it is asked for after the colon."""
        return self.quant or f"{self.name}.gguf"


def parse(name: str) -> Reference | None:
    """The repository that a name means; None for a path, which is local or nothing.

    Raises UnknownModelError for a name without weights (with the nearest open family), for a
    family without a known conversion, and for what is no name at all (with the nearest ones).
    """
    url = catalog.match_url(name)
    if url is not None:
        return Reference(name, url.repo, url.wanted, url.revision, catalog.entry_of(url.repo))
    if catalog.is_path(name):
        return None
    base, wanted = catalog.split_name(name)
    entry = catalog.entry_of(base)
    if entry is not None and entry.repo:
        return Reference(name, entry.repo, wanted, entry=entry)
    if _REPO.fullmatch(base) and ".." not in base and entry is None:
        return Reference(name, base, wanted)
    raise catalog.unknown(name)


def model_files(listing: Sequence[RepoFile]) -> tuple[ModelFiles, ...]:
    """The models in a repository, smallest first; side files are left out.

    Raises TransferError when any file name could lead out of a folder.
    """
    for file in listing:
        check_path(file.path)
    alone: list[ModelFiles] = []
    sets: dict[tuple[str, str, int], dict[int, RepoFile]] = {}
    for file in listing:
        path = PurePosixPath(file.path)
        if path.suffix.lower() != ".gguf" or any(map(is_side_file, path.parts)):
            continue
        part = PartName.parse(path.name)
        if part is None or part.count == 1:
            alone.append(ModelFiles(model_name(path), quant_of(path), (file,)))
        else:
            sets.setdefault((str(path.parent), part.stem, part.count), {})[part.number] = file
    found = alone + [_set(*key, parts) for key, parts in sets.items()]
    return tuple(sorted(found, key=lambda model: (bool(model.missing), model.size, model.name)))


def _set(folder: str, stem: str, count: int, parts: dict[int, RepoFile]) -> ModelFiles:
    first = PartName(stem, 1, count)
    paths = [str(PurePosixPath(folder) / first.sibling(i)) for i in range(1, count + 1)]
    here = tuple(parts[number] for number in sorted(parts))
    missing = tuple(path for number, path in enumerate(paths, 1) if number not in parts)
    return ModelFiles(stem, quant_of(PurePosixPath(paths[0])), here, missing)


def check_path(path: str) -> None:
    """Refuse a file name that is no plain path below the repository. Raises TransferError."""
    parts = path.split("/")
    if (
        not path
        or any(part in ("", ".", "..") for part in parts)
        or any(c in path for c in "\\:\0")
        or FORBIDDEN.search(path)
        or len(path) > 1024
    ):
        raise TransferError(
            f"the repository has a file with an unsafe name: {clean_line(path)[:120]!r}",
            hint="do not trust this repository; choose another one",
        )


def choose(models: Sequence[ModelFiles], reference: Reference) -> ModelFiles | None:
    """The model that was asked for; None when nothing was said and several are there.

    Raises UnknownModelError when there is none, or more than one, with the choices; TransferError
    for an incomplete set.
    """
    if not models:
        raise UnknownModelError(
            f"{clean_line(reference.repo)} has no GGUF model",
            hint="repositories of conversions are usually named …-GGUF",
        )
    if not reference.wanted:
        return complete(models[0]) if len(models) == 1 else None
    found = _matching(models, reference.wanted)
    if len(found) == 1:
        return complete(found[0])
    repo = clean_line(reference.repo)
    if found:
        names = ", ".join(f"{repo}:{clean_line(m.files[0].path)}" for m in found[:SHOWN])
        raise UnknownModelError(
            f"{repo} has {len(found)} models that are {clean_line(reference.wanted)}",
            hint=f"name the file: {names}",
        )
    raise _no_such(models, reference)


def _matching(models: Sequence[ModelFiles], wanted: str) -> list[ModelFiles]:
    """By path or file name (any part), by folder, by quantization, all without regard to case."""
    asked = wanted.lower()
    if asked.endswith(".gguf"):
        exact = [m for m in models if any(f.path.lower() == asked for f in m.files)]
        return exact or [m for m in models if any(_name(f) == asked for f in m.files)]
    equal = [m for m in models if m.quant.lower() == asked]
    return equal or [
        m
        for m in models
        if m.name.lower() == asked or asked in (str(p) for p in _folders(m.files[0]))
    ]


def _name(file: RepoFile) -> str:
    return PurePosixPath(file.path).name.lower()


def _folders(file: RepoFile) -> list[PurePosixPath]:
    return [p for p in PurePosixPath(file.path.lower()).parents if str(p) != "."]


def _no_such(models: Sequence[ModelFiles], reference: Reference) -> UnknownModelError:
    """The choices, those with the wanted letters in them first (UD-Q4_K_XL for Q4_K_XL)."""
    asked, repo = reference.wanted.lower(), clean_line(reference.repo)
    if is_side_file(PurePosixPath(asked).name):
        return UnknownModelError(
            f"{clean_line(reference.wanted)} is a side file, not a model",
            hint=f"localmoe fit {repo} lists its models",
        )
    labels = list(dict.fromkeys(m.label for m in models))
    labels.sort(key=lambda label: asked not in label.lower())
    shown = ", ".join(clean_line(label) for label in labels[:SHOWN])
    return UnknownModelError(
        f"{repo} has no {clean_line(reference.wanted)}", hint=f"it has {shown}"
    )


def complete(model: ModelFiles) -> ModelFiles:
    """The model itself. Raises TransferError when parts of it are missing."""
    if not model.missing:
        return model
    names = ", ".join(clean_line(path) for path in model.missing[:5])
    more = f" and {len(model.missing) - 5} more" if len(model.missing) > 5 else ""
    raise TransferError(
        f"{clean_line(model.name)} is incomplete in its repository: {names}{more} missing",
        hint="choose another quantization, or ask its publisher",
    )


def default(models: Sequence[ModelFiles]) -> ModelFiles | None:
    """The one with the default quantization, Q4_K_M, if there is exactly one and it is whole."""
    found = [m for m in models if m.quant == DEFAULT_QUANT and not m.missing]
    return found[0] if len(found) == 1 else None


def not_on_hub(reference: Reference) -> UnknownModelError:
    """The repository does not exist: our stale entry, or a typo with the nearest names."""
    repo = clean_line(reference.repo)
    if reference.entry is not None:
        return UnknownModelError(
            f"{reference.entry.family}: our catalog says {repo}, and the Hub has no such "
            "repository any more. The catalog entry is stale; your name was right",
            hint="search the Hub for another GGUF of it and use its user/repo name; please report",
        )
    near = catalog.nearest_repos(reference.repo)
    guess = f" Did you mean {clean_line(' or '.join(near))}?" if near else ""
    return UnknownModelError(
        f"the Hub has no repository {repo}, or it is private.{guess}",
        hint="check the spelling; for a private one: hf auth login",
    )
