"""What was typed in earlier chats: one private file of JSON strings, one per line, kept short."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit.history import History

from localmoe import storage
from localmoe.errors import StorageError

KEPT = 256 << 10  # bytes at the end of the file that are read
LIMIT = 2 * KEPT  # bytes; a longer file is cut to KEPT


def history_file() -> Path:
    return storage.state_dir() / "history.jsonl"


class PrivateHistory(History):
    """The history of prompt_toolkit in a private file; empty if that cannot be read or written."""

    def __init__(self, path: Path | None = None) -> None:
        super().__init__()
        self._path = path or history_file()

    def load_history_strings(self) -> Iterable[str]:
        """Newest first."""
        for line in reversed(self._lines()):
            try:
                text = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(text, str):
                yield text

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError, StorageError):
            storage.private_dir(self._path.parent)
            flags = os.O_APPEND | os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            file = os.open(self._path, flags, 0o600)
            try:
                os.write(file, json.dumps(string).encode() + b"\n")
                size = os.fstat(file).st_size
            finally:
                os.close(file)
            if size > LIMIT:
                storage.atomic_write(self._path, b"\n".join((*self._lines(), b"")))

    def _lines(self) -> list[bytes]:
        """The last lines of the file, only whole ones."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - KEPT))
                data = file.read()
        except OSError:
            return []
        lines = data.split(b"\n")
        return lines[1:-1] if size > KEPT else lines[:-1]
