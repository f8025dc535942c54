"""Consoles of rich that fit where they write: a terminal, a dumb one, a pipe.

``rich`` is imported on first use only, so that commands which print nothing styled start fast.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TextIO

PIPE_WIDTH = 1000  # columns: one fact stays on one line, for grep


@dataclass(frozen=True, slots=True)
class Pipe:
    """A stream that is no terminal, for plain text: as much of a console as that needs."""

    file: IO[str]
    is_terminal: bool = False
    width: int = PIPE_WIDTH


if TYPE_CHECKING:
    from rich.console import Console

    Screen = Console | Pipe  # where plain text goes


def make_console(stream: TextIO) -> Console:
    """A console that interprets no markup, and writes no escape code unless a terminal wants it.

    ``NO_COLOR`` (https://no-color.org) drops every escape code, not the colours alone. Lines are
    as wide as the terminal all the same.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            """Raise: rich would end the program and close stdout, even if stderr is what broke."""
            raise BrokenPipeError(32, "Broken pipe")

    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    if (columns := os.environ.get("COLUMNS", "")).isdigit() and int(columns):
        environment["COLUMNS"] = columns  # rich would write nothing on 0 columns
    styled = stream.isatty() and not os.environ.get("NO_COLOR") and not is_dumb()
    return PlainConsole(
        file=stream,
        force_terminal=styled,
        color_system="auto" if styled else None,
        width=None if styled or "COLUMNS" in environment else _width(stream),
        _environ=environment,
        markup=False,
        emoji=False,
        highlight=False,
    )


def _width(stream: TextIO) -> int | None:
    """Columns of a stream that is no terminal; None: rich asks the terminal.

    Without this rich would take the width of the terminal that stdin is.
    """
    return None if stream.isatty() else PIPE_WIDTH


def is_dumb() -> bool:
    """Whether the terminal cannot move its cursor, by ``TERM``."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")
