"""An answer as plain text, for pipes and terminals that cannot move their cursor."""

from __future__ import annotations

from rich.console import Console

from localmoe.text import Sanitizer


class PlainWriter:
    """Text of a model in any pieces → ``console``: made safe for a terminal.

    A pipe or a file gets every character as it is, since no terminal acts on them there.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sanitizer = Sanitizer() if console.file.isatty() else None
        self._last = "\n"

    def feed(self, text: str) -> None:
        self._write(self._sanitizer.feed(text) if self._sanitizer else text)

    def finish(self) -> None:
        """The rest, and a newline if it has none. May be called again, and then does nothing."""
        if self._sanitizer:
            self._write(self._sanitizer.flush())
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._console.file.write(text)
            self._console.file.flush()
            self._last = text[-1]
