"""Chats on disk: one file per conversation, one JSON line per change, private, only ever appended.

A line that a crash cut off, or in which a letter was changed, is noticed (``log_lines``) and left
out. The next line begins on a line of its own. Files are 0600 below folders that are 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from localmoe import kept, storage
from localmoe.chat.log_lines import decode, encode
from localmoe.chat.session import Change, Session
from localmoe.errors import StorageError, UsageError
from localmoe.text import clean_line, did_you_mean

SUFFIX = ".jsonl"
READ_LIMIT = 256 << 20  # bytes of one conversation
AUTOMATIC = re.compile(r"\d{4}-\d\d-\d\d-\d{4}(?:-\d+)?")  # the names that ``begin`` gives
_NAME = re.compile(r"[\w][\w.+-]{0,79}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversation in a list."""

    name: str
    modified: float  # seconds since the epoch
    turns: int
    title: str  # the first line of the first question
    model: str


class Store:
    """The conversations in one folder, which need not exist yet."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or storage.data_dir() / "sessions"

    def names(self) -> list[str]:
        """Names of all conversations, the newest first."""
        dated = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):
                status = path.stat()
                if status.st_size:  # else it is only claimed: nothing was said yet
                    dated.append((status.st_mtime, path.name.removesuffix(SUFFIX)))
        return [name for _, name in sorted(dated, reverse=True)]

    def entries(self, limit: int = 30) -> list[Entry]:
        """The newest conversations; what cannot be read is left out."""
        found = []
        for name in self.names()[:limit]:
            with contextlib.suppress(StorageError, OSError):
                path = self.path(name)
                session, _ = read(path)
                first = session.turns[0].question.content if session.turns else ""
                model = session.model.name if session.model else ""
                title = clean_line(first.strip().partition("\n")[0])
                turns = len(session.turns)
                found.append(Entry(name, path.stat().st_mtime, turns, title, model))
        return found

    def latest(self) -> str:
        """Name of the newest conversation. Raises ``UsageError`` when there is none."""
        names = self.names()
        if not names:
            raise UsageError("there is no earlier conversation", hint="localmoe chat begins one")
        return names[0]

    def path(self, name: str) -> Path:
        """The file of a conversation. Raises ``UsageError`` for a name that cannot be one."""
        if not _NAME.fullmatch(name):
            raise UsageError(
                f'"{clean_line(name)}" cannot be the name of a conversation',
                hint="letters, digits, . _ + -, at most 80 of them",
            )
        return self.folder / f"{name}{SUFFIX}"

    def exists(self, name: str) -> bool:
        """Whether something was said in a conversation of that name."""
        path = self.path(name)
        with contextlib.suppress(OSError):
            return path.stat().st_size > 0
        return False

    def open(self, name: str) -> Log:
        """Open a conversation, or begin one of that name; no other process can until it is closed.

        Raises ``UsageError`` when another process has it open, ``StorageError``.
        """
        return Log(name, self.path(name))

    def begin(self) -> Log:
        """A new conversation with a name that was free: the time, to the minute."""
        stem = time.strftime("%Y-%m-%d-%H%M")
        for number in itertools.count(1):
            name = stem if number == 1 else f"{stem}-{number}"
            if not self.path(name).exists():
                with contextlib.suppress(UsageError):  # taken by another process meanwhile
                    log = self.open(name)
                    if not log.begun:
                        return log
                    log.close()
        raise AssertionError("unreachable")

    def delete(self, name: str) -> None:
        """Delete a conversation and its context. Raises ``UsageError``: not there, or in use."""
        if not self.exists(name):
            raise self.unknown(name)
        path = self.path(name)
        file = _claim(path, name)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot delete {name}: {error.strerror}") from error
        finally:
            os.close(file)
        from localmoe.engine import kv_store  # late: OpenSSL comes with it

        kv_store.forget(name)

    def unknown(self, name: str) -> UsageError:
        """The error for a name that no conversation has, with the nearest."""
        import difflib

        near = difflib.get_close_matches(name, self.names(), n=1, cutoff=0.5)
        return UsageError(
            f'no conversation "{clean_line(name)}".{did_you_mean(near)}',
            hint="/sessions lists them",
        )


class Log:
    """One open conversation: its session, and the file to which its changes are appended.

    The name is claimed at once, by an empty file, so that no other process begins a conversation of
    the same name. A chat in which nothing was said takes that with it when it is closed.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.session = Session()
        self.damaged = 0  # lines that could not be read
        self._file: int | None = None
        try:
            self._file = _claim(path, name)
        except StorageError:
            if path.exists():
                raise
            return  # a chat can be read where none can be written; the first ``write`` tells
        try:
            self.session, self.damaged = read(path)
        except StorageError:
            self.close()
            raise

    @property
    def begun(self) -> bool:
        """Whether anything was written."""
        return self._file is not None and os.fstat(self._file).st_size > 0

    def write(self, change: Change) -> None:
        """Append one line. Raises ``StorageError``, or ``UsageError`` when the name was taken."""
        line = encode(change) + b"\n"
        try:
            if self._file is None:
                self._file = _claim(self.path, self.name)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                line = b"\n" + line  # a crash cut the last line off
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, size)
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                if not self.begun and _is_file_of(self.path, self._file):
                    self.path.unlink()
            os.close(self._file)
            self._file = None


def _claim(path: Path, name: str) -> int:
    """The file of a conversation, for one process at a time; made if there is none.

    Raises UsageError when another process has it, StorageError.
    """
    while True:
        try:
            storage.private_dir(path.parent)
            file = os.open(path, os.O_APPEND | os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise UsageError(
                f"the conversation {name} is open in another localmoe",
                hint="--session NAME takes another one",
            ) from None
        except OSError:  # a file system without locks
            pass
        if _is_file_of(path, file):
            return file
        os.close(file)  # whoever had it removed it before we had the lock


def _is_file_of(path: Path, file: int) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def read(path: Path) -> tuple[Session, int]:
    """A conversation, and how many of its lines could not be read. Raises ``StorageError``."""
    try:
        if path.stat().st_size > READ_LIMIT:
            raise StorageError(f"{path} is longer than {READ_LIMIT >> 20} MiB")
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    damaged = 0

    def changes() -> Iterator[Change]:
        nonlocal damaged
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            try:
                yield decode(line)
            except kept.DAMAGED:
                damaged += 1

    session = Session(changes=changes())
    return session, damaged
