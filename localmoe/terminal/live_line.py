"""A line of a terminal that changes in place and then goes away."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from localmoe.text import clean_line

if TYPE_CHECKING:
    from localmoe.terminal.console import Screen

ERASE = "\r\x1b[K"
DIM, RESET = "\x1b[2m", "\x1b[0m"
INTERVAL = 0.05  # seconds between two changes: faster ones cannot be read


class LiveLine:
    """``show`` replaces the line, ``clear`` takes it away; both do nothing without a terminal.

    If the terminal is closed, the line is dropped without an error.
    """

    def __init__(self, console: Screen) -> None:
        self._console = console
        self._shown = ""
        self._at = 0.0
        self._gone = False

    def show(self, text: str) -> None:
        """Show the end of ``text``, as much as fits, without control characters."""
        if not self._console.is_terminal or (self._shown and self._too_soon()):
            return
        line = fit_tail(clean_line(text), self._console.width - 1)
        if line != self._shown:
            self._write(f"{ERASE}{DIM}{line}{RESET}")
            self._shown = line
            self._at = time.monotonic()

    def clear(self) -> None:
        if self._shown:
            self._write(ERASE)
            self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def _too_soon(self) -> bool:
        return time.monotonic() - self._at < INTERVAL

    def _write(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._console.file.write(text)
            self._console.file.flush()
        except OSError:
            self._gone = True


def fit_tail(text: str, width: int) -> str:
    """The last part of ``text`` that fits into ``width`` terminal cells."""
    from rich.cells import cell_len  # late: the line may never be shown

    while cell_len(text) > width:
        text = text[max(1, (cell_len(text) - width) // 2) :]
    return text


def fit_head(text: str, width: int) -> str:
    """The first part of ``text`` that fits into ``width`` terminal cells."""
    from rich.cells import cell_len

    while cell_len(text) > width:
        text = text[: len(text) - max(1, (cell_len(text) - width) // 2)]
    return text
