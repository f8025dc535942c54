"""The input line of a window that gets narrower: what the terminal has folded is erased too.

prompt_toolkit goes up by the rows that it has drawn. Most terminals, tmux among them, have folded
those into more rows by then, and what is above would stay as ghosts of the input line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from prompt_toolkit.application import Application


def erase_folded(app: Application[str]) -> None:
    """Make ``app`` go up further before it draws a narrower window anew."""
    usual = app._on_resize

    def resized() -> None:
        screen = app.renderer.last_rendered_screen
        if screen is not None and app.is_running and folds_lines(os.environ):
            at = screen.get_cursor_position(app.layout.current_window)
            rows = [row_length(screen.data_buffer[y]) for y in range(at.y)]
            width = app.output.get_size().columns
            if more := folded_rows(rows, at.x, width):
                app.output.cursor_up(more)
        usual()

    app._on_resize = resized  # type: ignore[method-assign]


def folds_lines(environment: Mapping[str, str]) -> bool:
    """Whether the terminal folds old lines anew; xterm, the console and GNU screen cut them."""
    cut = environment.get("TERM") == "linux" or {"XTERM_VERSION", "STY"} & environment.keys()
    return not cut or "TMUX" in environment


def row_length(row: Any) -> int:
    """Cells of a drawn row up to its last character that is no blank."""
    return max((x + 1 for x, cell in row.items() if cell.char.strip()), default=0)


def folded_rows(lengths: Sequence[int], column: int, width: int) -> int:
    """How many rows more there are above the cursor, which is in ``column`` of a further row, when
    rows of ``lengths`` cells are folded to ``width``.
    """
    width = max(1, width)
    return sum(max(0, length - 1) // width for length in lengths) + column // width
