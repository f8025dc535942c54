"""What a served file consists of: bytes in memory, a file on disk, or bytes made up as they go."""

from __future__ import annotations

import hashlib
import random
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

PERIOD = 1_048_583  # bytes; a prime, so that data shifted by any round number is other data
HASHED_LIMIT = 64 << 20  # bytes; hashing more takes too long for a test that never reads them all


class Content(Protocol):
    """The bytes of one file."""

    @property
    def size(self) -> int:
        """Bytes in total."""
        ...

    @property
    def sha256(self) -> str:
        """What Git LFS calls the file."""
        ...

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Up to ``length`` bytes from ``offset``; fewer, but not none, before the end."""
        ...


class Blob:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self._data).hexdigest()

    def read(self, offset: int, length: int) -> memoryview:
        return self._data[offset : offset + length]


class OnDisk:
    """A file; the server hands it to the kernel to send."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def read(self, offset: int, length: int) -> bytes:
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


class Generated:
    """A header followed by made-up data, ``size`` bytes in all, however large; no memory taken.

    The same header, size and seed are always the same bytes. Above 64 MiB the sha256 is made up
    too: it names the file, but nothing could ever be checked against it.
    """

    def __init__(self, size: int, header: bytes = b"", seed: int = 0) -> None:
        if len(header) > size:
            raise ValueError("the header is longer than the file")
        self.size = size
        self._header = memoryview(header)
        self._seed = seed

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        if self.size > HASHED_LIMIT:
            digest.update(self._header)
            digest.update(f"{self.size}/{self._seed}".encode())
            return digest.hexdigest()
        position = 0
        while position < self.size:
            chunk = self.read(position, PERIOD)
            digest.update(chunk)
            position += len(chunk)
        return digest.hexdigest()

    def read(self, offset: int, length: int) -> memoryview:
        length = min(length, self.size - offset)
        if offset < len(self._header):
            return self._header[offset : offset + length]
        at = offset % PERIOD
        return _pattern(self._seed)[at : at + length]


class Flipped:
    """The same as another content, but for one byte: what a bad disk or cable makes of it.

    It claims to be the other content.
    """

    def __init__(self, content: Content, at: int) -> None:
        self._content = content
        self._at = at
        self.size = content.size
        self.sha256 = content.sha256

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray(self._content.read(offset, length))
        if offset <= self._at < offset + len(data):
            data[self._at - offset] ^= 0xFF
        return bytes(data)


def whole(content: Content) -> bytes:
    """All bytes, for comparison."""
    pieces = []
    position = 0
    while position < content.size:
        piece = bytes(content.read(position, content.size - position))
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


@lru_cache(maxsize=8)
def _pattern(seed: int) -> memoryview:
    return memoryview(random.Random(seed).randbytes(PERIOD))
