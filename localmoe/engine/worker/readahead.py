"""Bring model files into the page cache before they are mapped, with progress and a way to stop.

llama.cpp's own way is one system call (``MAP_POPULATE``) that returns when the last byte is read,
however large the file: no progress, no interrupt, and pointless for a file larger than RAM. The
worker runs with that switched off (``native.cpp``), and this reads what is missing instead.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from localmoe.engine.worker.binding import native
from localmoe.facts.page_cache import CHUNK, missing_chunks

AT_ONCE = 3  # chunks read at the same time


def read_ahead(
    paths: Sequence[str],
    progress: Callable[[float], bool],
    ranges: Sequence[tuple[int, int, int]] | None = None,
) -> bool:
    """Read every chunk that is not in the page cache; False when ``progress`` (0…1) said stop.

    ``ranges``: (index of the path, start, end) in bytes, if not all is wanted. Where the system
    does not tell what is cached, nothing is read: the pages come when touched.
    """
    whole = ranges is None
    if ranges is None:
        ranges = [(i, 0, os.path.getsize(path)) for i, path in enumerate(paths)]  # noqa: PTH202
    missing = [
        (paths[part], chunk)
        for part in sorted({part for part, _, _ in ranges})
        for chunk in missing_chunks(paths[part], [(a, b) for p, a, b in ranges if p == part])
    ]
    total, done = sum(end - start for _, (start, end) in missing), 0
    local = threading.local()

    def read(job: tuple[str, tuple[int, int]]) -> int:
        path, (start, end) = job
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(CHUNK))
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor is all we need
            if whole and _bring(file.fileno(), start, end - start):
                return end - start
            # The kernel's own guess of what comes next would read between the ranges.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            os.posix_fadvise(file.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)
            os.preadv(file.fileno(), [local.buffer[: end - start]], start)
        return end - start

    with ThreadPoolExecutor(AT_ONCE) as pool:
        under_way: deque[Future[int]] = deque()
        for job in missing:
            if not progress(done / total):
                pool.shutdown(cancel_futures=True)
                return False
            under_way.append(pool.submit(read, job))
            if len(under_way) > AT_ONCE:
                done += under_way.popleft().result()
        for last in under_way:
            last.result()
    return True


def _bring(descriptor: int, start: int, length: int) -> bool:
    """By the native helper, the quickest way; False where it cannot. Raises OSError."""
    bring = getattr(native, "localmoe_bring", None)
    if bring is None or start % mmap.PAGESIZE:
        return False
    error: int = bring(descriptor, ctypes.c_int64(start), ctypes.c_int64(length))
    if error not in (0, errno.ENOSYS):
        raise OSError(error, os.strerror(error))
    return error == 0
