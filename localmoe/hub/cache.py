"""The Hub's cache on disk, for one repository: what is here, and where the rest goes.

Layout (huggingface_hub's "Understand caching"; llama.cpp reads it too)::

    models--USER--REPO/blobs/ETAG                  content, named by its sha256 (git id if not LFS)
                      /blobs/ETAG.incomplete       the first bytes of it: a download goes on here
                      /blobs/ETAG.corrupt          the right size and the wrong hash: never used
                      /snapshots/COMMIT/PATH       relative symbolic links to blobs
                      /refs/main                   COMMIT, without a newline
    .locks/models--USER--REPO/ETAG.lock            held by the one writer

Only a complete blob gets its name, and only a complete model gets its links: no program that
looks here ever finds half of one. Names come from a server: nothing is written outside.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from localmoe.errors import StorageError, TransferError
from localmoe.facts.local_files import hub_cache
from localmoe.hub.names import RepoFile, check_path
from localmoe.text import clean_line

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What file systems without symbolic links answer: FAT, exFAT, some of FUSE and of the network.
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
INCOMPLETE = ".incomplete"
CORRUPT = ".corrupt"


@dataclass(frozen=True, slots=True)
class RepoCache:
    """The folder of ``repo`` ("user/name") in the cache ``root``."""

    root: Path
    repo: str

    @classmethod
    def of(cls, repo: str) -> RepoCache:
        """The repository's folder in the cache that huggingface_hub's variables name."""
        return cls(hub_cache(), repo)

    @property
    def folder(self) -> Path:
        return self.root / f"models--{self.repo.replace('/', '--')}"

    def blob(self, file: RepoFile) -> Path:
        return self.folder / "blobs" / file.etag

    def incomplete(self, file: RepoFile) -> Path:
        return self.folder / "blobs" / (file.etag + INCOMPLETE)

    def corrupt(self, file: RepoFile) -> Path:
        return self.folder / "blobs" / (file.etag + CORRUPT)

    def lock(self, file: RepoFile) -> Path:
        """The lock that huggingface_hub takes for the same content."""
        return self.root / ".locks" / self.folder.name / f"{file.etag}.lock"

    def pointer(self, commit: str, file: RepoFile) -> Path:
        """The file's name in a snapshot. Raises TransferError for an unsafe one."""
        check_path(file.path)
        return self.folder / "snapshots" / commit / file.path

    def has(self, commit: str, file: RepoFile) -> bool:
        """Whether all of the file is here, by its size; its hash was checked on arrival."""
        places = (self.blob(file), self.pointer(commit, file))
        return any(self._is_placed(path, file) for path in places)

    def bytes_here(self, commit: str, file: RepoFile) -> int:
        """Bytes that need not be fetched."""
        if self.has(commit, file):
            return file.size
        size = _size(self.incomplete(file)) or 0
        return size if size <= file.size else 0

    def missing(self, commit: str, files: Sequence[RepoFile]) -> int:
        """Bytes still to be fetched; equal contents count once."""
        unique = {file.etag: file for file in files}.values()
        return sum(file.size - self.bytes_here(commit, file) for file in unique)

    def placed(self, commit: str, files: Sequence[RepoFile]) -> bool:
        """Whether all of them are here under their names in that snapshot."""
        return all(self._is_placed(self.pointer(commit, file), file) for file in files)

    def prepare(self) -> None:
        """Make the folders. Raises StorageError."""
        for folder in ("blobs", "snapshots"):
            self._make(self.folder / folder)
            if not os.access(self.folder / folder, os.W_OK):
                raise StorageError(
                    f"the model cache {clean_line(str(self.root))} can be read, not written",
                    hint="set HF_HUB_CACHE to a folder of yours",
                )
        locks = self.root / ".locks" / self.folder.name
        with _storage_errors("cannot create", locks):
            locks.mkdir(parents=True, exist_ok=True)

    def place(self, commit: str, revision: str, files: Sequence[RepoFile]) -> tuple[Path, ...]:
        """Link complete blobs into the snapshot and note the revision. Returns where the files are.

        Raises TransferError for unsafe names, StorageError.
        """
        if revision != commit:
            check_path(revision)
        paths = tuple(self.pointer(commit, file) for file in files)
        for path, file in zip(paths, files, strict=True):
            self._make(path.parent)
            if not self._is_placed(path, file):
                same = [p for p, f in zip(paths, files, strict=True) if f.etag == file.etag]
                with _storage_errors("cannot create", path):
                    _put(self.blob(file), path, same)
        if revision != commit:
            self._name(revision, commit)
        return paths

    def _name(self, revision: str, commit: str) -> None:
        """Note which commit a revision is; a read-only cache is left as it is."""
        ref = self.folder / "refs" / revision
        known = ref.is_file() and ref.read_text() == commit
        if known or not os.access(self.folder, os.W_OK):
            return
        self._make(ref.parent)
        with _storage_errors("cannot write", ref):
            _write_text(ref, commit)

    def free(self) -> int:
        """Bytes that the disk of the cache can still take."""
        folder = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        with _storage_errors("cannot look at the disk of", folder):
            return shutil.disk_usage(folder).free

    def _make(self, folder: Path) -> None:
        """Create ``folder``. Raises TransferError when links lead it out of the repository."""
        with _storage_errors("cannot create", folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not folder.resolve().is_relative_to(self.folder.resolve()):
                raise TransferError(
                    f"{clean_line(str(folder))} leads out of the model cache",
                    hint="remove that link; localmoe did not make it",
                )

    def _is_placed(self, path: Path, file: RepoFile) -> bool:
        return _size(path) == file.size and self._ours(path)

    def _ours(self, path: Path) -> bool:
        """Whether a link ends in the cache: at a blob of ours, or of huggingface_hub's shared ones.

        People move whole folders to larger disks and leave a link: that is still the cache.
        """
        end = path.resolve()
        return any(end.is_relative_to(folder.resolve()) for folder in (self.root, self.folder))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size if path.is_file() else None
    except OSError:
        return None


def _put(blob: Path, pointer: Path, same: Sequence[Path]) -> None:
    """Give a blob its name in a snapshot, in place of whatever has that name.

    A relative link; where there are none, or nobody wants any, the file itself. ``same``: names
    of the same content, one of which may have the file already.
    """
    temporary = pointer.with_name(f".{uuid.uuid4().hex}")
    if _links_wanted():
        try:
            temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            temporary.replace(pointer)
            return
    if blob.is_file() and not blob.is_symlink() and not _has_links(blob):
        blob.replace(pointer)
        return
    # It has to stay where it is, or has gone to another of its names.
    source = next((p for p in (blob, *same) if p != pointer and p.is_file()), blob)
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(pointer)
    finally:
        temporary.unlink(missing_ok=True)


def _has_links(blob: Path) -> bool:
    """Whether a snapshot needs a blob in its place."""
    names = (blob.parents[1] / "snapshots").rglob("*")
    return any(path.is_symlink() and path.readlink().name == blob.name for path in names)


def _links_wanted() -> bool:
    """False when ``HF_HUB_DISABLE_SYMLINKS`` is set, read as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_DISABLE_SYMLINKS", "").upper() not in ("1", "ON", "YES", "TRUE")


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def _storage_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        storage_failed(what, path, error)


def storage_failed(what: str, path: Path, error: OSError) -> NoReturn:
    """Raise the StorageError that ``error`` means, with a hint for its errno."""
    reason = (error.strerror or str(error)).lower()
    hint = "check who owns it, or set HF_HOME to a folder of yours"
    if isinstance(error, FileExistsError | NotADirectoryError):
        hint = "something else has that name: move it away"
    elif error.errno in DISK_FULL:
        hint = "free some disk space; what has arrived is kept"
    elif error.errno == errno.EFBIG:
        hint = "this file system has no files of that size: set HF_HUB_CACHE to another disk"
    elif error.errno in READ_ONLY:
        hint = "it cannot be written by you: set HF_HUB_CACHE to a folder of yours"
    raise StorageError(f"{what} {clean_line(str(path))}: {reason}", hint=hint) from error
