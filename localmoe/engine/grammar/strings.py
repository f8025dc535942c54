"""Strings in GBNF: literals, lengths, formats, regular expressions, text up to a marker.

Texts are written as they stand inside a JSON document (RFC 8259), if their notation does not say
otherwise: quotes and backslashes are escaped, control characters do not occur.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from localmoe.engine.grammar.errors import refusal
from localmoe.engine.grammar.patterns import PatternError, pattern_body

HEX = "[0-9a-fA-F]"
# One character, written out or escaped. Half a surrogate pair is none, nor is anything above the
# last code point: a model that writes single bytes could otherwise write what no text can hold.
CHAR = (
    rf'[\x20-\x21\x23-\x5B\x5D-\x7E\u0080-\uD7FF\uE000-\U0010FFFF] | "\\" (["\\/bfnrt] | "u" '
    rf"([0-9a-cA-CefEF] {HEX}{HEX}{HEX} | [dD] [0-7] {HEX}{HEX}))"
)
MAX_LENGTH = 1000  # llama.cpp refuses 2000 repetitions; a lower upper bound only narrows

_DATE = '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | "1" [0-9] | "2" [0-8])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? '
    '("Z" | [+-] ([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9])'
)
_BYTE = '("25" [0-5] | "2" [0-4] [0-9] | "1" [0-9] [0-9] | [1-9]? [0-9])'
FORMATS = {
    "date": _DATE,  # no month lacks a 28th
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": ' "-" '.join(f"{HEX}{{{n}}}" for n in (8, 4, 4, 4, 12)),
    "ipv4": ' "." '.join([_BYTE] * 4),
}


def literal(text: str) -> str:
    """``text`` as a GBNF literal."""
    return '"' + "".join(_in_literal(c) for c in text) + '"'


def _in_literal(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 1 << 16 else char


class TextNotation(Protocol):
    """The part of ``Notation`` that is about texts."""

    without: str
    piece: str

    def text(self, characters: str) -> str: ...


def string_rule(
    core: Mapping[str, Any], at: str, notation: TextNotation, most: int | None = None
) -> str:
    """The rule of a string with these keywords, of at most ``most`` characters where they leave
    that open. Raises UsageError.
    """
    low, high = _length(core, "minLength", at) or 0, _length(core, "maxLength", at)
    kind = core.get("format")
    if "pattern" in core or kind in FORMATS:
        if low or high is not None or ("pattern" in core and kind in FORMATS):
            raise refusal(at, "pattern, format and lengths cannot be enforced together")
        if kind in FORMATS:
            return notation.text(FORMATS[kind])
        return notation.text(_pattern(core["pattern"], at, notation.without))
    if low > MAX_LENGTH:
        raise refusal(f"{at}/minLength", f"more than {MAX_LENGTH} characters cannot be demanded")
    if high is not None and high < low:
        raise refusal(at, "minLength is more than maxLength")
    if high is None and most is not None:
        return notation.text(f"{notation.piece}{{{low},{max(low, most)}}}")
    if high is None:
        return notation.text(f"char{{{low}}} {notation.piece}*") if low else "string"
    return notation.text(f"char{{{low},{max(low, min(high, MAX_LENGTH))}}}")


def text_until(
    end: str, name: str, *, then: str = "", optional: bool = False
) -> tuple[dict[str, str], str]:
    """Rules for any text up to and with the first ``end``, and the name of the first rule.

    ``then`` is the rule of what follows; ``optional``: the text may also be all there is. One rule
    for each beginning of ``end`` that has just been read (Knuth, Morris and Pratt, 1977).
    """
    names = {end[:length]: f"{name}-{length}" for length in range(len(end))}
    letters = sorted(set(end))
    others = "".join(map(_in_class, letters))
    rules = {}
    for read, rule in names.items():
        choices = []
        for letter in letters:
            text = read + letter
            if text == end:
                choices.append(f"{literal(letter)} {then}".strip())
            else:
                after = next(text[at:] for at in range(len(text) + 1) if text[at:] in names)
                choices.append(f"{literal(letter)} {names[after]}")
        rules[rule] = " | ".join([*([""] * optional), *choices, f"[^{others}] {names['']}"])
    return rules, names[""]


Symbols = Sequence[str | int]
"""A mark as a model writes it: texts, and special tokens by their numbers."""


def with_reasoning(
    gbnf: str, start: Symbols, end: Symbols, between: Symbols = (), *, is_open: bool = False
) -> str:
    """A grammar that lets a model think first: ``start``, any text, ``end``, the answer.

    ``is_open``: the prompt itself has written ``start``, so the thinking must end; else it may be
    left out. Without an ``end`` there is no thinking. ``between`` stands before the answer in any
    case (gpt-oss's final channel).
    """
    rules: dict[str, str] = {}
    parts = []
    if end:
        if isinstance(end[0], int):
            thought = f"!<[{end[0]}]>* {sequence(end)}"
        else:
            rules, first = text_until(end[0], "thought")
            thought = f"{first} {sequence(end[1:])}"
        thought = f"{thought} [ \\n]{{0,4}}"
        parts.append(thought if is_open else f"({sequence(start)} {thought})?" if start else "")
    lines = [
        f"root ::= {' '.join([*parts, sequence(between), 'answer'])}",
        re.sub(r"(?m)^root ::=", "answer ::=", gbnf),
    ]
    return "\n".join([*lines, *(f"{name} ::= {rule}" for name, rule in rules.items())])


def sequence(symbols: Symbols) -> str:
    return " ".join(literal(s) if isinstance(s, str) else f"<[{s}]>" for s in symbols)


def _in_class(char: str) -> str:
    return f"\\{char}" if char in "[]\\" else f"\\x{ord(char):02X}" if char in "^-" else char


def _length(core: Mapping[str, Any], keyword: str, at: str) -> int | None:
    value = core.get(keyword)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise refusal(f"{at}/{keyword}", "a whole number of at least 0 belongs here")
    return value


def _pattern(pattern: object, at: str, without: str) -> str:
    if not isinstance(pattern, str):
        raise refusal(f"{at}/pattern", "a regular expression belongs here")
    try:
        return pattern_body(pattern, without=without)
    except (PatternError, re.error) as error:
        raise refusal(f"{at}/pattern", str(error)) from None
