"""Make room for the next turn: old turns are left out or summed up, as the user or an option says.

Pure as far as ``Host`` is; the arithmetic is in ``localmoe.chat.context``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Protocol

from localmoe.chat.context import Overflow, Shortage, answer_room, find_shortage, larger_context
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import ChatEvent
from localmoe.chat.session import Message
from localmoe.errors import ContextOverflowError

ROUNDS = 3  # a summary takes room, too, and may have been of a part only
LEAST_SUMMARY, MOST_SUMMARY = 64, 400  # tokens


class Host(Protocol):
    """The front end: decides what happens, and shows messages and the summary as it is written."""

    def choose(self, turns: int) -> Overflow:
        """What to do with that many of the oldest turns; ``Overflow.ASK`` counts as stop."""

    def warn(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def play(self, turns: int, summary: Iterator[ChatEvent]) -> None:
        """Let the model write its summary of that many turns."""


def make_room(
    conversation: Conversation, question: Message, context: int, host: Host
) -> Shortage | None:
    """Leave out or sum up old turns until the question fits; None when it does, else the shortage.

    ``context`` is in tokens. Raises ``TemplateError``, ``EngineError``, and what ``host`` raises.
    """
    for _ in range(ROUNDS):
        shortage = _shortage(conversation, question, context)
        if shortage is None:
            return None
        host.warn(shortage.message)
        if shortage.drop is None or not _free(conversation, shortage, shortage.drop, host):
            return shortage
    return _shortage(conversation, question, context)


def too_long_alone(shortage: Shortage, trained: int) -> str:
    """What to do about a question that no other turn stands in the way of. ``trained``: tokens of
    context that the model was trained for, 0 if that is unknown.
    """
    return f"even alone it is too long: shorten it{larger_context(shortage.context, trained)}"


def not_sent(shortage: Shortage, trained: int) -> ContextOverflowError:
    """The error of a question that cannot be sent, and with which option it could be.

    ``trained`` as in ``too_long_alone``.
    """
    hint = "--overflow drop leaves the oldest turns out, --overflow summarise sums them up"
    return ContextOverflowError(
        shortage.message,
        hint=too_long_alone(shortage, trained) if shortage.drop is None else hint,
    )


def _shortage(conversation: Conversation, question: Message, context: int) -> Shortage | None:
    session = conversation.session

    @cache
    def count(skip: int) -> int:
        return conversation.prompt_tokens(question, skip=skip)

    room = answer_room(context, conversation.settings.max_tokens)
    return find_shortage(count, session.skipped, len(session.turns), context, room)


def _free(conversation: Conversation, shortage: Shortage, turns: int, host: Host) -> bool:
    """Leave the oldest ``turns`` out; False when that is not wanted, or did not work."""
    session = conversation.session
    choice = host.choose(turns - session.skipped)
    if choice is Overflow.SUMMARISE:
        return _summarise(conversation, turns, shortage.context, host)
    if choice is not Overflow.DROP:
        return False
    session.shorten(turns, session.summary)
    less = shortage.needed - shortage.after
    host.note(f"{_oldest(turns)} not sent any more: {less:,} tokens less")
    return True


def _summarise(conversation: Conversation, turns: int, context: int, host: Host) -> bool:
    """Sum up as many of the oldest ``turns`` as one prompt can hold."""
    session = conversation.session
    tokens = max(LEAST_SUMMARY, min(MOST_SUMMARY, context // 8))
    while turns > session.skipped and conversation.summary_tokens(turns, tokens) + tokens > context:
        turns -= 1
    if turns == session.skipped:
        host.note("too long to be summed up; /set overflow drop leaves the oldest turns out")
        return False
    host.play(turns, conversation.summarise(turns, tokens))
    if session.skipped < turns or not session.summary:
        host.note("no summary was made; nothing has changed")
        return False
    host.note(f"{_oldest(turns)} sent as a summary from now on (/context)")
    return True


def _oldest(turns: int) -> str:
    return "the oldest turn is" if turns == 1 else f"the {turns} oldest turns are"
