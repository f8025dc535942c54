"""What of a file is in the system's page cache, where the system says so (Linux)."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Sequence

CHUNK = 8 * 1024 * 1024  # bytes that are looked at, and read, as one


def missing_chunks(
    path: str, ranges: Sequence[tuple[int, int]] | None = None
) -> list[tuple[int, int]]:
    """The chunks (start, end) of ``ranges`` of a file that are not wholly in memory.

    Without ``ranges``: of the whole file.
    """
    if not sys.platform.startswith("linux"):
        return []
    size = os.path.getsize(path)  # noqa: PTH202
    resident = _resident_pages(path, size)
    chunks = []
    for start, end in ((0, size),) if ranges is None else ranges:
        for at in range(start, min(end, size), CHUNK):
            stop = min(at + CHUNK, end, size)
            first, last = at // mmap.PAGESIZE, -(-stop // mmap.PAGESIZE)
            if resident and resident.count(1, first, last) < last - first:
                chunks.append((at, stop))
    return chunks


def _resident_pages(path: str, size: int) -> bytes:
    """One byte per page, 1 where it is cached; empty when the system does not say (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    ]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    vector = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address in (None, ctypes.c_void_p(-1).value):
        return b""
    try:
        known = libc.mincore(address, size, vector) == 0
    finally:
        libc.munmap(address, size)
    return vector.raw if known else b""
