"""Files out of the page cache, so that a run begins where the first one after a boot does."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from localmoe.engine.readahead import missing_chunks

_DROP = Path("/proc/sys/vm/drop_caches")


def forget(paths: Sequence[Path]) -> float:
    """Drop files from the page cache; the share of them that is still in it (0 … 1).

    Asks for the files alone; what others have mapped or written goes with everything that is
    clean, where we may ask for that. Where the system does not tell, the answer is 0.
    """
    for path in paths:
        _advise(path)
    left = cached_share(paths)
    if left:
        with contextlib.suppress(OSError):
            os.sync()
            _DROP.write_text("1")
            left = cached_share(paths)
    return left


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


def _advise(path: Path) -> None:
    if hasattr(os, "posix_fadvise"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
