"""Bring model files into the page cache before they are mapped, with progress and a way to stop.

llama.cpp's own way is one system call (``MAP_POPULATE``) that returns when the last byte is read,
however large the file: no progress, no interrupt, and pointless for a file larger than RAM. The
worker runs with that switched off (``native.cpp``), and this reads what is missing instead.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Sequence

CHUNK = 8 * 1024 * 1024  # bytes per read
AHEAD = 4 * CHUNK  # bytes the kernel is told of in advance


def read_ahead(paths: Sequence[str], progress: Callable[[float], bool]) -> bool:
    """Read every chunk that is not in the page cache; False when ``progress`` (0…1) said stop.

    Where the system does not tell what is cached, nothing is read: the pages come when touched.
    """
    missing = [(path, offset) for path in paths for offset in missing_chunks(path)]
    buffer = bytearray(CHUNK)
    for done, (path, offset) in enumerate(missing):
        if not progress(done / len(missing)):
            return False
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a descriptor is all we need
            os.posix_fadvise(file.fileno(), offset, AHEAD, os.POSIX_FADV_WILLNEED)
            os.preadv(file.fileno(), [buffer], offset)
    return True


def missing_chunks(path: str) -> list[int]:
    """Offsets of the chunks of a file of which some page is not in the page cache."""
    if not sys.platform.startswith("linux"):
        return []
    size = os.path.getsize(path)  # noqa: PTH202
    resident = _resident_pages(path, size)
    pages = CHUNK // mmap.PAGESIZE
    return [
        first * mmap.PAGESIZE
        for first in range(0, len(resident), pages)
        if resident.count(1, first, first + pages) < min(pages, len(resident) - first)
    ]


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
