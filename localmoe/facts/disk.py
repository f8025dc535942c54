"""How fast a model's disk can be read."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import StorageError

_BLOCK = 4 << 20  # bytes of one request, about one expert's tensors
_MOST = 256 << 20
_SECONDS = 1.0
_READERS = 4  # requests under way at once; one alone does not keep an NVMe disk busy
_ALIGN = 4096  # bytes; what O_DIRECT wants of offsets and lengths on any common disk


@dataclass(frozen=True, slots=True)
class Span:
    """A range of bytes of a file."""

    path: Path
    offset: int
    length: int


def measure_disk(path: Path) -> float:
    """Bytes per second, reading at most 256 MiB and about 1 s from the start of a file.

    Reads past the page cache (O_DIRECT); where a file system refuses that, the file is first
    dropped from the cache. Raises StorageError if it cannot be read.
    """
    try:
        size = min(path.stat().st_size, _MOST)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    return measure_reads([Span(path, offset, _BLOCK) for offset in range(0, size, _BLOCK)])


def measure_reads(
    spans: Sequence[Span], *, seconds: float = _SECONDS, readers: int = _READERS
) -> float:
    """Bytes per second over ``spans``, in order, by several readers at once, for ``seconds``.

    Only asked-for bytes count; each request is widened to whole pages as direct I/O needs it.
    The page cache is avoided as in ``measure_disk``. Raises StorageError.
    """
    with contextlib.ExitStack() as stack:
        descriptors: dict[Path, int] = {}
        try:
            for path in dict.fromkeys(span.path for span in spans):
                descriptors[path] = _open_uncached(path)
                stack.callback(os.close, descriptors[path])
            requests = [(descriptors[s.path], s.offset, s.length) for s in spans]
            done, taken = _read_all(requests, seconds, readers)
        except OSError as error:
            name = error.filename or spans[0].path
            raise StorageError(f"cannot read {name}: {error.strerror}") from error
    if not done:
        name = str(spans[0].path) if spans else "the file"
        raise StorageError(f"{name} is empty: its disk cannot be measured with it")
    return done / max(taken, 1e-9)


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


def _read_all(
    requests: Sequence[tuple[int, int, int]], seconds: float, readers: int
) -> tuple[int, float]:
    """Bytes read and seconds taken by all readers together; a request is (file, offset, length)."""
    waiting = iter(requests)
    longest = max((length for _, _, length in requests), default=0)
    lock = threading.Lock()
    counts: list[int] = []
    errors: list[OSError] = []
    start = time.perf_counter()

    def reader() -> None:
        # Anonymous mappings are page-aligned, as O_DIRECT wants its buffers.
        with mmap.mmap(-1, _aligned(longest) + 2 * _ALIGN) as buffer, memoryview(buffer) as view:
            while time.perf_counter() - start < seconds:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                descriptor, offset, length = request
                before = offset % _ALIGN
                try:
                    with view[: _aligned(before + length)] as room:
                        got = os.preadv(descriptor, [room], offset - before)
                    counts.append(max(0, min(got - before, length)))
                except OSError as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=reader) for _ in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts), time.perf_counter() - start


def _aligned(length: int) -> int:
    return -(-length // _ALIGN) * _ALIGN
