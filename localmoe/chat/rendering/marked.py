"""Text that remembers where each of its characters came from.

A prompt is written by two: the chat template writes the marks between messages, and the messages
bring their own text. Only what the template writes may become a special token, so the two have to
be told apart after rendering, whatever the template did to a message: trimmed, split, upper-cased
or joined it. ``Marked`` is a string that carries this through all string operations.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self, SupportsIndex

TEMPLATE, DATA = "t", "d"
"""What stands in ``Marked.origin`` for a character of the template, and for one of a message."""

_STAND_IN = 0xF0000  # first of 65,534 private characters that no template writes
_STAND_INS = re.compile("[\U000f0000-\U000ffffd]")


class Marked(str):
    """A string with the origin of each character: ``len(origin) == len(self)``.

    Plain strings beside it count as the template's. Operations give what ``str`` gives, marked.
    """

    __slots__ = ("origin",)
    origin: str

    def __new__(cls, text: str = "", origin: str | None = None) -> Self:
        self = super().__new__(cls, text)
        self.origin = TEMPLATE * len(self) if origin is None else origin
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Marked:
        return Marked(super().__getitem__(key), self.origin[key])

    def __iter__(self) -> Iterator[Marked]:
        return map(Marked, super().__iter__(), self.origin)

    def __add__(self, other: str) -> Marked:
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> Marked:
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> Marked:
        return Marked(super().__mul__(count), self.origin * count)

    __rmul__ = __mul__

    def strip(self, chars: str | None = None, /) -> Marked:
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> Marked:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> Marked:
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> Marked:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> Marked:
        return self[: len(self) - len(suffix)] if self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._located(super().splitlines(keepends=True), 0)
        bare = super().splitlines()
        return whole if keepends else [w[: len(b)] for w, b in zip(whole, bare, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(super().partition(sep))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        return self._three(super().rpartition(sep))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> Marked:
        if old:
            return Marked(new, origin_of(new)).join(self.split(old, count))
        return self._like(super().replace(old, new, count))

    def join(self, parts: Iterable[str], /) -> Marked:
        pieces: list[str] = []
        for number, part in enumerate(parts):
            pieces += [self, part] if number else [part]
        return joined(pieces)

    def upper(self) -> Marked:
        return self.mapped(str.upper)

    def lower(self) -> Marked:
        return self.mapped(str.lower)

    def title(self) -> Marked:
        return self.mapped(str.title)

    def capitalize(self) -> Marked:
        return self.mapped(str.capitalize)

    def swapcase(self) -> Marked:
        return self.mapped(str.swapcase)

    def casefold(self) -> Marked:
        return self.mapped(str.casefold)

    def translate(self, table: Any, /) -> Marked:
        return self.mapped(lambda text: str.translate(text, table))

    def center(self, width: SupportsIndex, fill: str = " ", /) -> Marked:
        return self._padded(super().center(width, fill))

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> Marked:
        return self._padded(super().ljust(width, fill))

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> Marked:
        return self._padded(super().rjust(width, fill))

    def zfill(self, width: SupportsIndex, /) -> Marked:
        return self._like(super().zfill(width))

    def expandtabs(self, tabsize: SupportsIndex = 8) -> Marked:
        return self._like(super().expandtabs(tabsize))

    def _located(self, pieces: list[str], gap: int) -> list[str]:
        """The pieces of a split, each with its marks; ``gap`` characters lie between two."""
        found: list[str] = []
        at = 0
        for piece in pieces:
            start = self.index(piece, at)
            found.append(self[start : start + len(piece)])
            at = start + len(piece) + gap
        return found

    def _three(self, pieces: tuple[str, str, str]) -> tuple[str, str, str]:
        first, second, third = self._located(list(pieces), 0)
        return first, second, third

    def mapped(self, change: Callable[[str], str]) -> Marked:
        """After a change of letters, which may make a text longer (``"ß".upper()``)."""
        result = change(str.__str__(self))
        if len(result) == len(self):
            return Marked(result, self.origin)
        letters = [change(letter) for letter in str.__iter__(self)]
        if "".join(letters) != result:
            return self._like(result)
        pairs = zip(letters, self.origin, strict=True)
        return Marked(result, "".join(origin * len(letter) for letter, origin in pairs))

    def _padded(self, result: str) -> Marked:
        at = result.index(self)
        after = len(result) - at - len(self)
        return Marked(result, TEMPLATE * at + self.origin + TEMPLATE * after)

    def _like(self, result: str) -> Marked:
        """A result whose characters cannot be traced: a message's as soon as one of them is."""
        return Marked(result, (DATA if DATA in self.origin else TEMPLATE) * len(result))


def origin_of(text: str) -> str:
    """The origin of each character; a plain string is the template's."""
    return text.origin if isinstance(text, Marked) else TEMPLATE * len(text)


def joined(parts: Iterable[object]) -> Marked:
    """All parts (what is no string, as ``str`` shows it) one after the other."""
    texts = [part if isinstance(part, str) else str(part) for part in parts]
    return Marked("".join(texts), "".join(map(origin_of, texts)))


def marked(value: Any, key: object = None) -> Any:
    """``value`` from JSON, all its strings marked as data.

    The role of a message and the type of a part are words of the template's own.
    """
    if isinstance(value, str):
        return value if key in ("role", "type") else Marked(value, DATA * len(value))
    if isinstance(value, list):
        return [marked(item) for item in value]
    if isinstance(value, dict):
        return {Marked(k, DATA * len(k)): marked(v, k) for k, v in value.items()}
    return value


def spans(text: str) -> list[tuple[int, int]]:
    """Where data stands in ``text``: (start, end), in order, never empty."""
    return [found.span() for found in re.finditer(f"{DATA}+", origin_of(text))]


def is_data(value: object) -> bool:
    """Whether a string has characters of a message in it."""
    return isinstance(value, Marked) and DATA in value.origin


def formatted(function: Callable[..., str], *args: Any, **kwargs: Any) -> str:
    """``function(*args, **kwargs)``, which puts strings into a pattern, with their marks kept."""
    stand_ins = StandIns()
    return stand_ins.put_back(function(*stand_ins.put(list(args)), **stand_ins.put(kwargs)))


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON of ``value``. Jinja's own filter escapes HTML, which no model was trained on.

    What its ``map`` and ``select`` give is a list, as llama.cpp has it.
    """
    if isinstance(value, Iterator):
        value = list(value)

    def spelled(text: str) -> str:
        inside = json.dumps(text, ensure_ascii=ensure_ascii)[1:-1]
        return Marked(inside, origin_of(text)[:1] * len(inside))

    stand_ins = StandIns(sort_keys=sort_keys)
    text = json.dumps(
        stand_ins.put(value),
        ensure_ascii=ensure_ascii and not stand_ins.kept,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys and not stand_ins.kept,
    )
    return stand_ins.put_back(text, spelled) if stand_ins.kept else text


class StandIns:
    """One private character for each marked string, while a function that loses marks runs."""

    def __init__(self, *, sort_keys: bool = False) -> None:
        self.kept: list[Marked] = []
        self._sort_keys = sort_keys

    def hide(self, text: str, parts: Iterable[str]) -> str:
        """``text``, which is data, with a stand-in for each of ``parts`` in it.

        Characters that are stand-ins by chance get one of their own.
        """
        text = _STAND_INS.sub(lambda found: self.put(Marked(found[0], DATA)), text)
        for part in parts:
            if part in text:
                text = text.replace(part, self.put(Marked(part, DATA * len(part))))
        return text

    def put(self, value: Any) -> Any:
        """``value`` with its marked strings replaced; lists and objects are gone through."""
        if isinstance(value, Marked):
            self.kept.append(value)
            return chr(_STAND_IN + len(self.kept) - 1)
        if isinstance(value, list | tuple):
            return type(value)(map(self.put, value))
        if isinstance(value, dict):
            items = sorted(value.items()) if self._sort_keys else value.items()
            return {self.put(k): self.put(v) for k, v in items}
        return value

    def put_back(self, text: str, spelled: Callable[[str], str] = str) -> Marked:
        """``text`` with the marked strings again; ``spelled`` writes each run of one origin."""
        pieces: list[str] = []
        at = 0
        for found in _STAND_INS.finditer(text):
            number = ord(found[0]) - _STAND_IN
            if number < len(self.kept):
                pieces.append(text[at : found.start()])
                pieces += map(spelled, runs(self.kept[number]))
                at = found.end()
        return joined([*pieces, text[at:]])


def runs(text: Marked) -> Iterator[Marked]:
    """The longest pieces of one origin."""
    for found in re.finditer(f"{TEMPLATE}+|{DATA}+", text.origin):
        yield text[found.start() : found.end()]
