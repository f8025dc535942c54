"""Text files that go along with a message: read within bounds, shown to the model as text."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localmoe.errors import UsageError
from localmoe.text import clean_line, decoded, shortened

FILE_LIMIT = 16 << 20  # bytes; several million tokens, more than any context takes


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file as it was when it was read."""

    name: str  # without folders
    text: str
    replaced: int = 0  # characters of it that stand for bytes which are no text


def read_attachment(path: str | os.PathLike[str]) -> Attachment:
    """The text file at ``path`` (``~`` is the home folder).

    For its encoding see ``localmoe.text.decoded``. Raises ``UsageError`` for what is missing, too
    large, no regular file or no text.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"{path!r:.60} is no path", hint='read_attachment("notes.txt")')
    shown = clean_line(os.fsdecode(path))
    try:
        file = Path(os.fsdecode(path)).expanduser()
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UsageError(f"{shown} is {kind}", hint="name a text file")
        with file.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UsageError(f"cannot read {shown}: {(reason or str(error)).lower()}") from error
    if len(data) > FILE_LIMIT:
        raise UsageError(f"{shown} is longer than {FILE_LIMIT >> 20} MiB")
    try:
        return Attachment(clean_line(file.name), *decoded(data))
    except ValueError as error:
        hint = "only text can be attached; UTF-16 needs its byte order mark"
        raise UsageError(f"{shown} is not text: {error}", hint=hint) from None


def attached(files: object) -> tuple[Attachment, ...]:
    """The files of a message. Raises UsageError for what is no list of attachments."""
    if isinstance(files, Sequence) and all(map(_is_whole, files)):
        return tuple(files)
    raise UsageError(
        f"files is a list of attachments, not {shortened(repr(files), 60)}",
        hint='files=[localmoe.read_attachment("notes.txt")]',
    )


def _is_whole(file: object) -> bool:
    return (
        isinstance(file, Attachment) and isinstance(file.name, str) and isinstance(file.text, str)
    )


def with_files(text: str, files: Sequence[Attachment]) -> str:
    """What the model gets: the files, each fenced and under its name, then the text."""
    return "\n\n".join((*map(_fenced, files), text)) if files else text


def _fenced(file: Attachment) -> str:
    longest = max((len(run) for run in re.findall(r"`{3,}", file.text)), default=2)
    fence = "`" * (longest + 1)
    end = "" if file.text.endswith("\n") else "\n"
    return f"{file.name}:\n{fence}\n{file.text}{end}{fence}"
