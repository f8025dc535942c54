"""Room for the next turn of a conversation too long to be summed up in one go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from localmoe.chat.context import Overflow
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import ChatEvent
from localmoe.chat.overflow import make_room
from localmoe.chat.renderer import Renderer
from localmoe.chat.session import Message, Session, Turn
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate
from tests.chat import templates
from tests.chat.scripted import ScriptedEngine

pytestmark = pytest.mark.process


@dataclass
class Decided:
    """A ``Host`` that has decided."""

    choice: Overflow
    said: list[str] = field(default_factory=list)
    summed_up: list[int] = field(default_factory=list)

    def choose(self, turns: int) -> Overflow:
        return self.choice

    def warn(self, text: str) -> None:
        self.said.append(text)

    note = warn

    def play(self, turns: int, summary: Iterator[ChatEvent]) -> None:
        self.summed_up.append(turns)
        list(summary)


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def conversation_of(
    renderer: Renderer, *turns: int, replies: int = 9
) -> tuple[Conversation, ScriptedEngine]:
    """A conversation whose questions have so many words."""
    engine = ScriptedEngine([["summed up"] for _ in range(replies)])
    template = ChatTemplate.from_model(templates.CHATML, "<s>", "</s>", renderer=renderer)
    session = Session()
    for words in turns:
        session.add(Turn(Message("user", "word " * words), Message("assistant", "yes")))
    return Conversation(engine, template, session, Settings()), engine


def test_a_summary_is_made_of_what_fits(renderer: Renderer) -> None:
    """One turn after the other where all of them are too much; no prompt is too long for it."""
    conversation, engine = conversation_of(renderer, 150, 150, 150, 20)
    host = Decided(Overflow.SUMMARISE)
    assert make_room(conversation, Message("user", "new " * 60), 400, host) is None
    assert conversation.session.summary == "summed up"
    assert host.summed_up == [1, 2]
    assert all(len(request.prompt.split()) + 64 <= 400 for request in engine.requests)


def test_a_turn_too_long_to_be_summed_up(renderer: Renderer) -> None:
    """Nothing is sent, nothing has changed, and it is said what would help."""
    conversation, engine = conversation_of(renderer, 380, 10)
    host = Decided(Overflow.SUMMARISE)
    left = make_room(conversation, Message("user", "new " * 60), 400, host)
    assert left is not None and left.drop == 1
    assert engine.requests == [] and conversation.session.skipped == 0
    assert "/set overflow drop" in host.said[-1]


def test_an_earlier_summary_stays_when_turns_are_dropped(renderer: Renderer) -> None:
    conversation, _ = conversation_of(renderer, 100, 100, 100, 100)
    conversation.session.shorten(1, "what was before")
    host = Decided(Overflow.DROP)
    assert make_room(conversation, Message("user", "new " * 60), 400, host) is None
    assert conversation.session.skipped > 1
    assert conversation.session.summary == "what was before"


def test_what_never_fits_costs_no_turn(renderer: Renderer) -> None:
    conversation, _ = conversation_of(renderer, 100, 100)
    left = make_room(conversation, Message("user", "new " * 500), 400, Decided(Overflow.DROP))
    assert left is not None and left.drop is None
    assert conversation.session.skipped == 0
