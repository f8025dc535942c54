"""Files named for output: they must not overwrite an input, nor a file of another kind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import StorageError, UsageError
from localmoe.text import clean_line

HEAD = 4096  # bytes that are read to recognise a file's kind


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file that localmoe writes, recognised by its first bytes."""

    name: str
    matches: Callable[[bytes], bool]


def _is_trace(head: bytes) -> bool:
    from localmoe.routing.recorder import MAGIC  # late: NumPy, which a run need not wait for

    return head.startswith(MAGIC)


def _is_page(head: bytes) -> bool:
    from localmoe.routing.report import BEGINNING

    return head.startswith(BEGINNING)


TRACE = Kind("routing trace", _is_trace)
PAGE = Kind("page of `localmoe experts report`", _is_page)
PICTURE = Kind("PNG picture", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"))
RUN_LOG = Kind("log of `localmoe bench`", lambda head: head.startswith(b'{"job":'))


def check_output(path: Path, kind: Kind, inputs: Iterable[Path]) -> None:
    """Raise UsageError if writing ``path`` would destroy something.

    That is one of ``inputs`` (by whatever name or link), or a file that is not of ``kind``. Empty
    files, devices and pipes may be written to. Raises StorageError for a file that cannot be read.
    """
    shown = clean_line(str(path))
    another = "give another name"
    for other in inputs:
        if _same(path, other):
            raise UsageError(f"{shown} is read by this command: it would be lost", hint=another)
    try:
        if path.is_dir():
            raise UsageError(f"{shown} is a folder", hint="give the name of a file")
        if not path.is_file() or not path.stat().st_size:
            return
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"{shown}: {reason}", hint=another) from error
    if not kind.matches(head):
        raise UsageError(
            f"{shown} is there already, and is no {kind.name}",
            hint=f"{another}, or delete it first",
        )


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them does not exist: compare the paths
        return os.path.realpath(one) == os.path.realpath(other)
