"""Regular expressions → GBNF, for the inside of a JSON string.

Python's own parser reads the expression; what ECMA 262 writes the same way means the same here.
Control characters are left out of every set, so a match may be narrower than the expression.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

MAX_REPEAT = 1000

Ranges = list[tuple[int, int]]  # code points, both ends included, ascending

WRITABLE: Ranges = [(0x20, 0x7E), (0xA0, 0xD7FF), (0xE000, 0x10FFFF)]
_DIGIT: Ranges = [(0x30, 0x39)]
_WORD: Ranges = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
_SPACE: Ranges = [(0x20, 0x20)]
_QUOTED = {0x22: r'"\\\""', 0x5C: r'"\\\\"'}  # characters that JSON writes with a backslash


class PatternError(ValueError):
    """An expression that no grammar of this module can express."""


def pattern_body(pattern: str, *, without: str = "") -> str:
    """GBNF for the strings in which ``pattern`` is found (as ``re.search`` finds it).

    Quotes and backslashes are written with a backslash, or where there is a letter that they are
    ``without``, as they are. Raises PatternError, re.error.
    """
    writer = _Writer({ord(without): ""} if without else _QUOTED)
    return writer.found(list(parser.parse(pattern, re.ASCII)))


class _Writer:
    """Writes sets of characters; ``quoted``: how some are written, "" for those that are not."""

    def __init__(self, quoted: Mapping[int, str]) -> None:
        self._quoted = quoted

    def found(self, tree: Sequence[tuple[Any, Any]], *, start: bool = False) -> str:
        """A rule for strings that contain a match; ``start``: that begin with one."""
        if tree and tree[0] == (op.AT, op.AT_BEGINNING):
            tree, start = tree[1:], True
        if len(tree) == 1 and tree[0][0] is op.BRANCH:  # a choice, with anchors of its own in each
            return "(" + " | ".join(self.found(b, start=start) for b in tree[0][1][1]) + ")"
        end = bool(tree) and tree[-1] == (op.AT, op.AT_END)
        inner = self._sequence(tree[: len(tree) - end])
        parts = ("" if start else "char*", inner, "" if end else "char*")
        return " ".join(filter(None, parts)) or '""'

    def _sequence(self, items: Iterable[tuple[Any, Any]]) -> str:
        return " ".join(filter(None, (self._item(kind, value) for kind, value in items)))

    def _item(self, kind: Any, value: Any) -> str:
        if kind is op.LITERAL:
            return self._set([(value, value)])
        if kind is op.NOT_LITERAL:
            return self._set(_without(WRITABLE, [(value, value)]))
        if kind is op.ANY:
            return self._set(WRITABLE)
        if kind is op.IN:
            return self._set(_class(value))
        if kind is op.BRANCH:
            return "(" + " | ".join(self._sequence(branch) or '""' for branch in value[1]) + ")"
        if kind is op.SUBPATTERN and not value[1] and not value[2]:
            return f"({self._sequence(value[3])})"
        if kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            low, high, body = value
            return f"({self._sequence(body)}){_often(low, None if high is op.MAXREPEAT else high)}"
        names = {
            op.AT: "an anchor inside",
            op.GROUPREF: "a reference back",
            op.ASSERT: "a look-ahead",
        }
        raise PatternError(f"{names.get(kind, str(kind).lower())} cannot be enforced")

    def _set(self, ranges: Ranges) -> str:
        """One character of these."""
        outside = _without([(0, 0x10FFFF)], WRITABLE)
        allowed = _without(sorted(ranges), outside)
        quoted = [
            text
            for code, text in self._quoted.items()
            if text and any(a <= code <= b for a, b in allowed)
        ]
        plain = _without(allowed, [(code, code) for code in self._quoted])
        choices = quoted
        if plain:
            body = "".join(_code(a) if a == b else f"{_code(a)}-{_code(b)}" for a, b in plain)
            choices = [f"[{body}]", *quoted]
        if not choices:
            raise PatternError("it asks for control characters, which are not written into strings")
        return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"


def _often(low: int, high: int | None) -> str:
    if low > MAX_REPEAT:
        raise PatternError(f"more than {MAX_REPEAT} repetitions cannot be demanded")
    if high is None:
        return {0: "*", 1: "+"}.get(low, f"{{{low},}}")
    return f"{{{low},{max(low, min(high, MAX_REPEAT))}}}"


def _class(items: Sequence[tuple[Any, Any]]) -> Ranges:
    negated = bool(items) and items[0][0] is op.NEGATE
    found: Ranges = []
    for kind, value in items[negated:]:
        if kind is op.LITERAL:
            found.append((value, value))
        elif kind is op.RANGE:
            found.append(value)
        elif kind is op.CATEGORY:
            found += _category(value)
        else:
            raise PatternError("this set of characters cannot be enforced")
    return _without(WRITABLE, found) if negated else found


def _category(value: Any) -> Ranges:
    plain = {
        op.CATEGORY_DIGIT: _DIGIT, op.CATEGORY_WORD: _WORD, op.CATEGORY_SPACE: _SPACE,
    }  # fmt: skip
    negated = {
        op.CATEGORY_NOT_DIGIT: _DIGIT, op.CATEGORY_NOT_WORD: _WORD,
        op.CATEGORY_NOT_SPACE: [*_SPACE, (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
                                (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F),
                                (0x3000, 0x3000), (0xFEFF, 0xFEFF)],
    }  # fmt: skip
    if value in plain:
        return plain[value]
    return _without(WRITABLE, negated[value])


def _without(ranges: Ranges, taken: Ranges) -> Ranges:
    """The code points of ``ranges`` that are not in ``taken``."""
    left = ranges
    for low, high in taken:
        cut = []
        for a, b in left:
            if high < a or low > b:
                cut.append((a, b))
                continue
            if a < low:
                cut.append((a, low - 1))
            if high < b:
                cut.append((high + 1, b))
        left = cut
    return left


def _code(code: int) -> str:
    if chr(code).isalnum() and code < 0x80:
        return chr(code)
    return (
        f"\\x{code:02X}"
        if code < 0x100
        else f"\\u{code:04X}"
        if code < 1 << 16
        else f"\\U{code:08X}"
    )
