"""stdin, read in the background."""

from __future__ import annotations

import os
import sys
import threading

from localmoe.errors import UsageError
from localmoe.text import decoded

STDIN_LIMIT = 64 << 20  # bytes; far more than any context takes
SILENT_STDIN = 5.0  # seconds to wait for an open pipe that sends nothing


class PipedInput:
    """Reads stdin to its end in the background.

    It reads the file descriptor itself: an interpreter that ends while a thread waits in a Python
    stream crashes.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = sys.stdin.fileno() if fd is None else fd
        self._chunks: list[bytes] = []
        self._size = 0
        self._error: OSError | None = None
        self._first = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def text(self, patience: float | None = None) -> str | None:
        """All of stdin; None if nothing came within ``patience`` seconds.

        Once something has come, it waits for the end. Raises UsageError for bytes that are not
        text, or too many.
        """
        if not self._first.wait(patience):
            return None
        self._ended.wait()
        if self._error is not None:
            raise self._error
        if self._size > STDIN_LIMIT:
            raise UsageError(f"stdin is longer than {STDIN_LIMIT >> 20} MiB")
        data = b"".join(self._chunks)
        try:
            return decoded(data)[0]
        except ValueError as error:
            raise UsageError(
                f"stdin is not text: {error}", hint="pipe text, or none: < /dev/null"
            ) from None

    def _read(self) -> None:
        try:
            while self._size <= STDIN_LIMIT:
                chunk = os.read(self._fd, 1 << 16)
                if not chunk:
                    break
                self._chunks.append(chunk)
                self._size += len(chunk)
                self._first.set()
        except OSError as error:
            self._error = error
        finally:
            self._ended.set()
            self._first.set()
