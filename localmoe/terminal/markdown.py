"""Markdown as it arrives → pieces that can be shown now and will not change any more.

What a line is (heading, list item, code …) is known from its first characters, so the pieces of a
line are returned while it is still arriving. Two things wait: a line of code for its end, since
its colours depend on all of it, and a table for its last row, since its widths do. Line breaks are
kept, unlike in CommonMark: models mean them. The pieces do not depend on how the text was cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from localmoe.terminal.inline import InlineStream, Span

TAB = 4  # cells


@dataclass(frozen=True, slots=True)
class LineStart:
    """A line of text begins. Its spans follow, then ``LineEnd``."""

    marker: str = ""  # "•", "3." …
    indent: int = 0  # cells before the marker
    quotes: int = 0  # how deep in quotations
    heading: int = 0  # level; 0 for text


@dataclass(frozen=True, slots=True)
class LineEnd:
    pass


@dataclass(frozen=True, slots=True)
class Blank:
    """Empty lines, any number of them."""


@dataclass(frozen=True, slots=True)
class Rule:
    pass


@dataclass(frozen=True, slots=True)
class CodeStart:
    language: str
    indent: int = 0


@dataclass(frozen=True, slots=True)
class CodeLine:
    text: str


@dataclass(frozen=True, slots=True)
class CodeEnd:
    pass


@dataclass(frozen=True, slots=True)
class Table:
    """All rows, the first is the header; ``aligns`` are "left", "center" or "right"."""

    rows: tuple[tuple[str, ...], ...]
    aligns: tuple[str, ...]


Piece = LineStart | Span | LineEnd | Blank | Rule | CodeStart | CodeLine | CodeEnd | Table

_INDENT = re.compile(r"\A[ \t]+")
_FENCE = re.compile(r"(?P<indent> *)(?P<mark>`{3,}|~{3,})(?P<info>[^\n]*)")
_HEADING = re.compile(r" {0,3}(?P<marks>#{1,6})(?:[ \t]+|$)")
_RULE = re.compile(r" {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})")
_RULE_BEGUN = re.compile(r" {0,3}(?:[* \t]*|[- \t]*|[_ \t]*)")
_ITEM = re.compile(r"(?P<indent> *)(?P<mark>[-*+]|\d{1,9}[.)])(?P<gap>[ \t]+)")
_ITEM_BEGUN = re.compile(r" *(?:(?:[-*+]|\d{1,9}[.)]?)[ \t]*)?")
_TASK = re.compile(r"\[(?P<done>[ xX])\][ \t]+")
_TASK_BEGUN = re.compile(r"\[(?:[ xX](?:\][ \t]*)?)?")
_QUOTE = re.compile(r" {0,3}(?:>[ ]?)+")
_QUOTE_BEGUN = re.compile(r" {0,3}(?:>[ ]?)*")
_DELIMITER_ROW = re.compile(r"\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*")
_BULLETS = "•◦▪"


class MarkdownStream:
    """Text in any chunks → pieces that are final."""

    def __init__(self) -> None:
        self._line = ""  # the current line, as far as it is in no piece yet
        self._inline: InlineStream | None = None  # of a text line whose LineStart was returned
        self._code: _Code | None = None
        self._rows: list[str] = []  # of a table that may go on
        self._blank = False

    @property
    def held(self) -> str:
        """The part of the current line that is in no piece yet."""
        if self._inline is not None:
            return self._inline.held
        return self._line

    @property
    def in_text(self) -> bool:
        """Whether the current line is text, and its LineStart was returned."""
        return self._inline is not None

    @property
    def in_code(self) -> bool:
        return self._code is not None

    @property
    def table_rows(self) -> int:
        """Rows so far of the table that is arriving."""
        return len(self._rows) + bool(self._rows and self._line)

    def feed(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        *lines, last = text.split("\n")
        for line in lines:
            self._more(line, pieces)
            self._end_line(pieces)
        if last:
            self._more(last, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """The pieces of the rest; an open code block is closed."""
        pieces: list[Piece] = []
        if self._inline is not None or self._line:
            self._end_line(pieces)
        self._end_table(pieces)
        if self._code is not None:
            self._code = None
            pieces.append(CodeEnd())
        return pieces

    def _more(self, text: str, pieces: list[Piece]) -> None:
        """More of the current line."""
        if self._inline is not None:
            pieces += self._inline.feed(text)
            return
        self._line += text
        if self._code is None and not self._line.lstrip(" ").startswith("|"):
            self._try_text(pieces, final=False)

    def _end_line(self, pieces: list[Piece]) -> None:
        if self._inline is not None:
            pieces += self._inline.finish()
            pieces.append(LineEnd())
            self._inline = None
            return
        line, self._line = self._line, ""
        if self._code is not None:
            self._code_line(line, self._code, pieces)
        elif line.lstrip(" ").startswith("|"):
            self._rows.append(line)
        elif not line.strip():
            self._end_table(pieces)
            if not self._blank:
                pieces.append(Blank())
            self._blank = True
        else:
            self._end_table(pieces)
            self._whole_line(line, pieces)

    def _whole_line(self, line: str, pieces: list[Piece]) -> None:
        fence = _fence(line)
        if fence:
            self._blank = False
            indent = len(fence["indent"])
            self._code = _Code(fence["mark"], indent)
            pieces.append(CodeStart(fence["info"].strip(), indent))
        elif _RULE.fullmatch(line):
            self._blank = False
            pieces.append(Rule())
        else:
            self._line = line
            self._try_text(pieces, final=True)
            assert self._inline is not None
            self._end_line(pieces)

    def _try_text(self, pieces: list[Piece], *, final: bool) -> None:
        """Return the start of a text line, if it is certain what kind of line it is."""
        line = _INDENT.sub(lambda found: found.group().expandtabs(TAB), self._line, count=1)
        if not final and _undecided(line):
            return
        start, rest = _line_start(line)
        self._end_table(pieces)
        self._blank = False
        self._line = ""
        pieces.append(start)
        self._inline = InlineStream()
        pieces += self._inline.feed(rest)

    def _code_line(self, line: str, code: _Code, pieces: list[Piece]) -> None:
        stripped = line.strip()
        closes = len(stripped) >= len(code.mark) and set(stripped) == {code.mark[0]}
        if closes and len(line) - len(line.lstrip(" ")) < code.indent + 4:
            self._code = None
            pieces.append(CodeEnd())
            return
        inner = len(line) - len(line.lstrip(" "))
        pieces.append(CodeLine(line[min(inner, code.indent) :]))

    def _end_table(self, pieces: list[Piece]) -> None:
        """The rows so far become a table, or text if they have no row of dashes."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        self._blank = False
        if len(rows) > 1 and "-" in rows[1] and _DELIMITER_ROW.fullmatch(rows[1].strip()):
            pieces.append(_table(rows))
            return
        for row in rows:
            inline = InlineStream()
            pieces += [LineStart(), *inline.feed(row), *inline.finish(), LineEnd()]


@dataclass(frozen=True, slots=True)
class _Code:
    mark: str
    indent: int


def _fence(line: str) -> re.Match[str] | None:
    found = _FENCE.fullmatch(line)
    if found and found["mark"][0] == "`" and "`" in found["info"]:
        return None  # inline code
    return found


def _undecided(line: str) -> bool:
    """Whether more characters could make it another kind of line."""
    stripped = line.lstrip(" ")
    if not stripped or _RULE_BEGUN.fullmatch(line) or _QUOTE_BEGUN.fullmatch(line):
        return True
    if _ITEM_BEGUN.fullmatch(line):
        return True
    if stripped[0] in "`~" and (_fence(line) or set(stripped) == {stripped[0]}):
        return True
    if stripped[0] == "#" and len(line) - len(stripped) < 4:
        heading = _HEADING.match(line)
        return set(stripped) == {"#"} or bool(heading and heading.end() == len(line))
    item = _ITEM.match(line)
    return bool(item and _TASK_BEGUN.fullmatch(line, item.end()))


def _line_start(line: str) -> tuple[LineStart, str]:
    """The start of a line of text, and its text."""
    quote = _QUOTE.match(line)
    if quote:
        return LineStart(quotes=quote.group().count(">")), line[quote.end() :]
    heading = _HEADING.match(line)
    if heading:
        return LineStart(heading=len(heading["marks"])), line[heading.end() :]
    item = _ITEM.match(line)
    if item:
        indent = len(item["indent"])
        task = _TASK.match(line, item.end())
        if task:
            marker = "☐" if task["done"] == " " else "☑"
        elif item["mark"] in "-*+":
            marker = _BULLETS[min(indent // 2, len(_BULLETS) - 1)]
        else:
            marker = item["mark"]
        return LineStart(marker, indent), line[(task or item).end() :]
    text = line.lstrip(" ")
    return LineStart(indent=len(line) - len(text)), text


def _table(rows: list[str]) -> Table:
    aligns = tuple(
        "center" if cell[:1] == cell[-1:] == ":" else "right" if cell[-1:] == ":" else "left"
        for cell in _cells(rows[1])
    )
    header = _cells(rows[0])
    width = max(len(header), len(aligns))
    body = [header, *(_cells(row) for row in rows[2:])]
    padded = tuple((*row, *[""] * (width - len(row)))[:width] for row in body)
    return Table(padded, (*aligns, *["left"] * (width - len(aligns)))[:width])


def _cells(row: str) -> tuple[str, ...]:
    inner = row.strip().removeprefix("|")
    cells = re.split(r"(?<!\\)\|", inner)
    if len(cells) > 1 and not cells[-1].strip():
        cells.pop()
    return tuple(cell.strip().replace("\\|", "|") for cell in cells)


def code_blocks(markdown: str) -> list[str]:
    """The text of each code block."""
    blocks: list[list[str]] = []
    stream = MarkdownStream()
    for piece in (*stream.feed(markdown), *stream.finish()):
        match piece:
            case CodeStart():
                blocks.append([])
            case CodeLine(text):
                blocks[-1].append(text)
            case CodeEnd():
                pass
    return ["\n".join(lines) for lines in blocks]
