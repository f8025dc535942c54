"""From a name to files of a Hub repository. Pure: nothing is asked of the network here.

    parse("unsloth/GLM-4.6-GGUF:Q4_K_M")   → Reference
    model_files(listing)                   → the models in a repository, one per quantization
    choose(models, reference)              → the one that was asked for

A name is an alias of the catalog or one of the forms of ``facts.model_names``. Rules people know:
case does not matter; ``Q4_K_XL`` never means ``UD-Q4_K_XL``; projectors, importance matrices and
drafts are not models; the parts of a set are one model, and an incomplete set is refused before its
first byte.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from types import MappingProxyType

from localmoe.errors import TransferError, UnknownModelError
from localmoe.facts import catalog
from localmoe.facts.file_kind import MODEL, PROJECTOR, named_as_projector, named_as_side_file
from localmoe.facts.installed import HUB_CACHE, labels_of
from localmoe.facts.local_files import DEFAULT_QUANT, is_gguf, model_name, quant_within
from localmoe.facts.matching import narrowed
from localmoe.facts.model_names import read_name
from localmoe.facts.parts import PartName, whole_of_piece
from localmoe.text import FORBIDDEN, clean_line, did_you_mean

UNSAFE = "a file with an unsafe name"
SIDE_FILE = "a side file"  # of a kind that its name alone does not tell
SHOWN = 12  # choices that a message names


@dataclass(frozen=True, slots=True)
class RepoFile:
    """One file of a repository at one revision, as its listing describes it."""

    path: str  # within the repository, with "/"
    size: int  # bytes
    etag: str  # sha256 of the content (LFS), else the git blob's id
    lfs: bool = True  # whether ``etag`` is the content's sha256


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository, and which of its models is meant."""

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
    label: str = ""  # how it is asked for after the colon: unique in its repository

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Contents:
    """What a repository has."""

    models: tuple[ModelFiles, ...]  # complete ones first, the smallest first
    others: Mapping[str, str]  # path of a GGUF file that is none → what it is, behind "is"

    @property
    def unusable(self) -> Mapping[str, str]:
        """Those of ``others`` that would be models, but for how they are stored or named."""
        return {
            path: what
            for path, what in self.others.items()
            if what == UNSAFE or whole_of_piece(PurePosixPath(path).name)
        }


def parse(name: str) -> Reference | None:
    """The repository that a name means; None for a path, and for a model here that is of none.

    A model of the Hub cache is that file of its repository. Raises UnknownModelError for a name
    without weights (with the nearest open family), for a family without a known conversion, and
    for what is no name at all (with the nearest ones).
    """
    if catalog.is_path(name):
        return None
    asked = read_name(name)
    entry = catalog.entry_of(asked.base)
    if entry is not None and entry.repo:
        return Reference(asked.text, entry.repo, asked.wanted, asked.revision, entry)
    if asked.is_repo and entry is None:
        return Reference(asked.text, asked.base, asked.wanted, asked.revision)
    if asked.refused or not (here := catalog.matching(name)):
        raise catalog.unknown(name)
    model = here[0]
    if len(here) > 1 or model.program != HUB_CACHE:
        return None
    return Reference(asked.text, model.repo, model.within, entry=catalog.entry_of(model.repo))


def model_files(listing: Sequence[RepoFile]) -> tuple[ModelFiles, ...]:
    """The models in a repository, judged by file names alone, smallest first."""
    return contents(listing).models


def contents(
    listing: Sequence[RepoFile], kinds: Mapping[str, str] = MappingProxyType({})
) -> Contents:
    """The models in a repository, and its other GGUF files.

    ``kinds``: what headers have told of some files (``file_kind``), by path. A file with an odd
    name is no model. Raises TransferError for a name that leads out of a folder: whoever made it
    up is not to be trusted with the other files.
    """
    others: dict[str, str] = {}
    sets: dict[tuple[str, str, int], dict[int, RepoFile]] = {}
    found: list[ModelFiles] = []
    for file in listing:
        if leads_out(file.path):
            check_path(file.path)
        path = PurePosixPath(file.path)
        if not is_gguf(path.name):
            if whole := whole_of_piece(path.name):
                others[file.path] = f"a piece of {clean_line(whole)}"
        elif not is_safe(file.path):
            others[file.path] = UNSAFE
        elif (part := PartName.parse(path.name)) is None or part.count == 1:
            found.append(ModelFiles(model_name(path), quant_within(path), (file,)))
        else:
            sets.setdefault((str(path.parent), part.stem, part.count), {})[part.number] = file
    found += [_set(*key, parts) for key, parts in sets.items()]
    plain = [m for m in found if not named_as_side_file(m.files[0].path)]
    models = []
    for model in found:
        if instead := _kind(model, plain, kinds):
            others |= {file.path: instead for file in model.files}
        else:
            models.append(model)
    models.sort(key=lambda model: (bool(model.missing), model.size, model.name))
    return Contents(_labelled(models), others)


def doubtful(listing: Sequence[RepoFile]) -> list[RepoFile]:
    """The GGUF files whose names leave open whether they are models: their headers tell."""
    found = []
    for file in listing:
        part = PartName.parse(PurePosixPath(file.path).name)
        first = part is None or part.number == 1
        named = named_as_side_file(file.path) and not named_as_projector(file.path)
        if first and named and is_gguf(file.path) and is_safe(file.path):
            found.append(file)
    return found


def _kind(model: ModelFiles, plain: Sequence[ModelFiles], kinds: Mapping[str, str]) -> str:
    """What a file is instead of a model, "" for a model. ``plain``: those whose names say nothing.

    A draft may be a small model of its own, which its header does not tell from any other: with
    a side file's name and less than half the size of the same quantization, it counts as a draft.
    """
    path = model.files[0].path
    kind = kinds.get(path)
    if kind is not None and kind != MODEL:
        return kind
    if not named_as_side_file(path):
        return ""
    if kind == MODEL:
        larger = any(m.quant == model.quant and m.size >= 2 * model.size for m in plain)
    else:
        larger = bool(plain) or named_as_projector(path)
    if not larger:
        return ""
    return PROJECTOR if named_as_projector(path) else SIDE_FILE


def _labelled(models: Sequence[ModelFiles]) -> tuple[ModelFiles, ...]:
    paths = [PurePosixPath(model.files[0].path) for model in models]
    quants = {("", path): model.quant for path, model in zip(paths, models, strict=True)}
    labels = labels_of(quants)
    return tuple(
        replace(model, label=labels["", path]) for path, model in zip(paths, models, strict=True)
    )


def _set(folder: str, stem: str, count: int, parts: dict[int, RepoFile]) -> ModelFiles:
    suffix = PurePosixPath(next(iter(parts.values())).path).suffix
    first = PartName(stem, 1, count, suffix)
    paths = [PurePosixPath(folder) / first.sibling(number) for number in range(1, count + 1)]
    here = tuple(parts[number] for number in sorted(parts))
    missing = tuple(str(path) for number, path in enumerate(paths, 1) if number not in parts)
    return ModelFiles(stem, quant_within(paths[0]), here, missing)


def is_safe(path: str) -> bool:
    """Whether a file name is a plain path below the repository, with nothing in it that a terminal
    or another system would take for something else.
    """
    return not (
        leads_out(path)
        or any(c in path for c in "\\:")
        or FORBIDDEN.search(path)
        or len(path) > 1024
    )


def leads_out(path: str) -> bool:
    """Whether a name is one that no repository has, made to lead out of a folder."""
    return "\0" in path or any(part in ("", ".", "..") for part in path.split("/"))


def check_path(path: str) -> None:
    """Refuse a file name that is not safe. Raises TransferError."""
    if not is_safe(path):
        raise TransferError(
            f"the repository has a file with an unsafe name: {clean_line(path)[:120]!r}",
            hint="do not trust this repository; choose another one",
        )


def choose(
    models: Sequence[ModelFiles],
    reference: Reference,
    others: Mapping[str, str] = MappingProxyType({}),
) -> ModelFiles | None:
    """The model that was asked for; None when nothing was said and several are there.

    ``others``: the repository's GGUF files that are no models. Raises UnknownModelError when there
    is none, or more than one, with the choices; TransferError for an incomplete set.
    """
    found = narrowed(models, reference.wanted, _paths) if reference.wanted else list(models)
    repo, wanted = clean_line(reference.repo), clean_line(reference.wanted)
    if len(found) == 1:
        return complete(found[0])
    if found and not reference.wanted:
        return None
    if found:
        names = ", ".join(f"{repo}:{clean_line(model.label)}" for model in found[:SHOWN])
        raise UnknownModelError(
            f"{repo} has {len(found)} models that are {wanted}", hint=f"choose one: {names}"
        )
    asked = [reference.wanted] if reference.wanted in others else []
    if not asked and reference.wanted:
        asked = narrowed(list(others), reference.wanted, _path)
    if asked:
        check_path(asked[0])
        raise _no_model(asked[0], others[asked[0]], models, repo)
    if not models:
        for path in others:
            check_path(path)
        raise UnknownModelError(
            f"{repo} has no GGUF model",
            hint="repositories of conversions are usually named …-GGUF",
        )
    raise UnknownModelError(
        f"{repo} has no {wanted}", hint=f"it has {_labels(models, reference.wanted)}"
    )


def _paths(model: ModelFiles) -> list[PurePosixPath]:
    return [PurePosixPath(file.path) for file in model.files]


def _path(path: str) -> list[PurePosixPath]:
    """The file that a path leads to, or that it is a piece of."""
    whole = PurePosixPath(path)
    name = whole_of_piece(whole.name)
    return [whole.with_name(name), whole] if name else [whole]


def _no_model(path: str, what: str, models: Sequence[ModelFiles], repo: str) -> UnknownModelError:
    """The error for a file that was asked for and is none."""
    shown = clean_line(path)
    if whole := whole_of_piece(PurePosixPath(path).name):
        name = shlex.quote(clean_line(whole))
        return UnknownModelError(
            f"{shown} is {what}, whose pieces have to be joined before it can be used",
            hint=f"hf download {repo} --include {name}'?*' --local-dir . && "
            f"cat {name}?* > {name} && localmoe run ./{name}",
        )
    has = f"it has {_labels(models, path)}" if models else f"localmoe fit {repo} lists its models"
    kind = "" if what == SIDE_FILE else f": {what}"
    return UnknownModelError(f"{shown} is {SIDE_FILE}, not a model{kind}", hint=has)


def _labels(models: Sequence[ModelFiles], wanted: str) -> str:
    """The choices, those with the wanted letters in them first (UD-Q4_K_XL for Q4_K_XL)."""
    labels = list(dict.fromkeys(model.label for model in models))
    labels.sort(key=lambda label: wanted.lower() not in label.lower())
    return ", ".join(clean_line(label) for label in labels[:SHOWN])


def complete(model: ModelFiles) -> ModelFiles:
    """``model``, if none of its parts is missing. Raises TransferError."""
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
    """The error for a repository that does not exist.

    One of the catalog is our mistake, any other may be a typo: then the nearest names are given.
    """
    repo = clean_line(reference.repo)
    if reference.entry is not None:
        return UnknownModelError(
            f"{reference.entry.family}: our catalog says {repo}, and the Hub has no such "
            "repository any more. The catalog entry is stale; your name was right",
            hint="search the Hub for another GGUF of it and use its user/repo name; please report",
        )
    guess = did_you_mean(catalog.nearest_repos(reference.repo))
    path = reference.text.startswith(f"{reference.repo}/")  # it may have been meant as one
    here = f"there is no file {clean_line(reference.text)} here, and " if path else ""
    return UnknownModelError(
        f"{here}the Hub has no repository {repo}, or it is private.{guess}",
        hint="check the spelling; for a private one: hf auth login",
    )
