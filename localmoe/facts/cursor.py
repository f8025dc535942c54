"""A position in a byte source, read forward through a growing window."""

from __future__ import annotations

import struct
from typing import NoReturn

from localmoe.errors import ModelFileError
from localmoe.facts.source import ByteSource

FIRST_BLOCK = 1 << 16  # bytes; most headers without a vocabulary fit
LARGEST_BLOCK = 1 << 22
MAX_HEADER = 1 << 27  # bytes; the largest known headers have 20 MB

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class Cursor:
    """Reads integers and bytes one after the other; every read is checked against the size.

    The source is asked for 64 KiB, then for blocks of 0.5 MiB and an eighth of what lies behind,
    so that a remote header costs few requests and little surplus. ``what`` in each method names the
    thing for the error.
    """

    def __init__(self, source: ByteSource, position: int = 0) -> None:
        self.source = source
        self._limit = min(source.size, position + MAX_HEADER)
        self._window = b""
        self._start = position  # of the window, in the source
        self._at = 0  # position in the window

    @property
    def position(self) -> int:
        """Bytes from the start of the source."""
        return self._start + self._at

    @property
    def left(self) -> int:
        """Bytes from here to the end of the source."""
        return self.source.size - self.position

    def take(self, length: int, what: str) -> bytes:
        """The next ``length`` bytes."""
        if self._at + length > len(self._window):
            self._fill(length, what)
        start = self._at
        self._at += length
        return self._window[start : self._at]

    def u32(self, what: str) -> int:
        value: int = _U32.unpack(self.take(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = _U64.unpack(self.take(8, what))[0]
        return value

    def u64s(self, count: int, what: str) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self.take(8 * count, what))

    def skip(self, length: int, what: str) -> None:
        """Move ``length`` bytes forward; bytes outside the window are not read."""
        if self.position + length > self._limit:
            self._cut_off(what)
        self._at += length
        if self._at > len(self._window):
            self._start += self._at
            self._at = 0
            self._window = b""

    def skip_strings(self, count: int, longest: int, what: str) -> None:
        """Walk over ``count`` length-prefixed strings of at most ``longest`` bytes each."""
        length_at = _U64.unpack_from
        while count:
            if len(self._window) - self._at < 8:
                self._fill(8, what)
            window, at = self._window, self._at
            last = len(window) - 8
            while count and at <= last:
                length = length_at(window, at)[0]
                if length > longest:
                    self._at = at
                    self._cut_off(what)
                at += 8 + length
                count -= 1
            beyond = at - self._at
            self.skip(beyond, what)

    def _fill(self, length: int, what: str) -> None:
        """Move the window so that it starts here and holds at least ``length`` bytes."""
        if self.position + length > self._limit:
            self._cut_off(what)
        rest = self._window[self._at :]
        self._start += self._at
        self._at = 0
        begin = self._start + len(rest)
        block = min(begin // 8 + 8 * FIRST_BLOCK, LARGEST_BLOCK) if begin else FIRST_BLOCK
        wanted = min(max(length - len(rest), block), self.source.size - begin)
        self._window = rest + self.source.read(begin, wanted)
        if len(self._window) < length:  # it shrank while it was read
            self._cut_off(what)

    def _cut_off(self, what: str) -> NoReturn:
        size = self.source.size
        reason = (
            "the header is longer than that of any model"
            if self._limit < size
            else f"cut off, or damaged, in {what}: {size:,} bytes are there"
        )
        raise ModelFileError(f"{self.source.name}: {reason}", hint="download it again")
