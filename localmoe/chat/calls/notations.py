"""Values that calls have in no JSON, in GBNF: Gemma 4's, and tags within tags (MiniMax M3)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from localmoe.chat.calls.format import ANY, KEY, QUOTE, CallFormat
from localmoe.engine.grammar import Bounds, Notation, Symbols, literal, sequence

ANY_KEY = "[a-zA-Z_] [a-zA-Z0-9_-]{0,40}"
_BARE_KEY = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
MarkSymbols = Callable[[str], Symbols]
"""A mark as texts and the numbers of special tokens."""


def letter_without(mark: str) -> str:
    """A character of a text that ``mark`` ends: not the one with which it begins.

    By its spelling, whether it is a token or not: a token stands for its spelling as well.
    """
    return not_one_of(f"{mark[0]}\0")


def not_one_of(letters: str) -> str:
    """Any other character."""
    return f"[^{''.join(map(_in_set, letters))}]"


def letters_without(mark: str) -> str:
    """A character of such a text, or a few: the beginning of the mark does not occur."""
    return f"{letter_without(mark)} | {literal(mark[0])}+ {not_one_of(mark[:2] + chr(0))}"


def free_text(mark: str, symbols: Symbols) -> str:
    """Text of any length, up to a mark."""
    return f"!<[{symbols[0]}]>*" if isinstance(symbols[0], int) else f"({letters_without(mark)})*"


def _in_set(char: str) -> str:
    return f"\\x{ord(char):02X}" if ord(char) < 128 else char


class _Bare(Notation):
    """Texts stand as they are, up to a mark; there is no blank space."""

    def __init__(self, mark: str, symbols: MarkSymbols) -> None:
        self.comma = '","'
        self.char, self.piece = letter_without(mark), "piece"
        self.without = mark[0]
        self._pieces = letters_without(mark)
        self._free = free_text(mark, symbols(mark))

    def basic_rules(self, bounds: Bounds | None) -> dict[str, str]:
        return super().basic_rules(bounds) | {"piece": self._pieces}

    def text(self, characters: str) -> str:
        return self._free if characters == "piece*" else characters


class GemmaNotation(_Bare):
    """``{key:<|"|>text<|"|>,other:[1,2]}``."""

    def __init__(self, symbols: MarkSymbols) -> None:
        super().__init__(QUOTE, symbols)
        self._quote = sequence(symbols(QUOTE))

    def text(self, characters: str) -> str:
        return f"{self._quote} {super().text(characters)} {self._quote}"

    def value(self, value: object) -> str:
        if isinstance(value, str):
            return f"{self._quote} {literal(value)} {self._quote}" if value else self.text("")
        if isinstance(value, dict):
            return self.object(
                ' "," '.join(self.member(k, self.value(v)) for k, v in value.items())
            )
        if isinstance(value, list):
            return self.list(' "," '.join(map(self.value, value)))
        return literal(json.dumps(value))

    def member(self, key: str, rule: str) -> str:
        bare = literal(key) if _BARE_KEY.fullmatch(key) else self.value(key)
        return f'{bare} ":" {rule}'

    def any_member(self, rule: str) -> str:
        return f'{ANY_KEY} ":" {rule}'

    def object(self, members: str) -> str:
        return f'"{{" {members} "}}"'

    def list(self, items: str) -> str:
        return f'"[" {items} "]"'


class NestedNotation(_Bare):
    """``<key>text</key><list><item>1</item></list>``, with the marks of a format."""

    def __init__(self, format_: CallFormat, symbols: MarkSymbols) -> None:
        super().__init__(format_.value_end.split(KEY)[0], symbols)
        self.comma = ""
        self._format = format_
        self._symbols = symbols

    def value(self, value: object) -> str:
        if isinstance(value, dict):
            return self.object(" ".join(self.member(k, self.value(v)) for k, v in value.items()))
        if isinstance(value, list):
            return self.list(" ".join(self.item(self.value(v)) for v in value))
        return literal(value if isinstance(value, str) else json.dumps(value))

    def member(self, key: str, rule: str) -> str:
        return self._tagged(literal(key), rule)

    def any_member(self, rule: str) -> str:
        return self._tagged(ANY_KEY, rule)

    def item(self, rule: str) -> str:
        return self.member(self._format.item_key, rule) if rule else ""

    def object(self, members: str) -> str:
        return members or '""'

    def list(self, items: str) -> str:
        return items or '""'

    def _tagged(self, key: str, rule: str) -> str:
        format_ = self._format
        start, middle = self._mark(format_.key_start), self._mark(format_.key_end)
        ends = format_.value_end.split(KEY)
        end = f" {key} ".join(filter(None, map(self._mark, ends)))
        return f"{start} {key} {middle} {rule} {end}"

    def _mark(self, text: str) -> str:
        return sequence(self._symbols(text.replace(ANY, ""))) if text else ""
