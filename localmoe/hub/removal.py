"""Deleting models: from our own folder, and from the Hub's cache with everything that names them.

``plan`` and ``leftovers`` only look at what is there, ``remove`` deletes.

huggingface_hub may keep contents once for the whole cache, in ``blobs/XX/XETHASH`` beside the
repositories, whose blobs are then links to there; ``XETHASH.refs`` lists them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localmoe import storage
from localmoe.errors import StorageError, UsageError
from localmoe.facts.catalog import models_package
from localmoe.facts.local_files import hub_cache
from localmoe.facts.parts import PartName
from localmoe.hub.cache import CORRUPT, INCOMPLETE
from localmoe.hub.locks import try_lock
from localmoe.text import clean_line


@dataclass(frozen=True, slots=True)
class Removal:
    """The files that a deletion takes."""

    paths: tuple[Path, ...]  # files and links, content before the names that lead to it
    freed: int  # bytes of disk that nothing else uses
    repo: Path | None = None  # the repository's folder in the Hub cache
    shared: bool = False  # whether content stays, because other repositories have it too


def plan(path: Path) -> Removal:
    """The files of the model that ``path`` belongs to: all parts, in all revisions.

    Raises UsageError for what neither localmoe nor the Hub's cache has put there.
    """
    if _within(models_package(), path):
        raise UsageError(
            f"{clean_line(path.name)} is part of localmoe itself", hint="pip uninstall localmoe"
        )
    inside = _within(hub_cache(), path)
    if len(inside) >= 4 and inside[0].startswith("models--") and inside[1] == "snapshots":
        return _from_hub_cache(hub_cache() / inside[0], Path(*inside[3:]))
    own = storage.models_dir()
    if _within(own, path) and path.absolute().parent.resolve().is_relative_to(own.resolve()):
        files = [p for p in _parts(path) if os.path.lexists(p)]
        return Removal(tuple(files), _freed(files))
    raise UsageError(
        f"{clean_line(str(path))} is neither localmoe's nor in the Hub's cache: it stays",
        hint=f"to delete it all the same: rm {clean_line(str(path))}",
    )


def leftovers(repo: str) -> Removal:
    """What broken-off downloads of a repository have left in the cache."""
    wanted = f"models--{repo.replace('/', '--')}".lower()
    folders = [f for f in _children(hub_cache()) if f.name.lower() == wanted]
    files = [
        path
        for folder in folders
        for path in _children(folder / "blobs")
        if _is_leftover(path) and not path.is_symlink()
    ]
    return Removal(tuple(files), _freed(files), folders[0] if folders else None)


def remove(removal: Removal) -> Removal:
    """Delete the files. Raises StorageError, also when one of them is being downloaded."""
    gone: list[Path] = []
    try:
        with _no_writer(removal):
            for path in removal.paths:
                path.unlink(missing_ok=True)
                gone.append(path)
            if removal.repo is not None:
                _tidy(removal.repo)
    except OSError as error:
        raise StorageError(
            f"cannot remove {clean_line(str(error.filename or removal.paths[0]))}: "
            f"{(error.strerror or str(error)).lower()}",
            hint=f"{len(gone)} of {len(removal.paths)} files are gone; check who owns the rest",
        ) from error
    return removal


def _from_hub_cache(repo: Path, relative: Path) -> Removal:
    """The model's names in every snapshot, and the blobs that no other file needs."""
    pointers = [
        part
        for snapshot in _children(repo / "snapshots")
        for part in _parts(snapshot / relative)
        if os.path.lexists(part)
    ]
    targets = {Path(os.path.normpath(p.parent / p.readlink())) for p in pointers if p.is_symlink()}
    ours = {t for t in targets if t.parent == repo / "blobs" and os.path.lexists(t)}
    needed = {
        Path(os.path.normpath(p.parent / p.readlink()))
        for p in (repo / "snapshots").rglob("*")
        if p.is_symlink() and p not in pointers
    }
    blobs = sorted(ours - needed)
    gone = {blob.name for blob in blobs}
    aside = [
        path
        for path in _children(repo / "blobs")
        if _is_leftover(path) and path.name.partition(".")[0] in gone
    ]
    stores = {store for blob in blobs if (store := _shared_store(repo.parent, blob)) is not None}
    free = sorted(stores - _stores_in_use(repo.parent, set(blobs)))
    lists = [path for store in free if (path := store.with_name(f"{store.name}.refs")).exists()]
    files = [*free, *lists, *blobs, *aside, *pointers]
    return Removal(tuple(files), _freed(files), repo, shared=len(free) < len(stores))


def _is_leftover(path: Path) -> bool:
    """Whether a blob is what a broken-off download has left: ours, or another client's."""
    return path.name.endswith((INCOMPLETE, CORRUPT))


def _shared_store(cache: Path, blob: Path) -> Path | None:
    """Where a blob's content is kept for the whole cache; None when the blob has it itself."""
    if not blob.is_symlink():
        return None
    end = Path(os.path.normpath(blob.parent.resolve() / blob.readlink()))
    inside = end.is_relative_to(cache.resolve() / "blobs") and end.is_file()
    return end if inside and not end.is_symlink() else None


def _stores_in_use(cache: Path, without: Container[Path]) -> set[Path]:
    """The shared contents that a blob of any repository leads to, but for those in ``without``."""
    blobs = (blob for blob in cache.glob("*--*/blobs/*") if blob not in without)
    return {store for blob in blobs if (store := _shared_store(cache, blob)) is not None}


def _within(folder: Path, path: Path) -> tuple[str, ...]:
    """The names that lead from ``folder`` to ``path``; () when it is elsewhere.

    The last one is not followed if it is a link, for it is what would be deleted; those before
    may be: a cache is often a link to a larger disk.
    """
    plain = Path(os.path.normpath(path.absolute()))
    for base, below in (
        (folder.absolute(), plain),
        (folder.resolve(), plain.parent.resolve() / plain.name),
    ):
        if below.is_relative_to(base):
            return below.relative_to(base).parts
    return ()


def _parts(path: Path) -> list[Path]:
    part = PartName.parse(path.name)
    if part is None:
        return [path]
    return [path.with_name(part.sibling(number)) for number in range(1, part.count + 1)]


def _freed(files: Iterable[Path]) -> int:
    """Bytes on disk of regular files that have no other name. Links take none."""
    total = 0
    for path in files:
        with contextlib.suppress(OSError):
            status = path.lstat()
            if path.is_file() and not path.is_symlink() and status.st_nlink == 1:
                total += status.st_blocks * 512  # POSIX: st_blocks counts 512 bytes
    return total


def _tidy(repo: Path) -> None:
    """Remove empty snapshots, the refs that name them, and the repository if it is empty."""
    snapshots = repo / "snapshots"
    for folder, _, _ in os.walk(snapshots, topdown=False):
        if Path(folder) != snapshots:
            with contextlib.suppress(OSError):  # not empty
                Path(folder).rmdir()
    for ref in (repo / "refs").rglob("*"):
        if ref.is_file() and not (snapshots / ref.read_text().strip()).is_dir():
            ref.unlink()
    if any(path.is_file() or path.is_symlink() for path in repo.rglob("*")):
        return
    for folder, _, _ in os.walk(repo, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()


@contextlib.contextmanager
def _no_writer(removal: Removal) -> Iterator[None]:
    """Hold the locks of the contents. Raises StorageError when one is being downloaded."""
    with contextlib.ExitStack() as stack:
        for path in _locks(removal):
            lock = try_lock(path)
            if lock is None:
                raise StorageError(
                    "it is being downloaded by another process",
                    hint="stop that one first (Ctrl-C), then: localmoe rm",
                )
            stack.callback(lock.release)
        yield


def _locks(removal: Removal) -> list[Path]:
    """The lock files that every writer of these contents holds, huggingface_hub too."""
    if removal.repo is None:
        return []
    cache = removal.repo.parent
    folder = cache / ".locks" / removal.repo.name
    blobs = removal.repo / "blobs"
    etags = dict.fromkeys(p.name.partition(".")[0] for p in removal.paths if p.parent == blobs)
    found = [folder / f"{etag}.lock" for etag in etags if folder.is_dir()]
    stores = [p for p in removal.paths if p.parent.parent == cache.resolve() / "blobs"]
    return found + [p.with_name(f"{p.name}.lock") for p in stores if not p.suffix]


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
