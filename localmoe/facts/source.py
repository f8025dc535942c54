"""Bytes from anywhere: the few operations a header reader needs, and files."""

from __future__ import annotations

import os
import shlex
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol

from localmoe.errors import ModelFileError
from localmoe.text import clean_line


class ByteSource(Protocol):
    """Random access to bytes: a file, or a web server that answers byte ranges."""

    @property
    def name(self) -> str:
        """For messages; safe to show."""
        ...

    @property
    def size(self) -> int:
        """Bytes in total."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``offset``; fewer only at the end."""
        ...


class FileSource:
    """A regular file, opened read-only.

    Raises ModelFileError, with what to do, for whatever cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = clean_line(path.name) or "."
        try:
            # A pipe would wait for a writer; asked not to block, it opens and is refused below.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except ValueError as error:
            raise ModelFileError(f"not a file name: {clean_line(str(path))}") from error
        except OSError as error:
            raise _unreadable(path, error) from error
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileError(
                f"{clean_line(str(path))} is {kind}",
                hint="name a .gguf file; of a multi-part model, any part",
            )
        self.size = status.st_size

    def __enter__(self) -> FileSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        found = bytearray()
        try:  # network file systems may give less than was asked for
            while len(found) < length and (
                part := os.pread(self._fd, length - len(found), offset + len(found))
            ):
                found += part
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return bytes(found)


def _unreadable(path: Path, error: OSError) -> ModelFileError:
    hint = "check the path; `localmoe list` shows the models that are here"
    if isinstance(error, PermissionError):
        hint = f"allow it with: chmod u+r {shlex.quote(clean_line(str(path)))}"
    reason = (error.strerror or "cannot be read").lower()
    return ModelFileError(f"{clean_line(str(path))}: {reason}", hint=hint)
