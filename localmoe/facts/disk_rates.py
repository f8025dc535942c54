"""The disk as a model is read from it: direct reads of expert size, and through the page cache."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from localmoe import storage
from localmoe.errors import StorageError
from localmoe.facts.bandwidth import DiskRate, disk_of
from localmoe.facts.disk import Span, measure_reads

SIZES = (128 << 10, 512 << 10, 2 << 20, 4 << 20)  # bytes of a request
SECONDS = 0.25  # for each size
SMALLEST = 64 << 20  # bytes; a smaller file says nothing about a disk
SAMPLE = 128 << 20  # bytes of a file that is written where there is none to read
BUFFERED = 96 << 20  # bytes that are read through the page cache
CHUNK, READERS = 8 << 20, 3  # as a model is read when it is loaded


def measure_file(path: Path) -> DiskRate:
    """How fast the disk of ``path`` is read, in about 1.3 s. Raises StorageError.

    The file must have at least ``SMALLEST`` bytes.
    """
    size = path.stat().st_size
    reads = []
    for length in SIZES:
        places = list(range(0, size - length, length))
        random.Random(length).shuffle(places)
        spans = [Span(path, at, length) for at in places[: (1 << 30) // length]]
        reads.append((float(length), measure_reads(spans, seconds=SECONDS)))
    return DiskRate(disk_of(path), tuple(reads), _buffered(path, size))


def measure_folder(folder: Path) -> DiskRate:
    """How fast the disk of a folder is read, by a file that is written there for a moment.

    Raises StorageError.
    """
    with _sample(storage.private_dir(folder)) as path:
        return measure_file(path)


def _buffered(path: Path, size: int) -> float:
    """Bytes per second into the page cache, read as a load reads: in order, ``CHUNK`` at a time."""
    first = max(0, size - BUFFERED)
    chunks = iter(range(first, size, CHUNK))
    lock = threading.Lock()
    try:
        with path.open("rb", buffering=0) as file:
            handle = file.fileno()
            if not hasattr(os, "posix_fadvise"):
                return measure_reads([Span(path, at, CHUNK) for at in chunks])
            os.posix_fadvise(handle, first, size - first, os.POSIX_FADV_DONTNEED)

            def read() -> None:
                buffer = bytearray(CHUNK)
                while True:
                    with lock:
                        at = next(chunks, None)
                    if at is None:
                        return
                    os.preadv(handle, [buffer], at)

            start = time.perf_counter()
            threads = [threading.Thread(target=read) for _ in range(READERS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return (size - first) / max(time.perf_counter() - start, 1e-9)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


@contextlib.contextmanager
def _sample(folder: Path) -> Iterator[Path]:
    """A file of random bytes, written out to the disk; it is removed at the end of the block."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".disk-speed-") as file:
            piece = os.urandom(8 << 20)
            for _ in range(SAMPLE // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            yield Path(file.name)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}") from error
