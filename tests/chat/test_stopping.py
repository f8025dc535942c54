"""Stop texts: where they count, and that they hold however the text was cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.conversation import Conversation
from localmoe.chat.events import TurnDone
from localmoe.chat.renderer import Renderer
from localmoe.chat.session import Session
from localmoe.chat.settings import Settings
from localmoe.chat.splitter import Answer, Reasoning
from localmoe.chat.stopping import StopTexts
from localmoe.chat.template import ChatTemplate
from tests.chat import templates
from tests.chat.scripted import Reply, ScriptedEngine

pytestmark = pytest.mark.process


def answered(chunks: list[str], *stops: str) -> tuple[str, bool]:
    """The answer that passes, and whether a text ended it."""
    texts = StopTexts(stops)
    pieces = [p for chunk in chunks for p in texts.feed(Answer(chunk))]
    pieces += texts.finish()
    return "".join(p.text for p in pieces if isinstance(p, Answer)), texts.met


@given(st.text("abEND ", max_size=40), st.data())
def test_any_chunking_ends_at_the_same_place(text: str, data: st.DataObject) -> None:
    """The answer is what stands before the first of the texts."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    begins = [at for stop in ("END", "ab") if (at := text.find(stop)) >= 0]
    expected = text[: min(begins)] if begins else text
    assert answered(chunks, "END", "ab") == (expected, bool(begins))


def test_what_began_like_one_is_given_out_in_the_end() -> None:
    assert answered(["the E", "N"], "END") == ("the EN", False)


def test_thinking_does_not_count() -> None:
    """Thinking passes whole, whatever it has in it."""
    texts = StopTexts(["END"])
    assert list(texts.feed(Reasoning("END of it"))) == [Reasoning("END of it")]
    assert not texts.met


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def turn(
    reply: Reply, renderer: Renderer, source: str | None = templates.CHATML
) -> tuple[TurnDone, ScriptedEngine]:
    engine = ScriptedEngine([reply])
    template = ChatTemplate(source, renderer=renderer)
    conversation = Conversation(engine, template, Session(), Settings(stop=("END",)))
    done = list(conversation.ask("go"))[-1]
    assert isinstance(done, TurnDone)
    return done, engine


def test_a_turn_ends_before_the_text(renderer: Renderer) -> None:
    """The reason is stop, the engine is told to stop, and thinking had the text in it."""
    reply: Reply = ["<think>", "not END yet", "</think>", "one EN", "D two", " three", " four"]
    done, _ = turn(reply, renderer)
    assert (done.answer, done.reasoning) == ("one ", "not END yet")
    assert done.finish_reason == "stop"
    assert done.usage.completion_tokens == 5  # with the one that completed the text


def test_a_turn_that_ends_like_the_beginning_of_one(renderer: Renderer) -> None:
    """Nothing is lost."""
    done, _ = turn(["one ", "EN"], renderer)
    assert (done.answer, done.finish_reason) == ("one EN", "stop")


def test_plain_text_has_no_thinking(renderer: Renderer) -> None:
    """There the texts count from the first word on."""
    done, _ = turn(["<think>", "one EN", "D", " two"], renderer, source=None)
    assert (done.answer, done.finish_reason) == ("<think>one ", "stop")


def test_a_control_token_may_be_named(renderer: Renderer) -> None:
    """It is not shown, but ends an answer like a text; text that spells it in pieces does, too."""
    engine = ScriptedEngine([["one", "<|eot|>", "two"]], specials=("<|eot|>",))
    template = ChatTemplate(templates.CHATML, renderer=renderer)
    conversation = Conversation(engine, template, Session(), Settings(stop=("<|eot|>",)))
    done = list(conversation.ask("go"))[-1]
    assert isinstance(done, TurnDone)
    assert (done.answer, done.finish_reason) == ("one", "stop")
