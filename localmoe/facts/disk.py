"""How fast a model's disk can be read."""

from __future__ import annotations

import mmap
import os
import threading
import time
from pathlib import Path

from localmoe.errors import StorageError

_BLOCK = 4 << 20  # bytes of one request, about one expert's tensors
_MOST = 256 << 20
_SECONDS = 1.0
_READERS = 4  # requests under way at once; one alone does not keep an NVMe disk busy


def measure_disk(path: Path) -> float:
    """Bytes per second, reading at most 256 MiB and about 1 s from the start of a file.

    Reads past the page cache (O_DIRECT); where a file system refuses that, the file is first
    dropped from the cache. Raises StorageError if it cannot be read.
    """
    try:
        descriptor = _open_uncached(path)
        try:
            size = min(os.fstat(descriptor).st_size, _MOST)
            done, seconds = _read_all(descriptor, size)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    if not done:
        raise StorageError(f"{path} is empty: its disk cannot be measured with it")
    return done / max(seconds, 1e-9)


def _open_uncached(path: Path) -> int:
    direct = getattr(os, "O_DIRECT", 0)
    if direct:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | direct)
        except OSError:  # tmpfs, some network and FUSE file systems
            pass
        else:
            try:
                with mmap.mmap(-1, mmap.PAGESIZE) as page:
                    os.preadv(descriptor, [page], 0)
                return descriptor
            except OSError:
                os.close(descriptor)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    return descriptor


def _read_all(descriptor: int, size: int) -> tuple[int, float]:
    """Bytes read and seconds taken by all readers together."""
    offsets = iter(range(0, size, _BLOCK))
    lock = threading.Lock()
    counts: list[int] = []
    errors: list[OSError] = []
    start = time.perf_counter()

    def reader() -> None:
        # Anonymous mappings are page-aligned, as O_DIRECT wants its buffers.
        with mmap.mmap(-1, _BLOCK) as buffer:
            while time.perf_counter() - start < _SECONDS:
                with lock:
                    offset = next(offsets, None)
                if offset is None:
                    return
                try:
                    counts.append(os.preadv(descriptor, [buffer], offset))
                except OSError as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=reader) for _ in range(_READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts), time.perf_counter() - start
