"""The turns of a chat, kept as the list of changes that led to them.

Every change is a plain record. A session is what they add up to, so a log of them
(``localmoe.chat.store``) brings it back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from localmoe.chat.attachments import Attachment, with_files

EARLIER = "Summary of the conversation so far:\n"  # before the summary, in the system text


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model makes; ``arguments`` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message. ``reasoning``, ``interrupted`` and ``calls`` belong to assistant messages."""

    role: str  # "system" | "user" | "assistant" | "tool"
    content: str
    reasoning: str = ""
    interrupted: bool = False  # the answer was stopped by the user or by a crash
    files: tuple[Attachment, ...] = ()  # of user messages
    calls: tuple[ToolCall, ...] = ()
    result_of: ToolCall | None = None  # of tool messages

    def for_prompt(self) -> Message:
        """The message as it is sent: the text of its files is put before its own."""
        content = with_files(self.content, self.files)
        return dataclasses.replace(self, content=content, interrupted=False, files=())

    @property
    def unsaid(self) -> bool:
        """Whether the answer was stopped before its first word."""
        return self.interrupted and not self.content and not self.reasoning


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer, with the model, the time and the tokens that it took."""

    question: Message
    answer: Message
    model: str = ""
    at: str = ""  # when it ended: ISO 8601, UTC
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Undone:
    """The last turn was taken back."""


@dataclass(frozen=True, slots=True)
class Cleared:
    """All turns were forgotten; the system text stayed."""


@dataclass(frozen=True, slots=True)
class SystemText:
    text: str


@dataclass(frozen=True, slots=True)
class Shortened:
    """The oldest ``turns`` are not sent any more, but ``summary`` in their place (if any)."""

    turns: int
    summary: str = ""


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """From here on this model answers. ``source`` is what brings it back: a path or a name."""

    name: str
    source: str


Change = Turn | Undone | Cleared | SystemText | Shortened | ModelUsed
Journal = Callable[[Change], None]


class Session:
    """The system text and the turns after it. ``journal`` is called with each change."""

    def __init__(self, system: str = "", changes: Iterable[Change] = ()) -> None:
        self.journal: Journal | None = None
        self._system = system
        self._turns: list[Turn] = []
        self._skipped = 0
        self._summary = ""
        self._model: ModelUsed | None = None
        for change in changes:
            self._apply(change)

    @property
    def system(self) -> str:
        return self._system

    @system.setter
    def system(self, text: str) -> None:
        if text != self._system:
            self._change(SystemText(text))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All turns but those that were taken back; the oldest may not be sent any more."""
        return tuple(self._turns)

    @property
    def skipped(self) -> int:
        """How many of the oldest turns are not sent any more."""
        return self._skipped

    @property
    def summary(self) -> str:
        """What is sent in place of the skipped turns."""
        return self._summary

    @property
    def model(self) -> ModelUsed | None:
        """The model that answers, or answered last."""
        return self._model

    @property
    def messages(self) -> tuple[Message, ...]:
        """Questions and answers in order."""
        return tuple(m for turn in self._turns for m in (turn.question, turn.answer))

    def prompt_messages(
        self, question: Message | None = None, *, skip: int | None = None
    ) -> tuple[Message, ...]:
        """What the chat template gets; with ``skip``, as if that many turns were skipped."""
        skipped = self._skipped if skip is None else max(skip, self._skipped)
        earlier = EARLIER + self._summary if self._summary else ""
        system = "\n\n".join(filter(None, (self._system, earlier)))
        first = (Message("system", system),) if system else ()
        turns = self._turns[skipped:]
        said = (m.for_prompt() for turn in turns for m in (turn.question, turn.answer))
        last = (question.for_prompt(),) if question else ()
        return (*first, *said, *last)

    def add(self, turn: Turn) -> None:
        self._change(turn)

    def undo(self) -> Turn | None:
        """Take back the last turn and return it."""
        if not self._turns:
            return None
        last = self._turns[-1]
        self._change(Undone())
        return last

    def put_back(self, turn: Turn, left: int) -> bool:
        """Bring back a ``turn`` that was taken back for a new one, unless that has begun.

        ``left`` is the number of turns there were without either. Returns whether it came back.
        """
        if len(self._turns) > left and self._turns[-1].answer.unsaid:
            self.undo()
        if len(self._turns) > left:
            return False
        self.add(turn)
        return True

    def clear(self) -> None:
        """Forget the turns; the system text stays."""
        if self._turns:
            self._change(Cleared())

    def shorten(self, turns: int, summary: str = "") -> None:
        """From now on leave out the oldest ``turns``, with ``summary`` in their place."""
        self._change(Shortened(turns, summary))

    def use(self, model: ModelUsed) -> None:
        if model != self._model:
            self._change(model)

    def changes(self) -> tuple[Change, ...]:
        """The shortest list of changes from which this session can be made again."""
        system = (SystemText(self._system),) if self._system else ()
        model = (self._model,) if self._model else ()
        shortened = (Shortened(self._skipped, self._summary),) if self._skipped else ()
        return (*model, *system, *self._turns, *shortened)

    def _change(self, change: Change) -> None:
        self._apply(change)
        if self.journal is not None:
            self.journal(change)

    def _apply(self, change: Change) -> None:
        match change:
            case Turn():
                self._turns.append(change)
            case Undone():
                del self._turns[-1:]
                self._skipped = min(self._skipped, len(self._turns))
            case Cleared():
                self._turns.clear()
                self._skipped, self._summary = 0, ""
            case SystemText(text):
                self._system = text
            case Shortened(turns, summary):
                self._skipped = min(max(turns, 0), len(self._turns))
                self._summary = summary
            case ModelUsed():
                self._model = change
