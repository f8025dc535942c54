"""Words onto lines no wider than the terminal, append-only.

``Wrapper`` returns what to write next and never moves back. A word in the middle of a line is
written when it is complete, since it may have to start the next line; at the start of a line it is
written letter by letter, since it can go nowhere else. The result does not depend on how the text
was cut.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from rich.cells import cell_len

from localmoe.terminal.inline import Style

RESET = "\x1b[0m"
_CODES = {
    Style.BOLD: "1",
    Style.ITALIC: "3",
    Style.CODE: "36",
    Style.STRIKE: "9",
    Style.LINK: "4",
    Style.ADDRESS: "2",
}
JOINER = "\u200d"  # joins emoji into one


def sgr(style: Style, base: str = "") -> str:
    """The escape sequence that starts a style; "" for plain text. ``base`` has codes like "1"."""
    codes = [base] if base else []
    codes += [_CODES[flag] for flag in style]
    return f"\x1b[{';'.join(codes)}m" if codes else ""


def styled(text: str, code: str) -> str:
    """``text`` in one style; ``code`` is that of the escape sequence, such as "2" (dim)."""
    return f"\x1b[{code}m{text}{RESET}" if text and code else text


Cell = tuple[str, str]  # text, and the escape sequence before it


class Wrapper:
    """Lines of text, each of them ``start``, any number of ``add``, ``end``.

    ``width`` returns the number of cells to use; it may change.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._indent = 0
        self._lead = ""  # what wrapped lines begin with
        self._base = ""
        self._eager = True  # the word is the first of its line, and is written letter by letter
        self._word: list[Cell] = []
        self._word_cells = 0
        self._wide = False  # the word is one wide character: a line may break on both sides
        self._spaces: list[Cell] = []

    @property
    def word(self) -> str:
        """The word that is not written yet, with the spaces before it."""
        return "".join(text for text, _ in (*self._spaces, *self._word))

    @property
    def cells_left(self) -> int:
        """Cells that are left on this line."""
        return max(0, self._width() - self._column)

    def start(self, lead: str = "", rest: str = "", base: str = "") -> str:
        """Begin a line with ``lead``, and those that it wraps to with ``rest``.

        Both are plain text of the same number of cells, shown dimmed; ``base`` has the escape codes
        of all of the text ("1" for bold).
        """
        if cell_len(lead) > self._width() // 2:  # too deep an indentation for the window
            lead, rest = lead.strip() + " " if lead.strip() else "", ""
        self._lead = _dim(rest)
        self._indent = cell_len(rest)
        self._column = cell_len(lead)
        self._base = base
        self._eager = True
        return _dim(lead)

    def add(self, text: str, style: Style = Style.PLAIN) -> str:
        """More text of the line, without newlines."""
        out: list[Cell] = []
        code = sgr(style, self._base)
        for char in text:
            if char in " \t":
                self._flush(out)
                if self._column > self._indent:  # a line does not begin with a space
                    self._eager = False
                    self._spaces.append((" ", code))
            else:
                self._letter(char, code, out)
        return _joined(out)

    def end(self) -> str:
        """The end of the line, with its newline."""
        out: list[Cell] = []
        self._flush(out)
        self._spaces.clear()
        self._column = 0
        return _joined(out) + "\n"

    def _letter(self, char: str, code: str, out: list[Cell]) -> None:
        cells = cell_len(char)
        joined = cells == 0 or bool(self._word and self._word[-1][0] == JOINER)
        if self._word and not joined and (self._wide or cells == 2):
            self._flush(out)
        self._wide = cells == 2 or (joined and self._wide)
        self._word.append((char, code))
        self._word_cells += 0 if joined else cells
        if not self._eager and len(self._spaces) + self._word_cells > self.cells_left:
            self._break(out)
        if self._eager:
            self._write(out)
            self._eager = not self._wide

    def _flush(self, out: list[Cell]) -> None:
        """Write the current word; it fits on this line, or ``_letter`` had moved it to the next."""
        if self._word:
            self._write(out)
            self._eager = False
        self._wide = False

    def _write(self, out: list[Cell]) -> None:
        """Write the waiting spaces and letters; a word longer than a line is broken."""
        waiting = (*self._spaces, *self._word)
        cells_of = [cell_len(text) for text, _ in waiting]
        fits = sum(cells_of) <= self.cells_left
        self._spaces.clear()
        self._word, self._word_cells = [], 0
        for (text, code), cells in zip(waiting, cells_of, strict=True):
            if not fits and cells > self.cells_left and self._column > self._indent:
                self._break(out)
            out.append((text, code))
            self._column += cells

    def _break(self, out: list[Cell]) -> None:
        self._spaces.clear()
        out += [("\n", ""), (self._lead, "")]
        self._column = self._indent
        self._eager = True


def _dim(text: str) -> str:
    return styled(text, "2") if text.strip() else text


def _joined(cells: list[Cell]) -> str:
    """One escape sequence for each run of one style."""
    runs = groupby(cells, key=lambda cell: cell[1])
    texts = ((code, "".join(text for text, _ in run)) for code, run in runs)
    return "".join(f"{code}{text}{RESET}" if code else text for code, text in texts)
