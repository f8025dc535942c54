"""The form of an answer, and the thinking that may come before it."""

from __future__ import annotations

from collections.abc import Sequence

from localmoe.chat.answer_format import AnswerFormat
from localmoe.chat.marks import SplitSpecials
from localmoe.engine.events import Part
from localmoe.engine.grammar import with_reasoning


def grammar_for(grammar: str, format_: AnswerFormat, split_specials: SplitSpecials) -> str:
    """The grammar of an answer, with room for thinking where the chat template has it.

    Marks that are special tokens are demanded as such: thinking may spell them.
    """
    marks = format_.thinking[0]
    thinks = format_.told or format_.is_open
    between = "" if format_.answer_marks_optional else format_.answer_start
    start, end, between_ = split_specials(
        [marks.start if thinks else "", marks.end if thinks else "", between]
    )
    return with_reasoning(
        grammar, _symbols(start), _symbols(end), _symbols(between_), is_open=format_.is_open
    )


def _symbols(parts: Sequence[Part]) -> list[str | int]:
    return [part.text if part.token is None else part.token for part in parts]
