"""Which writer an answer needs: markdown on a terminal, wrapped words, or the text as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from localmoe.terminal.console import Pipe, is_dumb
from localmoe.terminal.plain_writer import PlainWriter, WrappedWriter

if TYPE_CHECKING:
    from localmoe.terminal.console import Screen


class Writer(Protocol):
    """Text of a model in any pieces → where it is read."""

    def feed(self, text: str) -> None:
        """More of the text. Raises OSError."""

    def finish(self) -> None:
        """Write the rest, and end the last line. May be called again, and then does nothing."""


def answer_writer(screen: Screen) -> Writer:
    """For an answer. A pipe gets it exactly; so does a terminal that cannot move its cursor."""
    if isinstance(screen, Pipe) or not screen.is_terminal:
        return _without_escape_codes(screen)
    from localmoe.terminal.answer_writer import AnswerWriter  # late: a pipe need not wait

    return AnswerWriter(screen)


def reasoning_writer(screen: Screen) -> Writer:
    """For what a model thinks before its answer: dimmed and behind a bar on a terminal."""
    if isinstance(screen, Pipe) or not screen.is_terminal:
        return _without_escape_codes(screen)
    from localmoe.terminal.answer_writer import ReasoningWriter

    return ReasoningWriter(screen)


def _without_escape_codes(screen: Screen) -> Writer:
    """``NO_COLOR`` on a terminal: its words are wrapped all the same."""
    wraps = screen.file.isatty() and not is_dumb()
    return WrappedWriter(screen) if wraps else PlainWriter(screen)
