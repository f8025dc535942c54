"""Model files on this machine: in our own folder and in the Hugging Face cache.

Cache layout: huggingface_hub's "Understand caching",
``models--USER--REPO/snapshots/REVISION/…``. A multi-part set is listed once, by its first part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath

from localmoe import storage
from localmoe.facts.parts import PartName

DEFAULT_QUANT = "Q4_K_M"
MAX_FILES = 10_000  # GGUF files looked at in one folder tree

_SIDE_FILE = re.compile(r"(^|[-_.])(mmproj|imatrix|draft|mtp)([-_.]|$)", re.IGNORECASE)
_QUANT = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|F16|F32|MXFP4\w*|NVFP4))(?=[-.]|$)",
    re.IGNORECASE,
)


def own_files() -> list[Path]:
    """First files of the models in our models folder."""
    return list(models_below(storage.models_dir()))


def hub_files(repo: str | None = None) -> list[Path]:
    """First files of the models in the Hub cache, of one repository (``user/name``) or of all.

    Of each repository the newest downloaded revision that has any.
    """
    # The Hub's names ignore case; those of folders may not.
    wanted = f"models--{repo.replace('/', '--')}".lower() if repo else None
    found: list[Path] = []
    for folder in _folders(hub_cache()):
        name = folder.name.lower()
        if name == wanted or (wanted is None and name.startswith("models--")):
            revisions = sorted(_folders(folder / "snapshots"), key=_modified, reverse=True)
            found += next(filter(None, (list(models_below(r)) for r in revisions)), [])
    return found


def hub_cache() -> Path:
    """Where huggingface_hub keeps its files, by its own environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if stated := os.environ.get(variable):
            return storage.user_path(stated)
    if home := os.environ.get("HF_HOME"):
        return storage.user_path(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return storage.user_path(cache) / "huggingface" / "hub"


def model_name(path: PurePath) -> str:
    """A file's name without ``.gguf`` and without the number of its part."""
    part = PartName.parse(path.name)
    return part.stem if part else path.stem


def quant_of(path: PurePath) -> str:
    """The quantization that a file's name states, upper case; "" if none."""
    found = _QUANT.findall(model_name(path))
    return str(found[-1]).upper().removesuffix("_MOE") if found else ""


def is_whole(path: Path) -> bool:
    """Whether the other parts of a set are beside this one."""
    part = PartName.parse(path.name)
    return part is None or all(
        path.with_name(part.sibling(number)).exists() for number in range(1, part.count + 1)
    )


def is_side_file(name: str) -> bool:
    """Whether a file's name says that it belongs to a model rather than being one."""
    return bool(_SIDE_FILE.search(name.lower().removesuffix(".gguf")))


def models_below(folder: Path) -> Iterator[Path]:
    """First parts only; projectors, drafts and importance matrices are not models."""
    try:
        candidates = sorted(folder.rglob("*.gguf"))[:MAX_FILES]
    except OSError:
        return
    for path in candidates:
        part = PartName.parse(path.name)
        first = part is None or part.number == 1
        if first and not is_side_file(path.name) and path.is_file():
            yield path


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except OSError:
        return []


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
