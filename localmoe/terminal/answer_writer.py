"""An answer on a terminal: markdown that is written once, from left to right, and stays.

The unfinished word or line of code is shown early, as the ``tail``: right of the cursor, on the
cursor's line, and replaced when more has come. Nothing above that line is ever written again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.syntax import Syntax
from rich.table import Table as Grid
from rich.text import Text

from localmoe.terminal.inline import Span, Style, parse
from localmoe.terminal.live_line import fit_head, fit_tail
from localmoe.terminal.markdown import (
    Blank,
    CodeEnd,
    CodeLine,
    CodeStart,
    LineEnd,
    LineStart,
    MarkdownStream,
    Piece,
    Rule,
    Table,
)
from localmoe.terminal.wrap import Wrapper, styled
from localmoe.text import Sanitizer, counted

CODE_THEME = "ansi_dark"  # the terminal's own colours
HIGHLIGHT_LINES = 400  # later lines of code have no colours: a line's cost grows with its number
RULE_WIDTH = 48  # cells, at most
SAVE, RESTORE = "\x1b7", "\x1b8\x1b[K"  # the cursor; going back also erases to the line's end
RICH = {
    Style.BOLD: "bold",
    Style.ITALIC: "italic",
    Style.CODE: "cyan",
    Style.STRIKE: "strike",
    Style.LINK: "underline",
    Style.ADDRESS: "dim",
}
LONG_WORD = 16  # cells; longer words may be broken in a column of a table
COLUMN_GAP = "   "
BREAK = re.compile(r"\s*<br\s*/?>\s*", re.IGNORECASE)
JUSTIFY: dict[str, JustifyMethod] = {"left": "left", "center": "center", "right": "right"}
HEADINGS = {1: "1;4"}  # escape codes by level; the others are bold


class AnswerWriter:
    """Text of a model in any pieces → the terminal. ``console`` must be a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sanitizer = Sanitizer()
        self._stream = MarkdownStream()
        self._wrapper = Wrapper(self._width)
        self._code: list[str] = []
        self._language = ""
        self._code_indent = ""
        self._begun = False
        self._blank_due = False
        self._shown_tail = ""
        self._shown_in = console.size  # the window when it was shown

    def feed(self, text: str) -> None:
        self._put(self._stream.feed(self._sanitizer.feed(text)))

    def finish(self) -> None:
        """Write the rest, and end the last line. May be called again, and then does nothing."""
        rest = self._stream.feed(self._sanitizer.flush())
        self._put([*rest, *self._stream.finish()])

    def _width(self) -> int:
        return max(10, self._console.width - 1)  # the last column would wrap by itself

    def _put(self, pieces: Sequence[Piece]) -> None:
        """One write for all that is new, so that nothing flickers."""
        shown = "".join(map(self._show, pieces))
        if self._stream.table_rows or self._stream.held.strip():
            shown += self._due()  # the next block has begun, so the blank line before it is due
        text = self._news(shown, self._tail())
        if text:
            self._console.file.write(text)
            self._console.file.flush()

    def _news(self, shown: str, tail: str) -> str:
        """What to write so that ``shown`` and then ``tail`` stand where the old tail begins.

        Often the old tail is continued as it is. After a change of the window's size its place is
        unknown, so it stays.
        """
        old, resized = self._shown_tail, self._shown_in != self._console.size
        if old and resized and not shown:
            return ""
        self._shown_tail, self._shown_in = tail, self._console.size
        if not shown and tail and tail.startswith(old):
            return tail[len(old) :] if old else SAVE + tail
        if shown.startswith(old):
            begin = shown[len(old) :]
        else:
            begin = f"\n{shown}" if resized else RESTORE + shown
        return begin + (SAVE + tail if tail else "")

    def _tail(self) -> str:
        """The unfinished text, as much of it as fits on this line."""
        stream = self._stream
        if stream.table_rows:
            return styled(f"table · {counted(stream.table_rows, 'row')}", "2")
        if stream.in_code:
            return fit_tail(self._code_indent + stream.held.expandtabs(8), self._width())
        if not stream.in_text:
            return fit_head(stream.held.strip(), self._width())
        return fit_head(self._wrapper.word + stream.held, self._wrapper.cells_left)

    def _due(self) -> str:
        """The blank line that is written once something follows it, else ""."""
        blank = "\n" if self._blank_due else ""
        self._blank_due = False
        return blank

    def _show(self, piece: Piece) -> str:
        if isinstance(piece, Span):
            return self._wrapper.add(piece.text, piece.style)
        if isinstance(piece, LineEnd):
            return self._wrapper.end()
        if isinstance(piece, CodeLine):
            return self._code_line(piece.text)
        if isinstance(piece, Blank):
            self._blank_due = self._begun
            return ""
        self._begun = True
        return self._due() + self._block(piece)

    def _block(self, piece: LineStart | Rule | CodeStart | CodeEnd | Table) -> str:
        match piece:
            case LineStart():
                return self._line_start(piece)
            case Rule():
                return self._rule("")
            case CodeStart(language, indent):
                self._code.clear()
                self._language = language.split()[0] if language else ""
                self._code_indent = " " * min(indent, self._width() // 2)
                return self._rule(self._language)
            case CodeEnd():
                return self._rule("")
            case Table():
                wide = _least_width(piece) <= self._width()
                return self._rendered(_grid(piece) if wide else _listed(piece, self._width()))

    def _line_start(self, line: LineStart) -> str:
        quotes = "▌ " * line.quotes
        indent = " " * line.indent
        marker = f"{line.marker} " if line.marker else ""
        base = HEADINGS.get(line.heading, "1") if line.heading else ""
        lead = quotes + indent + marker
        return self._wrapper.start(lead, quotes + indent + " " * len(marker), base)

    def _rule(self, title: str) -> str:
        width = min(self._width(), RULE_WIDTH)
        text = f"── {fit_head(title, width - 8)} " if title else ""
        return styled(text + "─" * (width - len(text)), "2") + "\n"

    def _code_line(self, line: str) -> str:
        """A line of code; its colours depend on the lines before it."""
        self._code.append(line)
        if not self._language or len(self._code) > HIGHLIGHT_LINES:
            return f"{self._code_indent}{line}\n"
        coloured = Syntax(
            "", self._language, theme=CODE_THEME, background_color="default"
        ).highlight("\n".join(self._code))
        lines = coloured.split("\n", allow_blank=True)
        number = len(self._code) - 1
        text = lines[number] if number < len(lines) else Text(line)
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True)
        return f"{self._code_indent}{captured.get()}\n"

    def _rendered(self, grid: Grid) -> str:
        with self._console.capture() as captured:
            self._console.print(grid, width=self._width())
        lines = captured.get().split("\n")
        return "".join(f"{line.rstrip()}\n" for line in lines if line.strip())


def _grid(table: Table) -> Grid:
    header, *rows = table.rows
    grid = Grid(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        header_style="bold",
        border_style="dim",
    )
    for title, align in zip(header, table.aligns, strict=True):
        grid.add_column(_cell(title), justify=JUSTIFY[align], overflow="fold")
    for row in rows:
        grid.add_row(*map(_cell, row))
    return grid


def _least_width(table: Table) -> int:
    """Cells that the columns need so that no ordinary word is broken."""
    words = (
        max((min(cell_len(word), LONG_WORD) for cell in column for word in cell.split()), default=1)
        for column in zip(*table.rows, strict=True)
    )
    return sum(words) + len(COLUMN_GAP) * (len(table.aligns) - 1)


def _listed(table: Table, width: int) -> Grid:
    """The rows one below the other, for a window that is too narrow for the columns."""
    header, *rows = table.rows
    grid = Grid.grid(padding=(0, 1, 0, 0))
    grid.add_column(style="bold", overflow="fold", max_width=max(4, width // 3))
    grid.add_column(overflow="fold")
    for number, row in enumerate(rows):
        if number:
            grid.add_row(Text("───", "dim"), "")
        for title, cell in zip(header, row, strict=True):
            grid.add_row(_cell(title), _cell(cell))
    return grid


def _cell(markdown: str) -> Text:
    """A cell of a table; models write ``<br>`` there for a new line."""
    return rich_text(BREAK.sub("\n", markdown))


def rich_text(markdown: str) -> Text:
    """One line of markdown as rich text."""
    text = Text()
    for span in parse(markdown):
        text.append(span.text, " ".join(RICH[flag] for flag in span.style))
    return text


class ReasoningWriter:
    """Reasoning as it arrives: dimmed, behind a bar, never written again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._sanitizer = Sanitizer()
        self._wrapper = Wrapper(lambda: max(10, console.width - 1))
        self._open = False

    def feed(self, text: str) -> None:
        self._put(self._sanitizer.feed(text))

    def finish(self) -> None:
        self._put(self._sanitizer.flush())
        if self._open:
            self._open = False
            self._write(self._wrapper.end())

    def _put(self, text: str) -> None:
        out = []
        for number, line in enumerate(text.split("\n")):
            if number:
                out.append(self._begin() + self._wrapper.end())
                self._open = False
            if line:
                out.append(self._begin() + self._wrapper.add(line))
        self._write("".join(out))

    def _begin(self) -> str:
        if self._open:
            return ""
        self._open = True
        return self._wrapper.start("│ ", "│ ", "2")

    def _write(self, text: str) -> None:
        if text:
            self._console.file.write(text)
            self._console.file.flush()
