"""Model files on this machine: in our own folder and in the Hugging Face cache.

Cache layout: huggingface_hub's "Understand caching",
``models--USER--REPO/snapshots/REVISION/…``. A multi-part set is listed once, by its first part.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from localmoe import storage
from localmoe.facts.file_kind import is_model_file
from localmoe.facts.parts import PartName

DEFAULT_QUANT = "Q4_K_M"
MAX_FILES = 10_000  # GGUF files looked at in one folder tree
MAX_FOLDERS = 10_000  # folders looked into

_QUANT = re.compile(
    r"(?:^|[-_.])((?:UD-)?(?:I?Q\d\w*|TQ\d_\d|BF16|F16|F32|MXFP4\w*|NVFP4))(?=[-.]|$)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CachedFile:
    """The first file of a model in the Hub cache."""

    repo: str  # "user/name", as its folder says
    within: PurePosixPath  # its path in the repository
    path: Path


def own_files() -> list[Path]:
    """First files of the models in our models folder."""
    return list(models_below(storage.models_dir()))


def cached_files(repo: str | None = None, revision: str | None = None) -> list[CachedFile]:
    """First files of the models in the Hub cache, of one repository (``user/name``) or of all.

    Every file of every downloaded revision counts once: as it is in the revision that the
    cache's ``main`` names if it is there, else in the newest one that has it whole. With a
    ``revision``, only that one counts. Files are in the order of their paths.
    """
    # The Hub's names ignore case; those of folders may not.
    wanted = _folder_name(repo).lower() if repo else None
    found: list[CachedFile] = []
    for folder in _folders(hub_cache()):
        name = folder.name.lower()
        if name == wanted or (wanted is None and name.startswith("models--")):
            found += _of_repository(folder, revision)
    exact = [file for file in found if file.repo == repo]
    return exact or found


def hub_cache() -> Path:
    """Where huggingface_hub keeps its files, by its own environment variables."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if stated := os.environ.get(variable):
            return _stated_path(stated)
    if home := os.environ.get("HF_HOME"):
        return _stated_path(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _stated_path(cache) / "huggingface" / "hub"


def model_name(path: PurePath) -> str:
    """A file's name without ``.gguf`` and without the number of its part."""
    part = PartName.parse(path.name)
    if part:
        return part.stem
    return path.name[: -len(".gguf")] if is_gguf(path.name) else path.name


def is_gguf(name: str) -> bool:
    """Whether a file's name says that it is a GGUF file."""
    return name.lower().endswith(".gguf")


def quant_of(path: PurePath) -> str:
    """The quantization that a file's name states, upper case; "" if none."""
    found = _QUANT.findall(model_name(path))
    return str(found[-1]).upper().removesuffix("_MOE") if found else ""


def quant_within(path: PurePosixPath) -> str:
    """The quantization that a path in a repository states: its file's name, else its folder's."""
    return quant_of(path) or quant_of(PurePosixPath(path.parent.name))


def is_whole(path: Path) -> bool:
    """Whether the other parts of a set are beside this one."""
    part = PartName.parse(path.name)
    return part is None or all(
        path.with_name(part.sibling(number)).exists() for number in range(1, part.count + 1)
    )


def models_below(folder: Path) -> Iterator[Path]:
    """First parts of the models in a folder tree, links to folders followed, in their order.

    Projectors, drafts and importance matrices are not models (``file_kind``).
    """
    for path in _gguf_files(folder):
        part = PartName.parse(path.name)
        first = part is None or part.number == 1
        if first and path.is_file() and is_model_file(path):
            yield path


def _gguf_files(folder: Path) -> list[Path]:
    """The GGUF files of a folder tree, sorted; no folder twice, whatever links lead to it."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        try:
            status = os.stat(parent)  # noqa: PTH116 - a string here
        except OSError:
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen or len(seen) >= MAX_FOLDERS:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        found += [Path(parent, name) for name in names if is_gguf(name)]
        if len(found) >= MAX_FILES:
            break
    return sorted(found)[:MAX_FILES]


def _of_repository(folder: Path, revision: str | None) -> list[CachedFile]:
    repo = folder.name[len("models--") :].replace("--", "/", 1)
    best: dict[PurePosixPath, Path] = {}
    for snapshot in _snapshots(folder, revision):
        for path in models_below(snapshot):
            within = PurePosixPath(path.relative_to(snapshot))
            known = best.get(within)
            if known is None or (is_whole(path) and not is_whole(known)):
                best[within] = path
    return [CachedFile(repo, within, best[within]) for within in sorted(best)]


def _snapshots(folder: Path, revision: str | None) -> list[Path]:
    """The downloaded revisions: that of ``main`` first, then the newest."""
    found = sorted(_folders(folder / "snapshots"), key=_modified, reverse=True)
    commit = _commit(folder, revision or "main")
    if revision is None:
        return sorted(found, key=lambda snapshot: snapshot.name != commit)
    return [s for s in found if s.name == commit or _is_short_for(revision, s.name)]


def _commit(folder: Path, revision: str) -> str:
    """The commit that the cache knows a branch or tag by; "" if it does not."""
    refs = folder / "refs"
    path = refs / revision
    try:
        if not Path(os.path.normpath(path)).is_relative_to(refs):
            return ""
        return path.read_text(encoding="ascii")[:100].strip()
    except (OSError, ValueError):
        return ""


def _is_short_for(revision: str, commit: str) -> bool:
    return len(revision) >= 7 and commit.startswith(revision.lower())


def _folder_name(repo: str) -> str:
    return f"models--{repo.replace('/', '--')}"


def _stated_path(text: str) -> Path:
    """The path that a variable of huggingface_hub's states: ``~`` and ``$NAME`` are replaced."""
    return storage.user_path(os.path.expandvars(text))


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
