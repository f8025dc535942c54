"""A context that is full: nothing is cut but by a choice that was made, and told."""

from __future__ import annotations

from localmoe.chat.context import Overflow, Shortage, answer_room, find_shortage, surely_fits
from localmoe.chat.conversation import AnswerDelta, Conversation
from localmoe.chat.session import Message
from localmoe.chat.state import Chat
from localmoe.cli.chat_load import interrupts
from localmoe.cli.lines import Lines
from localmoe.cli.live import LiveLine
from localmoe.cli.output import Output

ROUNDS = 3  # a summary takes room, too, so that it may have to be looked at again
LEAST_SUMMARY, MOST_SUMMARY = 64, 400  # tokens


class Overflowing:
    """Makes room for the next turn, as the user wants it."""

    def __init__(self, chat: Chat, lines: Lines, output: Output) -> None:
        self._chat = chat
        self._lines = lines
        self._output = output

    def fits(self, conversation: Conversation, question: Message) -> bool:
        """Whether the question can be sent, after what had to go for it.

        Raises ``TemplateError``, ``EngineError``, and ``KeyboardInterrupt`` on Ctrl-C twice.
        """
        chat = self._chat
        room = answer_room(chat.context, chat.settings.max_tokens)
        size = len(question.for_prompt().content.encode())
        if chat.last and surely_fits(size, chat.last.usage.total, chat.context, room):
            return True
        for _ in range(ROUNDS):
            shortage = self._shortage(conversation, question, room)
            if shortage is None:
                return True
            self._output.warn(shortage.message)
            if shortage.drop is None:
                self._output.note("even alone it is too long: shorten it, or use a larger --ctx")
                return False
            if not self._free(conversation, shortage, shortage.drop):
                return False
        return False

    def _shortage(
        self, conversation: Conversation, question: Message, room: int
    ) -> Shortage | None:
        counted: dict[int, int] = {}

        def count(skip: int) -> int:
            if skip not in counted:
                counted[skip] = conversation.prompt_tokens(question, skip=skip)
            return counted[skip]

        session = conversation.session
        return find_shortage(count, session.skipped, len(session.turns), self._chat.context, room)

    def _free(self, conversation: Conversation, shortage: Shortage, turns: int) -> bool:
        """Make room by leaving out the oldest ``turns``; False when that is not wanted."""
        session = conversation.session
        choice = self._chat.settings.overflow
        if choice is Overflow.ASK:
            choice = self._choose(turns - session.skipped)
        if choice is Overflow.STOP:
            self._output.note("not sent; /clear begins anew, /set overflow has other choices")
            return False
        if choice is Overflow.SUMMARISE:
            return self._summarise(conversation, turns)
        session.shorten(turns)
        less = shortage.needed - shortage.after
        self._output.note(f"{_oldest(turns)} not sent any more: {less:,} tokens less")
        return True

    def _choose(self, turns: int) -> Overflow:
        if not self._lines.interactive:
            return Overflow.STOP
        what = "the oldest turn" if turns == 1 else f"the {turns} oldest turns"
        answer = self._lines.choose(f"{what}: [d]rop, [s]ummarise, or [Enter] to stop? ")
        found = {"d": Overflow.DROP, "s": Overflow.SUMMARISE}.get(answer.strip()[:1].lower())
        return found or Overflow.STOP

    def _summarise(self, conversation: Conversation, turns: int) -> bool:
        engine, session = conversation.engine, conversation.session
        tokens = max(LEAST_SUMMARY, min(MOST_SUMMARY, self._chat.context // 8))
        words = 0
        with (
            interrupts(engine.cancel, engine.cancel) as pressed,
            LiveLine(self._output.stderr) as line,
        ):
            for event in conversation.summarise(turns, tokens):
                if pressed.count:
                    engine.cancel()
                if isinstance(event, AnswerDelta):
                    words += len(event.text.split())
                if not self._output.quiet:
                    line.show(f"summarising · {turns} turns · {words} words")
        if session.skipped < turns or not session.summary:
            self._output.note("no summary was made; nothing has changed")
            return False
        self._output.note(f"{_oldest(turns)} sent as a summary from now on (/context)")
        return True


def _oldest(turns: int) -> str:
    return "the oldest turn is" if turns == 1 else f"the {turns} oldest turns are"
