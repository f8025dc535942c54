"""Emphasis, code, links: one line of markdown → styled spans, while the line is still arriving.

A span is returned as soon as nothing that may follow can change it. A mark whose partner does not
come within ``LIMIT`` characters is plain text. So the spans, joined where their style is equal, do
not depend on how the line was cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Flag, auto

LIMIT = 300  # characters between a mark and its partner


class Style(Flag):
    PLAIN = 0
    BOLD = auto()
    ITALIC = auto()
    CODE = auto()
    STRIKE = auto()
    LINK = auto()  # the text of a link
    ADDRESS = auto()  # its address: always shown, so that the text cannot hide it


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    style: Style = Style.PLAIN


_SPECIAL = re.compile(r"[\\`*_~\[!]")
_EMPHASIS = {
    "*": Style.ITALIC,
    "_": Style.ITALIC,
    "**": Style.BOLD,
    "__": Style.BOLD,
    "***": Style.BOLD | Style.ITALIC,
    "___": Style.BOLD | Style.ITALIC,
    "~~": Style.STRIKE,
}
_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_LINK = re.compile(
    r"!?\[(?P<text>(?:[^\[\]\\]|\\.){0,300}?)\]"
    r"\((?P<url>(?:[^()\s]|\([^()\s]*\)){0,1000}?)(?:\s+\"[^\"]{0,200}\")?\)"
)
_LINK_BEGUN = re.compile(
    r"!?(?:\[(?:[^\[\]\\]|\\.){0,300}\\?"
    r"(?:\](?:\((?:[^()\s]|\([^()\s]*\)){0,1000}(?:\([^()\s]*)?(?:\s+(?:\"[^\"]{0,200}\"?)?)?)?)?)?\Z"
)


class InlineStream:
    """The text of one line, in any pieces → spans."""

    def __init__(self, style: Style = Style.PLAIN) -> None:
        self._style = style
        self._held = ""
        self._before = ""  # the last character of what was returned

    @property
    def held(self) -> str:
        """Text that is not in any span yet, since its style is still open."""
        return self._held

    def feed(self, text: str) -> list[Span]:
        self._held += text
        return self._scan(final=False)

    def finish(self) -> list[Span]:
        """The rest of the line. Afterwards the stream is as new."""
        spans = self._scan(final=True)
        self._held = self._before = ""
        return spans

    def _scan(self, *, final: bool) -> list[Span]:
        text, at, spans = self._held, 0, list[Span]()
        while at < len(text):
            found = _SPECIAL.search(text, at)
            end = found.start() if found else len(text)
            if end > at:
                spans.append(Span(text[at:end], self._style))
                at = end
                continue
            before = text[at - 1] if at else self._before
            step = self._mark(text, at, before, final)
            if step is None:
                break
            more, at = step
            spans += more
        if at:
            self._before = text[at - 1]
        self._held = text[at:]
        return spans

    def _mark(self, text: str, at: int, before: str, final: bool) -> tuple[list[Span], int] | None:
        """The spans that the mark at ``at`` begins, and their end; None while that is open."""
        mark = text[at]
        if mark == "\\":
            return self._escape(text, at, final)
        if mark == "`":
            return self._code(text, at, final)
        if mark in "[!":
            return self._link(text, at, final)
        return self._emphasis(text, at, before, final)

    def _literal(self, text: str, at: int, end: int) -> tuple[list[Span], int]:
        return [Span(text[at:end], self._style)], end

    def _escape(self, text: str, at: int, final: bool) -> tuple[list[Span], int] | None:
        if at + 1 == len(text):
            return self._literal(text, at, at + 1) if final else None
        if text[at + 1] in _PUNCTUATION:
            return [Span(text[at + 1], self._style)], at + 2
        return self._literal(text, at, at + 1)

    def _code(self, text: str, at: int, final: bool) -> tuple[list[Span], int] | None:
        begin = at + _run(text, at)
        close = _closing_ticks(text, at, final)
        if close is None:
            return None
        if close < 0:
            return self._literal(text, at, begin)
        inside = text[begin:close]
        if inside.strip() and inside[0] == inside[-1] == " ":
            inside = inside[1:-1]
        return [Span(inside, self._style | Style.CODE)], close + begin - at

    def _link(self, text: str, at: int, final: bool) -> tuple[list[Span], int] | None:
        found = _LINK.match(text, at)
        if found:
            label, url = found["text"], found["url"]
            spans = [Span(s.text, s.style | Style.LINK) for s in parse(label, self._style)]
            if url and url != label:
                space = " " if label else ""
                spans.append(Span(f"{space}({url})", self._style | Style.ADDRESS))
            return spans, found.end()
        if not final and _LINK_BEGUN.match(text, at):
            return None
        return self._literal(text, at, at + 1)

    def _emphasis(
        self, text: str, at: int, before: str, final: bool
    ) -> tuple[list[Span], int] | None:
        length = _run(text, at)
        begin = at + length
        if begin == len(text) and not final:
            return None
        mark = text[at:begin]
        style = _EMPHASIS.get(mark)
        opens = (
            style is not None
            and begin < len(text)
            and not text[begin].isspace()
            and not _is_word(before)
        )
        if not opens:
            return self._literal(text, at, begin)
        assert style is not None
        close = self._partner(text, begin, mark, final)
        if close is None:
            return None
        if close < 0:
            return self._literal(text, at, begin)
        return parse(text[begin:close], self._style | style), close + length

    def _partner(self, text: str, begin: int, mark: str, final: bool) -> int | None:
        """The position of the closing mark; -1: there is none; None: it may still come."""
        at = begin
        while at < len(text) and at - begin <= LIMIT:
            char = text[at]
            if char == "\\":
                at += 2
            elif char == "`":
                run = _run(text, at)
                close = _closing_ticks(text, at, final)
                if close is None:
                    return None
                at = max(at, close) + run
            elif char == mark[0]:
                run = _run(text, at)
                after = at + run
                if after == len(text) and not final:
                    return None
                fits = run == len(mark) or (run == 3 and len(mark) < 3)
                goes_on = len(mark) == 1 and after < len(text) and _is_word(text[after])
                if fits and not goes_on and not text[at - 1].isspace():
                    return after - len(mark)
                at = after
            else:
                at += 1
        return None if not final and len(text) - begin <= LIMIT else -1


def parse(text: str, style: Style = Style.PLAIN) -> list[Span]:
    """The spans of a whole line."""
    stream = InlineStream(style)
    return stream.feed(text) + stream.finish()


def _closing_ticks(text: str, at: int, final: bool) -> int | None:
    """Where the code begun by the backticks at ``at`` ends; -1: nowhere; None: it may still end."""
    length = _run(text, at)
    begin = position = at + length
    if begin == len(text) and not final:
        return None
    while 0 <= (position := text.find("`", position)) <= begin + LIMIT:
        run = _run(text, position)
        if position + run == len(text) and not final:
            return None
        if run == length:
            return position
        position += run
    return None if not final and len(text) - begin <= LIMIT else -1


def _is_word(char: str) -> bool:
    """Whether it is an ASCII letter or digit: other scripts may have marks between letters."""
    return char.isascii() and char.isalnum()


def _run(text: str, at: int) -> int:
    """How many times the character at ``at`` follows itself, that one included."""
    end = at
    while end < len(text) and text[end] == text[at]:
        end += 1
    return end - at
