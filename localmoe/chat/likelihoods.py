"""Which tokens a piece of the answer came of, with the figures that were asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from localmoe.chat.events import AnswerDelta, ChatEvent
from localmoe.engine.events import Token


class Likelihoods:
    """Gives each ``AnswerDelta`` its tokens. Those of marks and of other events go to none.

    Text may be held back for a while, since a mark might begin with it: so do its tokens.
    """

    def __init__(self) -> None:
        self._held: list[Token] = []

    def of(self, token: Token, events: Iterable[ChatEvent]) -> Iterator[ChatEvent]:
        """The events that ``token`` led to; it has no figures where nobody asked for them."""
        if token.logprob is not None and not token.control:
            self._held.append(token)
        yield from self.rest(events)

    def rest(self, events: Iterable[ChatEvent]) -> Iterator[ChatEvent]:
        """Events that come without another token."""
        for event in events:
            if isinstance(event, AnswerDelta) and self._held:
                event = replace(event, tokens=tuple(self._held[self._first_of(event.text) :]))
            self._held = []
            yield event

    def _first_of(self, text: str) -> int:
        """Where the tokens of ``text`` begin: before it there may be those of a mark."""
        missing, at = len(text), len(self._held)
        while at and missing > 0:
            at -= 1
            missing -= len(self._held[at].text)
        while at and not self._held[at - 1].text:  # the first bytes of a character
            at -= 1
        return at
