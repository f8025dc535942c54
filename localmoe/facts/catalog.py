"""From a name to a model file on this machine.

A name is a path, the bundled ``nano``, an alias of the catalog (``models/catalog.toml``) or a Hub
repository, the last two with an optional ``:QUANT``. Files are found in the bundled package, in our
models folder and in the Hugging Face cache; nothing is downloaded here.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from localmoe import storage
from localmoe.errors import ModelFileError, UnknownModelError
from localmoe.facts.parts import PartName
from localmoe.text import clean_line

BUNDLED = "nano"
DEFAULT_QUANT = "Q4_K_M"
MAX_FILES = 10_000  # GGUF files looked at in one folder tree

_REPO = re.compile(r"^[\w.-]+/[\w.-]+$")
_NOT_A_MODEL = re.compile(r"(^|[-_.])(mmproj|imatrix|draft|mtp)([-_.]|$)", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d\w*|T?Q\d_\d|BF16|F16|F32|MXFP4\w*|NVFP4))(?=[-.]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A family of the catalog."""

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
    if _is_path(name):
        path = Path(name).expanduser()
        if not path.exists():
            raise ModelFileError(
                f"no file {clean_line(name)}",
                hint="check the path; localmoe list shows the models on this machine",
            )
        return path
    base, _, quant = name.partition(":")
    if base.lower() == BUNDLED:
        if quant and quant.lower() != "q8_0":
            raise UnknownModelError(f"nano comes as Q8_0 only, not {clean_line(quant)}")
        return models_package() / "nano.gguf"
    entry = _entry(base)
    repo = entry.repo if entry else base
    here = in_hub_cache(repo) if _REPO.match(repo) else []
    if not here:
        here = [path for path in local_models() if path.stem.lower() == name.lower()]
        if len(here) == 1:
            return here[0]
        raise _not_here(name, base, quant, entry)
    return _choose(here, repo, quant)


def looks_like_model(word: str) -> bool:
    """Whether the first word after ``run`` is meant as a model rather than as a prompt."""
    if not word or any(c.isspace() for c in word):
        return False
    if _is_path(word):
        return True
    base, colon, _ = word.partition(":")
    known, gone = catalog()
    names = {BUNDLED, *(entry.alias for entry in known), *(n for u in gone for n in u.names)}
    if base.lower() in names or _REPO.match(base) or any(p.stem == word for p in local_models()):
        return True
    return bool(nearest(base)) and (bool(colon) or any(c in word for c in "-0123456789"))


def nearest(name: str) -> list[str]:
    """Up to three known names like ``name``, best first."""
    known, _ = catalog()
    names = {BUNDLED, *(entry.alias for entry in known), *(path.stem for path in local_models())}
    lowered = {candidate.lower(): candidate for candidate in sorted(names)}
    found = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.75)
    return [lowered[match] for match in found]


def local_models() -> list[Path]:
    """First files of the models on this machine: bundled, in our folder, in the Hub's cache."""
    found = [models_package() / "nano.gguf"]
    found += _models_below(storage.models_dir())
    for repo in sorted(hub_cache().glob("models--*")):
        found += in_hub_cache(repo.name.removeprefix("models--").replace("--", "/", 1))
    return [path for path in found if path.is_file()]


def hub_cache() -> Path:
    """Where huggingface_hub keeps its files, by its own environment variables."""
    if stated := os.environ.get("HF_HUB_CACHE"):
        return Path(stated)
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def in_hub_cache(repo: str) -> list[Path]:
    """First files of the models of one repository, of its newest downloaded revision."""
    root = hub_cache() / f"models--{repo.replace('/', '--')}"
    if not root.is_dir():  # the Hub's names ignore case, a file system may not
        wanted = root.name.lower()
        others = (path for path in hub_cache().glob("models--*") if path.name.lower() == wanted)
        root = next(others, root)
    revisions = [path for path in root.glob("snapshots/*") if path.is_dir()]
    revisions.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for revision in revisions:
        if models := _models_below(revision):
            return models
    return []


def quant_of(path: Path) -> str:
    """The quantization that a file's name states, upper case; "" if none."""
    part = PartName.parse(path.name)
    found = _QUANT.findall(part.stem if part else path.stem)
    return str(found[-1]).upper() if found else ""


def _models_below(folder: Path) -> list[Path]:
    """First parts only; projectors, drafts and importance matrices are not models."""
    found = []
    for count, path in enumerate(sorted(folder.rglob("*.gguf"))):
        if count >= MAX_FILES:
            break
        part = PartName.parse(path.name)
        if (part is None or part.number == 1) and not _NOT_A_MODEL.search(path.stem):
            found.append(path)
    return found


def _choose(here: Sequence[Path], repo: str, quant: str) -> Path:
    """The file of that quantization; without one Q4_K_M, else the only one there is."""
    by_quant = {quant_of(path): path for path in here}
    if quant:
        if quant.upper() in by_quant:
            return by_quant[quant.upper()]
    elif DEFAULT_QUANT in by_quant:
        return by_quant[DEFAULT_QUANT]
    elif len(here) == 1:
        return here[0]
    names = ", ".join(f"{repo}:{name}" for name in sorted(by_quant) if name)
    what = f"no {clean_line(quant)} of {repo}" if quant else f"several files of {repo}"
    raise UnknownModelError(f"{what} on this machine", hint=f"choose one of: {names}")


def _entry(base: str) -> Entry | None:
    known, _ = catalog()
    return next((e for e in known if base.lower() in (e.alias, e.repo.lower())), None)


def _not_here(name: str, base: str, quant: str, entry: Entry | None) -> UnknownModelError:
    """The error of a name that leads to no file: unavailable, known, a near miss, or nothing."""
    shown = clean_line(name)
    _, gone = catalog()
    for item in gone:
        if base.lower() in item.names:
            return UnknownModelError(
                f"{item.family} {item.reason}", hint=f"the nearest open family: {item.nearest}"
            )
    if entry is not None or _REPO.match(base):
        repo = entry.repo if entry else base
        pattern = clean_line(f"*{quant or DEFAULT_QUANT}*")
        return UnknownModelError(
            f"{shown} is not on this machine" + (f" (it is {repo})" if entry else ""),
            hint=f'hf download {clean_line(repo)} --include "{pattern}", then try again',
        )
    close = nearest(base)
    if close:
        return UnknownModelError(f'no model "{shown}". Did you mean {" or ".join(close)}?')
    return UnknownModelError(
        f'no model "{shown}"', hint="localmoe list shows the models on this machine"
    )


def _is_path(name: str) -> bool:
    return (
        name.lower().endswith(".gguf")
        or name.startswith(("/", "./", "../", "~"))
        or (os.sep in name and Path(name).exists())
    )
