"""What was said so far: the messages of one chat, as plain records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``reasoning`` and ``interrupted`` belong to assistant messages."""

    role: str  # "system" | "user" | "assistant"
    content: str
    reasoning: str = ""
    interrupted: bool = False  # the answer was stopped by the user or by a crash


class Session:
    """User and assistant messages in turns, and the system text before them."""

    def __init__(self, system: str = "", messages: Sequence[Message] = ()) -> None:
        self.system = system
        self._messages = list(messages)

    @property
    def messages(self) -> tuple[Message, ...]:
        """Without the system message."""
        return tuple(self._messages)

    @property
    def turns(self) -> int:
        return sum(message.role == "user" for message in self._messages)

    def prompt_messages(self) -> tuple[Message, ...]:
        """What the chat template gets."""
        system = (Message("system", self.system),) if self.system else ()
        return (*system, *self._messages)

    def append(self, message: Message) -> None:
        self._messages.append(message)

    def undo(self) -> tuple[Message, ...]:
        """Take back the last turn (the last user message and all after it) and return it."""
        at = len(self._messages)
        while at and self._messages[at - 1].role != "user":
            at -= 1
        start = max(at - 1, 0)
        removed = tuple(self._messages[start:])
        del self._messages[start:]
        return removed

    def clear(self) -> None:
        """Forget the messages; the system text stays."""
        self._messages.clear()
