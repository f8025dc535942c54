"""What was sampled for a call, put back token for token when its client returns the history.

A client returns a call as name and arguments; the template writes it in its own way, with other
blank space, perhaps without the thinking. The model has read something else then, and all that
follows would be read again. So what it wrote is kept by the ids of its calls, with the prompt that
it answered. Pure, but for what it remembers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localmoe.chat.session import Message
from localmoe.engine.events import Span, Token, Written

if TYPE_CHECKING:  # imported late: see answering.py
    from localmoe.chat.calls.format import CallFormat

MOST_CHARACTERS = 32 << 20  # of all that is kept
TRIES = 2  # of the latest calls that are known


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in the making; ``data`` and ``written`` as in ``Request``."""

    text: str
    stable_chars: int
    data: tuple[Span, ...]
    written: tuple[Written, ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """One answer: the prompt as the template writes it and as it was read, and what came then."""

    canonical: str
    prompt: Prompt
    text: str
    data: tuple[Span, ...]
    tokens: tuple[int, ...]
    reasoning: str

    @property
    def size(self) -> int:
        """Characters, a token counted as four."""
        tokens = len(self.tokens) + sum(len(tokens) for *_, tokens in self.prompt.written)
        return len(self.canonical) + len(self.prompt.text) + len(self.text) + 4 * tokens


Render = Callable[[Sequence[Message]], Prompt]
"""The prompt for the next answer after these messages, as the template writes it."""


class Replay:
    """A model's answers with calls, by the ids of these; the ones made longest ago go first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Sampled] = OrderedDict()
        self._size = 0

    def remember(self, ids: Sequence[str], sampled: Sampled) -> None:
        for id_ in ids:
            self._forget(id_)
            self._kept[id_] = sampled
            self._size += sampled.size
        while self._size > MOST_CHARACTERS and self._kept:
            self._forget(next(iter(self._kept)))

    def _forget(self, id_: str) -> None:
        if (old := self._kept.pop(id_, None)) is not None:
            self._size -= old.size

    def _of(self, message: Message) -> Sampled | None:
        return self._kept.get(message.calls[0].id) if message.calls else None

    def with_reasoning(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages, with the thinking of known calls that their client has left out."""
        return tuple(
            replace(message, reasoning=known.reasoning)
            if not message.reasoning and (known := self._of(message))
            else message
            for message in messages
        )

    def put_back(
        self, messages: Sequence[Message], whole: Prompt, calls: CallFormat, render: Render
    ) -> Prompt:
        """``whole``, the prompt after ``messages``, with what was sampled in its place."""
        places = [at for at, message in enumerate(messages) if self._of(message)]
        for at in reversed(places[-TRIES:]):
            known = self._of(messages[at])
            assert known is not None
            if render(messages[:at]).text != known.canonical:
                continue  # another history than the one that was answered
            turn = render(messages[: at + 1])
            found = _joined(known, turn.text[: turn.stable_chars], whole, calls)
            if found is not None:
                return found
        return whole


def _joined(known: Sampled, turn: str, whole: Prompt, calls: CallFormat) -> Prompt | None:
    """What was read and sampled, and ``whole`` from the end of that turn on.

    None where the turn is not the beginning of ``whole``, or lacks the thinking that was sampled.
    """
    mark = (calls.end or calls.call_end).strip() or "}"
    end = turn.rfind(mark) + len(mark)
    written = known.text.rstrip()
    same = whole.text.startswith(turn) and end > len(mark) and written.endswith(mark)
    if not same or known.reasoning.strip() not in turn:
        return None
    begin = known.prompt.text + known.text
    shift = len(begin) - end
    lead = len(known.prompt.text)
    data = (
        *known.prompt.data,
        *((lead + start, lead + stop) for start, stop in known.data),
        *((start + shift, stop + shift) for start, stop in whole.data if start >= end),
    )
    stable = whole.stable_chars + shift if whole.stable_chars >= end else lead
    parts = (*known.prompt.written, (lead, len(begin), known.tokens))
    return Prompt(begin + whole.text[end:], stable, data, parts)


def sampled_tokens(tokens: Sequence[Token]) -> tuple[int, ...]:
    """The numbers of an answer's tokens; one with an unfinished character comes twice."""
    return tuple({token.tokens: token.token for token in tokens}.values())


def sampled_text(tokens: Sequence[Token]) -> tuple[str, tuple[Span, ...]]:
    """What the tokens of an answer spell, and what of it is text."""
    spans: list[Span] = []
    at = 0
    for token in tokens:
        end = at + len(token.text)
        if not token.special and token.text:
            joins = spans and spans[-1][1] == at
            spans[-1:] = [(spans[-1][0], end)] if joins else [*spans[-1:], (at, end)]
        at = end
    return "".join(token.text for token in tokens), tuple(spans)
