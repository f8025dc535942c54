"""Marks of a format as they are met in a stream of tokens.

A special token in a mark is one stand-in character, so text that spells the token is not it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from localmoe.chat.answer_format import AnswerFormat
from localmoe.engine.events import Part

SplitSpecials = Callable[[Sequence[str]], list[list[Part]]]
"""Texts → each cut at the special tokens that it spells."""

FIRST_STAND_IN, LAST_STAND_IN = 0xD800, 0xDFFF  # lone surrogates, which decoded text has none of


@dataclass(frozen=True, slots=True)
class Mark:
    """A text to be met, its special tokens as stand-ins; blank space between ``chunks`` varies."""

    chunks: tuple[str, ...]

    def match(self, text: str, at: int) -> int | None:
        """Where it ends if it stands at ``at``; -1 if it may yet be completed; else None."""
        for number, chunk in enumerate(self.chunks):
            while number and at < len(text) and text[at].isspace():
                at += 1
            part = text[at : at + len(chunk)]
            if part != chunk:
                return -1 if len(part) < len(chunk) and chunk.startswith(part) else None
            at += len(chunk)
        return at


class FormatMarks:
    """The marks of a format, with one stand-in character for each special token in them."""

    def __init__(
        self,
        format_: AnswerFormat,
        split_specials: SplitSpecials,
        constrained: bool,
        more: Sequence[str] = (),
    ) -> None:
        texts = [text for marks in format_.thinking for text in (marks.start, marks.end)]
        texts += [format_.answer_start, format_.answer_end, *more]
        self._parts = dict(zip(texts, split_specials(texts), strict=True))
        specials = {
            part for parts in self._parts.values() for part in parts if part.token is not None
        }
        stand_ins = map(chr, range(FIRST_STAND_IN, LAST_STAND_IN + 1))
        self.stand_ins = {part.text: char for part, char in zip(specials, stand_ins, strict=False)}
        """Spelling of a token → its stand-in."""
        self.spelled = {
            self.stand_ins[part.text]: "" if part.control and not constrained else part.text
            for part in specials
        }
        """Stand-in → what is shown of the token where it is no mark."""
        self._texts = {char: text for text, char in self.stand_ins.items()}

    def with_stand_ins(self, text: str) -> str:
        """A mark with its special tokens as stand-ins."""
        return "".join(
            p.text if p.token is None else self.stand_ins[p.text] for p in self._parts[text]
        )

    def as_text(self, text: str) -> str:
        """``text`` with the spelling of each special token in it."""
        for char, spelled in self._texts.items():
            if char in text:
                text = text.replace(char, spelled)
        return text

    def mark(self, text: str) -> Mark | None:
        return self._mark(self._parts[text])

    def end_mark(self, text: str) -> Mark | None:
        """By which an answer's end is known: a special token, or the text before the first."""
        parts = self._parts[text]
        if parts and parts[0].token is not None:
            return self._mark(parts[:1])
        return self._mark(list(itertools.takewhile(lambda part: part.token is None, parts)))

    def ends_alone(self, format_: AnswerFormat) -> Iterator[Mark]:
        """Ends of thinking that may come without a start.

        Where only the list says so, the end must be a control token: a model that answers at once
        would otherwise be kept waiting for a mark that it never writes.
        """
        for marks in format_.thinking:
            mark = self.mark(marks.end)
            control = all(part.control for part in self._parts[marks.end])
            if mark and marks.end_alone and (format_.told or control):
                yield mark

    def _mark(self, parts: Sequence[Part]) -> Mark | None:
        body = "".join(p.text if p.token is None else self.stand_ins[p.text] for p in parts)
        chunks = body.split()
        if chunks and body.endswith("\n"):
            chunks[-1] += "\n"
        return Mark(tuple(chunks)) if chunks else None
