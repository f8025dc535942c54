"""A full context: oldest turns are dropped or summarised as the user chose, never silently."""

from __future__ import annotations

from collections.abc import Iterator

from localmoe.chat.context import Overflow, answer_room, surely_fits
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import AnswerDelta, ChatEvent
from localmoe.chat.overflow import make_room, not_sent, too_long_alone
from localmoe.chat.session import Message
from localmoe.chat.state import Chat
from localmoe.cli.output import Output
from localmoe.terminal.interrupts import interrupts
from localmoe.terminal.line_sources import Lines
from localmoe.terminal.live_line import LiveLine
from localmoe.text import counted


class Overflowing:
    """Makes room for the next turn as ``/set overflow`` says; the ``Host`` of ``make_room``."""

    def __init__(self, chat: Chat, lines: Lines, output: Output) -> None:
        self._chat = chat
        self._lines = lines
        self._output = output

    def fits(self, conversation: Conversation, question: Message) -> bool:
        """Make room for the question, and whether there is enough now to send it.

        Raises ContextOverflowError in a pipe, where nobody can choose something else;
        TemplateError, EngineError, and KeyboardInterrupt on Ctrl-C twice.
        """
        chat = self._chat
        answer = answer_room(chat.context, chat.settings.max_tokens)
        size = len(question.for_prompt().content.encode())
        if chat.last and surely_fits(size, chat.last.usage.total, chat.context, answer):
            return True
        self._engine = conversation.engine
        shortage = make_room(conversation, question, chat.context, self)
        if shortage is None:
            return True
        if not self._lines.interactive:
            raise not_sent(shortage, chat.trained)
        if shortage.drop is None:
            self.note(too_long_alone(shortage, chat.trained))
        return False

    def choose(self, turns: int) -> Overflow:
        choice = self._chat.settings.overflow
        if choice is Overflow.ASK:
            choice = self._ask(turns)
        if choice is Overflow.STOP:
            self.note("not sent; /clear begins anew, /set overflow has other choices")
        return choice

    def _ask(self, turns: int) -> Overflow:
        if not self._lines.interactive:
            return Overflow.STOP
        what = "the oldest turn" if turns == 1 else f"the {turns} oldest turns"
        answer = self._lines.choose(f"{what}: [d]rop, [s]ummarise, or [Enter] to stop? ")
        found = {"d": Overflow.DROP, "s": Overflow.SUMMARISE}.get(answer.strip()[:1].lower())
        return found or Overflow.STOP

    def warn(self, text: str) -> None:
        self._output.warn(text)

    def note(self, text: str) -> None:
        self._output.note(text)

    def play(self, turns: int, summary: Iterator[ChatEvent]) -> None:
        """Show the summary's number of words on a live line; Ctrl-C stops it."""
        engine, words = self._engine, 0
        what = counted(turns, "turn")
        with (
            interrupts(engine.cancel, engine.cancel) as pressed,
            LiveLine(self._output.stderr) as line,
        ):
            for event in summary:
                if pressed.count:
                    engine.cancel()
                if isinstance(event, AnswerDelta):
                    words += len(event.text.split())
                if not self._output.quiet:
                    line.show(f"summarising · {what} · {counted(words, 'word')}")
