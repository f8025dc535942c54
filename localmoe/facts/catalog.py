"""From a name to a model file on this machine.

A name is a path, the bundled ``nano``, an alias of the catalog (``models/catalog.toml``), a Hub
repository or its URL, or the name of a file in our models folder; all but the path with an optional
``:QUANT``. Nothing is downloaded here.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

from localmoe import storage
from localmoe.errors import ModelFileError, UnknownModelError
from localmoe.facts.local_files import (
    DEFAULT_QUANT,
    hub_cache,
    hub_files,
    is_whole,
    model_name,
    own_files,
    quant_of,
)
from localmoe.facts.other_programs import OtherFile, other_named
from localmoe.text import clean_line

__all__ = [
    "BUNDLED",
    "NotHereError",
    "catalog",
    "hub_cache",
    "is_whole",
    "local_models",
    "looks_like_model",
    "model_name",
    "models_package",
    "nearest",
    "quant_of",
    "resolve",
]

BUNDLED = "nano"
BUNDLED_QUANT = "Q8_0"
LIST_HINT = "localmoe list shows the models on this machine"

_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)(?=/)")
_HUB_PATH = re.compile(r"/([\w.-]+/[\w.-]+)(?::([^/?#]+))?(/[^?#]*)?(?:[?#].*)?")
_QUANT = re.compile(r"(?:UD-)?(?:I?Q\d|TQ\d|BF16|F16|F32|MXFP4|NVFP4)\w*", re.IGNORECASE)
_SIZE = re.compile(r"[a-z].*-\d+(\.\d+)?(x\d+)?b(-|$)", re.IGNORECASE)  # anything-7b
_SEPARATORS = re.compile(r"[-_.]")
_NEAR_MISS = 0.86  # difflib ratio; "nan" for "nano" is 0.857 and may well be a question
_SIMILAR = 0.7


@dataclass(frozen=True, slots=True)
class Entry:
    """A family of the catalog. ``repo`` "": no conversion is known to us."""

    alias: str
    family: str
    arch: str
    repo: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A name people know whose weights nobody can run here."""

    names: tuple[str, ...]
    family: str
    reason: str
    nearest: str


class NotHereError(UnknownModelError):
    """A name that means something, but nothing on this machine: the Hub may have it."""


def models_package() -> Path:
    """The folder of bundled data: installed as ``localmoe_models``, ``models/`` in a checkout."""
    try:
        return Path(str(files("localmoe_models")))
    except ModuleNotFoundError:
        return Path(__file__).parents[2] / "models"


@cache
def catalog() -> tuple[tuple[Entry, ...], tuple[Unavailable, ...]]:
    """The families we know by name, and the names that no one can run."""
    data = tomllib.loads((models_package() / "catalog.toml").read_text(encoding="utf-8"))
    known = tuple(Entry(**entry) for entry in data["model"])
    gone = tuple(
        Unavailable(**{**entry, "names": tuple(entry["names"])}) for entry in data["unavailable"]
    )
    return known, gone


def resolve(name: str) -> Path:
    """The first file of the model that ``name`` means.

    Raises ModelFileError for a path that does not exist, UnknownModelError for a name that means
    nothing or nothing on this machine; each says what to type next.
    """
    url = match_url(name)
    if url is None and is_path(name):
        path = storage.user_path(name)
        if not os.path.lexists(path):
            message = f"no file {clean_line(name)}"
            raise ModelFileError(message, hint=f"check the path; {LIST_HINT}")
        return path
    base, quant = (url.repo, url.wanted) if url else split_name(name)
    if base.lower() == BUNDLED:
        return _bundled(quant)
    entry = entry_of(base)
    repo = entry.repo if entry else base
    here = hub_files(repo) if _REPO.fullmatch(repo) else []
    here = here or [path for path in own_files() if _answers_to(path, base)]
    if not here and (others := other_named(base, quant)):
        return _choose_other(others, name)
    if quant.lower().endswith(".gguf"):
        wanted = quant.rpartition("/")[2].lower()
        here = [path for path in here if path.name.lower() == wanted]
        quant = ""
    if not here:
        raise unknown(name)
    return _choose(here, base, quant)


def looks_like_model(word: str) -> bool:
    """Whether the first word after ``run`` is meant as a model rather than as a prompt.

    It is when it resolves, has the form of a model name, or is a near miss of one that we know.
    """
    if not word or any(c.isspace() for c in word):
        return False
    if word.lower().endswith(".gguf") or match_url(word):
        return True
    base, quant = split_name(word)
    if _REPO.fullmatch(base) or _QUANT.fullmatch(quant) or (is_path(word) and Path(word).is_file()):
        return True
    _, gone = catalog()
    if other_named(base, quant):
        return True
    names = _names()
    lowered = {name.lower() for name in (*names, *(n for item in gone for n in item.names))}
    if base.lower() in lowered or _is_part_of_a_name(base.lower(), lowered):
        return True
    if _SIZE.search(base) or difflib.get_close_matches(
        Path(word).suffix.lower(), [".gguf"], 1, 0.8
    ):
        return True
    return bool(difflib.get_close_matches(base.lower(), lowered, n=1, cutoff=_NEAR_MISS))


def _is_part_of_a_name(word: str, names: Iterable[str]) -> bool:
    """``gpt-oss`` of gpt-oss-20b, ``llama4`` of llama-4-scout."""
    squeezed = _SEPARATORS.sub("", word)
    plain = not any(c.isdigit() for c in word)
    return len(word) >= 4 and any(
        name.startswith(f"{word}-")
        or (not plain and _SEPARATORS.sub("", name).startswith(squeezed))
        for name in names
    )


def nearest(name: str) -> list[str]:
    """Up to three known names like ``name``, best first; ``mixtral`` is like all its sizes."""
    wanted = name.lower()
    lowered = {candidate.lower(): candidate for candidate in sorted(_names())}
    found = difflib.get_close_matches(wanted, lowered, n=3, cutoff=_SIMILAR)
    families = {c.partition("-")[0] for c in lowered}
    starts = [wanted, *difflib.get_close_matches(wanted, families, n=1, cutoff=_SIMILAR)]
    if len(wanted) >= 3:
        found += [c for s in starts for c in lowered if c.startswith(s) and c not in found]
    return [lowered[match] for match in found[:3]]


def local_models() -> list[Path]:
    """First files of the models on this machine: bundled, in our folder, in the Hub's cache."""
    bundled = models_package() / f"{BUNDLED}.gguf"
    return [*([bundled] if bundled.is_file() else []), *own_files(), *hub_files()]


def _bundled(quant: str) -> Path:
    if quant and quant.upper() != BUNDLED_QUANT:
        message = f"{BUNDLED} comes as {BUNDLED_QUANT} only, not {clean_line(quant)}"
        raise UnknownModelError(message, hint=f"leave the :{clean_line(quant)} away")
    path = models_package() / f"{BUNDLED}.gguf"
    if not path.is_file():
        raise UnknownModelError(f"{BUNDLED} is not part of this installation", hint=LIST_HINT)
    return path


def _choose(here: Sequence[Path], base: str, quant: str) -> Path:
    """The file of that quantization; without one Q4_K_M, else the only one there is.

    Names must be equal: Q4_K_XL is another file than UD-Q4_K_XL.
    """
    wanted = (quant or DEFAULT_QUANT).upper()
    fitting = [path for path in here if quant_of(path) == wanted]
    if not fitting and not quant:
        fitting = list(here)
    if len(fitting) == 1:
        return fitting[0]
    if fitting and len({quant_of(path) for path in fitting}) < len(fitting):
        names = [clean_line(str(path)) for path in fitting]
    else:
        names = sorted(f"{base}:{quant_of(path)}" for path in here if quant_of(path))
        names = names or [clean_line(str(path)) for path in here]
    how = "several files of" if fitting else f"no {clean_line(quant)} of"
    error = UnknownModelError if fitting else NotHereError
    raise error(
        f"{how} {clean_line(base)} on this machine", hint=f"choose one: {', '.join(names[:8])}"
    )


def unknown(name: str) -> UnknownModelError:
    """The error of a name that leads to no file here: unavailable, a near miss, or not here yet."""
    url = match_url(name)
    base = url.repo if url else split_name(name)[0]
    entry = entry_of(base)
    for item in catalog()[1]:
        if base.lower() in item.names:
            return UnknownModelError(
                f"{item.family} {item.reason}", hint=f"the nearest open family: {item.nearest}"
            )
    if entry is not None and not entry.repo:
        return UnknownModelError(
            f"{entry.family} is not on this machine, and no conversion of it is known here",
            hint=f"find a GGUF of it, then: localmoe run PATH ({LIST_HINT})",
        )
    shown = clean_line(name)
    if entry is not None or _REPO.fullmatch(base):
        repo = clean_line(entry.repo if entry else base)
        also = f" (it is {repo})" if entry and base.lower() != repo.lower() else ""
        return NotHereError(f"{shown} is not on this machine{also}", hint=f"localmoe pull {shown}")
    close = nearest(base)
    guess = f" Did you mean {clean_line(' or '.join(close))}?" if close else ""
    return UnknownModelError(f'no model "{shown}".{guess}', hint=LIST_HINT)


def nearest_repos(repo: str) -> list[str]:
    """Up to three repositories of the catalog with names like ``user/name``, best first."""
    known = {entry.repo.lower(): entry.repo for entry in catalog()[0] if entry.repo}
    found = difflib.get_close_matches(repo.lower(), known, n=3, cutoff=_NEAR_MISS)
    return [known[match] for match in found]


@dataclass(frozen=True, slots=True)
class HubUrl:
    """What a Hub URL names; ``wanted`` is a quantization, a file's path or a folder."""

    repo: str
    wanted: str
    revision: str | None


def match_url(name: str) -> HubUrl | None:
    """The parts of a Hub URL: of a repository, of a file (/blob/, /resolve/), of a folder.

    The host may be left without "https://"; that of ``HF_ENDPOINT`` is one too.
    """
    host = _HUB.match(name)
    rest = name[host.end() :] if host else None
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    if rest is None and endpoint and name.startswith(f"{endpoint}/"):
        rest = name[len(endpoint) :]
    found = _HUB_PATH.fullmatch(rest) if rest is not None else None
    if found is None:
        return None
    repo, quant, path = found[1], found[2] or "", (found[3] or "").strip("/")
    kind, _, below = path.partition("/")
    if kind not in ("blob", "resolve", "raw", "tree"):
        return HubUrl(repo, quant, None)
    revision, _, wanted = below.partition("/")
    return HubUrl(repo, unquote(wanted) or quant, None if revision == "main" else revision)


def split_name(name: str) -> tuple[str, str]:
    """``base:QUANT`` → both; without a colon the second is ""."""
    base, _, quant = name.partition(":")
    return base, quant


def entry_of(base: str) -> Entry | None:
    """The catalog's entry with that alias or repository."""
    wanted = base.lower()
    return next((e for e in catalog()[0] if wanted and wanted in (e.alias, e.repo.lower())), None)


def _choose_other(others: Sequence[OtherFile], name: str) -> Path:
    """The one file of another program that a name means."""
    if len(others) == 1:
        return others[0].path
    names = ", ".join(clean_line(file.name) for file in others[:8])
    raise UnknownModelError(
        f"other programs have {len(others)} models called {clean_line(name)}",
        hint=f"choose one: {names}; or name its file",
    )


def _answers_to(path: Path, base: str) -> bool:
    """Whether a file is called ``base``, with or without its quantization and publisher."""
    name, wanted = model_name(path).lower(), base.lower()
    bare = re.sub(rf"[-_.]{re.escape(quant_of(path).lower())}$", "", name)
    return wanted in (name, bare) or bare.endswith(f"_{wanted}")


def _names() -> set[str]:
    aliases = {entry.alias for entry in catalog()[0]}
    return {BUNDLED} | aliases | {model_name(path) for path in own_files()}


def is_path(name: str) -> bool:
    """Whether a name is meant as a path: a file name, a folder, something that exists."""
    base = split_name(name)[0]
    return (
        (name.lower().endswith(".gguf") and not (base != name and _REPO.fullmatch(base)))
        or name.startswith(("/", "./", "../", "~/"))
        or (os.sep in name and os.path.lexists(name))
    )


def is_here(name: str) -> bool:
    """Whether all parts of the model of that name are on this machine."""
    try:
        return is_whole(resolve(name))
    except (UnknownModelError, ModelFileError):
        return False
