"""Cut a stream of markdown into blocks that will not change any more.

A block can be shown as soon as it is here, and never has to be shown again: paragraphs, tables
and quotes end at a blank line, list items where the next begins, headings and lines of code at
their own end. All blocks together are the text, character for character.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    TEXT = "text"  # markdown that stands alone: a paragraph, heading, table, list item …
    FENCE = "fence"  # the line that opens or closes a code block
    CODE = "code"  # one line inside a code block


@dataclass(frozen=True, slots=True)
class Block:
    kind: Kind
    text: str  # with its newlines
    language: str = ""  # of FENCE and CODE, as written after the fence


_FENCE = re.compile(r" {0,3}(?P<mark>`{3,}|~{3,})(?P<info>[^\n]*)")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_ITEM = re.compile(r" {0,1}(?:[-*+]|(?P<number>\d{1,9})[.)])(?:\s|$)")


class MarkdownStream:
    """Feed text in any pieces; take finished blocks."""

    def __init__(self) -> None:
        self._partial = ""  # a line that has not ended
        self._block: list[str] = []
        self._in_item = False
        self._after_blank = False
        self._fence = ""  # what opened the code block we are in
        self._language = ""
        self._inner_fence = ""  # a code block within a list item

    @property
    def pending(self) -> str:
        """Text that is in no finished block yet."""
        return "".join(self._block) + self._partial

    def feed(self, text: str) -> list[Block]:
        *lines, self._partial = (self._partial + text).split("\n")
        return [block for line in lines for block in self._line(line + "\n")]

    def finish(self) -> list[Block]:
        """What is left, finished or not."""
        line, self._partial = self._partial, ""
        blocks = self._line(line) if line else []
        return blocks + self._flush()

    def _line(self, line: str) -> list[Block]:
        if self._fence:
            return self._code_line(line)
        if self._inner_fence:
            self._block.append(line)
            if _closes(line.strip(), self._inner_fence):
                self._inner_fence = ""
            return []
        if not line.strip():
            self._block.append(line)
            self._after_blank = True
            return [] if self._in_item else self._flush()
        if self._in_item and self._continues_item(line):
            self._block.append(line)
            self._after_blank = False
            fence = _FENCE.match(line.lstrip())
            self._inner_fence = fence["mark"] if fence else ""
            return []
        return self._begin(line)

    def _continues_item(self, line: str) -> bool:
        if line.startswith(("  ", "\t")):
            return True
        lazy = not (_ITEM.match(line) or _FENCE.match(line) or _HEADING.match(line))
        return lazy and not self._after_blank

    def _begin(self, line: str) -> list[Block]:
        """A line outside code and outside a list item."""
        fence = _FENCE.match(line)
        if fence and not (fence["mark"][0] == "`" and "`" in fence["info"]):
            self._fence, self._language = fence["mark"], fence["info"].strip()
            return [*self._flush(), Block(Kind.FENCE, line, self._language)]
        if _HEADING.match(line):
            return [*self._flush(), Block(Kind.TEXT, line)]
        item = _ITEM.match(line)
        # Inside a paragraph a number at a line's start may be part of the sentence.
        if item and (self._in_item or not self._block or item["number"] in (None, "1")):
            done = self._flush()
            self._block, self._in_item = [line], True
            return done
        done = self._flush() if self._in_item else []
        self._block.append(line)
        return done

    def _code_line(self, line: str) -> list[Block]:
        if _closes(line.strip(), self._fence) and len(line) - len(line.lstrip(" ")) < 4:
            block = Block(Kind.FENCE, line, self._language)
            self._fence = self._language = ""
            return [block]
        return [Block(Kind.CODE, line, self._language)]

    def _flush(self) -> list[Block]:
        text = "".join(self._block)
        self._block, self._in_item, self._after_blank = [], False, False
        self._inner_fence = ""
        return [Block(Kind.TEXT, text)] if text else []


def _closes(stripped: str, fence: str) -> bool:
    return len(stripped) >= len(fence) and set(stripped) == {fence[0]}
