"""A cold start, as on a machine in use: the page cache is full, but not of the model.

Empty memory would flatter whoever leaves the model's pages to the system, since nothing competes
with them. On a virtual machine it would also charge the run that comes first: the host has taken
free memory away, and giving it back takes longer than reading the disk (2.8 ms per MB, 0.3 for
memory that is in use, where we measure).
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from localmoe.facts.cgroup import memory_limit
from localmoe.facts.page_cache import missing_chunks
from localmoe.storage import cache_dir, private_dir

_SMALL = 1 << 30  # bytes; what is smaller finds room anywhere, and is only dropped
_DROP = Path("/proc/sys/vm/drop_caches")


def forget(paths: Sequence[Path]) -> float:
    """Replace files in the page cache by another one; the share of them still in it (0 … 1).

    They leave part by part, so that little memory is free at any time. Pages that another process
    has mapped or written stay at first; then, where we may, the system is asked to drop all that is
    unchanged. Where the system does not tell what is cached, the answer is 0.
    """
    _replace(paths)
    left = cached_share(paths)
    if left:
        with contextlib.suppress(OSError):
            os.sync()
            _DROP.write_text("1")
            _replace(paths)
            left = cached_share(paths)
    return left


def _replace(paths: Sequence[Path]) -> None:
    at = 0
    linux = sys.platform.startswith("linux")  # elsewhere nobody tells what is cached
    if linux and sum(path.stat().st_size for path in paths) >= _SMALL:
        at = _fill(paths)
    _advise(paths, at, 0)


def _fill(paths: Sequence[Path]) -> int:
    """Fill the cache; the bytes at the beginning of each file that were dropped meanwhile."""
    at = 0
    with contextlib.suppress(OSError):  # a file system without holes may have no room
        filler = _filler().fileno()
        for start, end in missing_chunks(f"/proc/self/fd/{filler}"):
            _advise(paths, at, end - start)
            at += end - start
            os.pread(filler, end - start, start)
    return at


@functools.cache
def _filler() -> io.FileIO:
    """A file as large as the memory that is one hole: reading it takes memory, but no disk."""
    file = tempfile.TemporaryFile(dir=private_dir(cache_dir()), buffering=0)  # noqa: SIM115 (until the end)
    file.truncate(_memory())
    return file


def _memory() -> int:
    limit = memory_limit()
    total = int(psutil.virtual_memory().total)
    return min(total, limit.total) if limit else total


def cached_share(paths: Sequence[Path]) -> float:
    """How much of the files is in the page cache, counted in chunks that are wholly there."""
    if not sys.platform.startswith("linux"):
        return 0.0
    sizes = {path: path.stat().st_size for path in paths}
    missing = sum(
        end - start
        for path, size in sizes.items()
        for start, end in missing_chunks(str(path), [(0, size)])
    )
    total = sum(sizes.values())
    return (total - missing) / total if total else 0.0


def _advise(paths: Sequence[Path], start: int, length: int) -> None:
    """Tell the system that a part of each file (``length`` 0: to its end) may leave the cache."""
    for path in paths if hasattr(os, "posix_fadvise") else ():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
