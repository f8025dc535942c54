"""A machine as a day's use leaves it: the model not in the page cache, and the cache full.

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

from localmoe.engine.readahead import missing_chunks
from localmoe.storage import cache_dir

_DROP = Path("/proc/sys/vm/drop_caches")
_STEP = 32 << 20  # bytes


def forget(paths: Sequence[Path]) -> float:
    """Replace files in the page cache by another one; the share of them still in it (0 … 1).

    Bit by bit, so that memory is never free for long. What others have mapped or written goes with
    everything that is clean, where we may ask for that. Where the system does not tell, the answer
    is 0.
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
    crowd, step, at = _crowd(), bytearray(_STEP), 0
    most = max((path.stat().st_size for path in paths), default=0)
    crowd.seek(0)
    while crowd.readinto(step) or at < most:
        for path in paths:
            _advise(path, at)
        at += _STEP


@functools.cache
def _crowd() -> io.FileIO:
    """As large as the memory, and nothing but a hole: reading it needs memory, but no disk."""
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (until the end)
    file.truncate(psutil.virtual_memory().total)
    return file


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


def _advise(path: Path, start: int) -> None:
    """A step of a file is not needed in the page cache."""
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, start, _STEP, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
