"""The form of an answer, and the thinking that may come before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from localmoe.chat.answer_format import AnswerFormat, Marks
from localmoe.chat.marks import SplitSpecials
from localmoe.engine.events import Part
from localmoe.engine.grammar import with_reasoning


def room_for_thinking(format_: AnswerFormat) -> Marks | None:
    """The marks of the thinking that may come before an answer in a demanded form."""
    marks = format_.thinking[0] if format_.thinking else None
    if marks is None or not marks.end or not (format_.is_open or (format_.told and marks.start)):
        return None
    return replace(marks, start="") if format_.is_open else marks


def grammar_for(grammar: str, format_: AnswerFormat, split_specials: SplitSpecials) -> str:
    """The grammar of an answer, with room for thinking where the chat template has it.

    Marks that are special tokens are demanded as such: thinking may spell them.
    """
    marks = room_for_thinking(format_) or Marks("", "")
    between = "" if format_.answer_marks_optional else format_.answer_start
    start, end, between_ = map(_symbols, split_specials([marks.start, marks.end, between]))
    return with_reasoning(grammar, start, end, between_, is_open=format_.is_open)


def _symbols(parts: Sequence[Part]) -> list[str | int]:
    return [part.text if part.token is None else part.token for part in parts]
