"""Text that arrives in pieces, read by a parser that waits where it cannot decide yet.

A parser is a generator: it yields where it needs more text, and goes on when there is more or it is
known that none comes. So what it makes of a text cannot depend on how that was cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

from localmoe.chat.calls.format import ANY

_T = TypeVar("_T")
Waiting = Generator[None, None, _T]
"""A parser that ends with a value."""
Sink = Callable[[str], None]

MOST_WORD = 64  # characters for which ANY stands
_END_OF_WORD = re.compile(r"[\s<>\[\]\"'|{}]")
_BETWEEN_TAGS = re.compile("(?<=[>\ud800-\udfff])(?=[<\ud800-\udfff])")
_AFTER_VALUE = ",]} \t\r\n"


class NoCall(Exception):  # noqa: N818 - an outcome, not an error
    """The text is no call: it is for the reader."""


class Pattern:
    """A mark to be met: blank space between its words varies, ``ANY`` stands for a word.

    ``lead`` and ``trail`` are the blank space around it.
    """

    def __init__(self, mark: str) -> None:
        self.text = mark
        body = mark.strip()
        self.lead = mark[: len(mark) - len(mark.lstrip())]
        self.trail = mark[len(mark.rstrip()) :] if body else ""
        body = _BETWEEN_TAGS.sub(" ", body)
        self._parts = [part for part in re.split(f"({ANY}|\\s+)", body) if part]

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def first(self) -> str:
        return self._parts[0][:1] if self._parts else ""

    @property
    def is_token(self) -> bool:
        """Whether it begins with a special token."""
        return "\ud800" <= self.first <= "\udfff"

    def match(self, text: str, at: int) -> tuple[int, str] | None:
        """Where it ends if it stands at ``at``, and the word for ANY.

        The end is -1 if it may yet be completed; None: it does not stand there.
        """
        word = ""
        for number, part in enumerate(self._parts):
            if part.isspace():
                while at < len(text) and text[at].isspace():
                    at += 1
                if at == len(text):
                    return -1, ""
            elif part == ANY:
                follows = self._parts[number + 1][:1] if number + 1 < len(self._parts) else ""
                begin = at
                while at < len(text) and text[at] != follows and not _END_OF_WORD.match(text[at]):
                    at += 1
                if at == len(text):
                    return -1, ""
                if at - begin > MOST_WORD:
                    return None
                word = text[begin:at]
                while at < len(text) and text[at].isspace() and not follows.isspace():
                    at += 1
            else:
                piece = text[at : at + len(part)]
                if piece != part:
                    return (-1, "") if len(piece) < len(part) and part.startswith(piece) else None
                at += len(part)
        return at, word


class Text:
    """What has arrived, and how far it was read."""

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.final = False  # no more comes
        self.cut = False  # though the model had more to say

    def peek(self) -> Waiting[str]:
        """The next character; "" at the end."""
        while self.at == len(self.text) and not self.final:
            yield
        return self.text[self.at : self.at + 1]

    def skip_space(self) -> Waiting[str]:
        """Read blank space; return the character after it."""
        while True:
            char = yield from self.peek()
            if not char.isspace():
                return char
            self.at += 1

    @property
    def ends_here(self) -> bool:
        """Whether the model has said all, and nothing but blank space is left."""
        return self.final and not self.cut and not self.text[self.at :].strip()

    def skip(self, chars: str) -> None:
        if chars and self.text.startswith(chars, self.at):
            self.at += len(chars)

    def meets(self, pattern: Pattern) -> Waiting[tuple[bool, str]]:
        """Read the mark if it stands here, and the blank space it ends with."""
        while True:
            found = pattern.match(self.text, self.at)
            if found is None or (found[0] < 0 and self.final):
                return False, ""
            if found[0] >= 0:
                self.at = found[0]
                if pattern.trail:
                    yield from self.peek()
                    self.skip(pattern.trail)
                return True, found[1]
            yield

    def stands(self, pattern: Pattern) -> Waiting[bool]:
        """Whether the mark stands here, behind blank space; nothing is read."""
        at = self.at
        yield from self.skip_space()
        found, _ = yield from self.meets(pattern)
        self.at = at
        return found

    def demand(self, pattern: Pattern) -> Waiting[str]:
        """Read blank space and the mark. Raises NoCall where it does not stand."""
        if not pattern:
            return ""
        yield from self.skip_space()
        met, word = yield from self.meets(pattern)
        if not met:
            raise NoCall
        return word

    def until(self, ends: Sequence[Pattern], most: int) -> Waiting[str]:
        """Text up to the first of the marks, which is not read. Raises NoCall."""
        begin = self.at
        while True:
            if (yield from self.peek()) == "" or self.at - begin > most:
                raise NoCall
            for end in ends:
                at = self.at
                met, _ = yield from self.meets(end)
                self.at = at
                if met:
                    return self.text[begin:at]
            self.at += 1

    def json_value(self, sink: Sink) -> Waiting[None]:
        """One JSON value, as it is written, to ``sink``. Raises NoCall at the end of the text."""
        depth = 0
        in_string = escaped = False
        while True:
            char = yield from self.peek()
            if not char:
                raise NoCall
            if not in_string and depth == 0 and char in _AFTER_VALUE:
                return
            sink(char)
            self.at += 1
            if in_string:
                in_string = escaped or char != '"'
                escaped = not escaped and char == "\\"
            elif char == '"':
                in_string = True
            elif char in "[{":
                depth += 1
            elif char in "]}":
                depth -= 1
            if depth == 0 and not in_string and char in ']}"':
                return

    def json_text(self) -> Waiting[str]:
        """A JSON string. Raises NoCall."""
        pieces: list[str] = []
        if (yield from self.skip_space()) != '"':
            raise NoCall
        yield from self.json_value(pieces.append)
        value = loads("".join(pieces))
        if not isinstance(value, str):
            raise NoCall
        return value


def loads(text: str) -> object:
    """JSON, with line breaks in strings taken for what they are. Raises NoCall."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        raise NoCall from None
