"""The turn: events in order, and a session that is right after every way a turn can end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from localmoe.chat.attachments import Attachment
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import AnswerDelta, ReasoningDelta, TurnDone
from localmoe.chat.renderer import Renderer
from localmoe.chat.sampling import default_sampling
from localmoe.chat.session import Message, Session, Shortened, Turn
from localmoe.chat.settings import Settings
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.engine.events import PrefillProgress, Sampling
from localmoe.errors import ContextOverflowError, EngineCrashError, EngineError, TemplateError
from localmoe.facts.model import Value
from tests.chat import templates
from tests.chat.scripted import Reply, ScriptedEngine, collect

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer() as shared:
        yield shared


def conversation(
    renderer: Renderer, *replies: Reply, source: str | None = templates.CHATML, system: str = ""
) -> tuple[Conversation, ScriptedEngine]:
    engine = ScriptedEngine(list(replies))
    template = ChatTemplate.from_model(source, "<s>", "</s>", renderer=renderer)
    return Conversation(engine, template, Session(system), Settings(Sampling(seed=1))), engine


def test_a_turn(renderer: Renderer) -> None:
    """Progress, reasoning, answer, result, in this order; the session has both messages."""
    chat, engine = conversation(renderer, ["<think>\nadd", "</thi", "nk>\n\nFo", "ur"])
    events = list(chat.ask("2+2?"))
    kinds = [type(event) for event in events]
    assert kinds == [PrefillProgress, ReasoningDelta, AnswerDelta, AnswerDelta, TurnDone]
    assert collect(events, ReasoningDelta) == "add"
    assert collect(events, AnswerDelta) == "Four"
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert (done.finish_reason, done.answer, done.reasoning) == ("stop", "Four", "add")
    assert (done.usage.completion_tokens, done.usage.reasoning_tokens) == (4, 1)
    assert done.timings.decode_tps == 10.0
    assert chat.session.messages == (
        Message("user", "2+2?"),
        Message("assistant", "Four", "add"),
    )
    request = engine.requests[0]
    assert request.prompt == "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    assert request.prompt[request.stable_chars :] == "<|im_start|>assistant\n"
    assert request.sampling.seed == 1


def test_second_turn_sees_the_first(renderer: Renderer) -> None:
    """System text and both messages are in the next prompt."""
    chat, engine = conversation(renderer, ["one"], ["two"], system="Count.")
    list(chat.ask("a"))
    list(chat.ask("b"))
    contents = [line.split("<|im_end|>")[0] for line in engine.requests[1].prompt.split("\n")[1::2]]
    assert contents == ["Count.", "a", "one", "b", ""]


def test_plain_completion_splits_nothing_off(renderer: Renderer) -> None:
    """Without a template the text is continued as it is, leading blanks included."""
    chat, engine = conversation(renderer, ["  in", " 1900"], source=None)
    events = list(chat.ask("Born"))
    assert engine.requests[0].prompt == "Born"
    assert collect(events, AnswerDelta) == "  in 1900"


def test_length(renderer: Renderer) -> None:
    """A token limit reaches the engine and its reason reaches the reader."""
    chat, _ = conversation(renderer, ["a", "b", "c"])
    chat.settings = Settings(max_tokens=2)
    *_, done = chat.ask("x")
    assert isinstance(done, TurnDone)
    assert (done.finish_reason, done.answer) == ("length", "ab")


def test_cancel_keeps_the_partial_answer(renderer: Renderer) -> None:
    """A cancelled turn ends with its result, and the message is marked."""
    chat, engine = conversation(renderer, ["one ", "two ", "three"])
    events = []
    for event in chat.ask("count"):
        events.append(event)
        if isinstance(event, AnswerDelta):
            engine.cancel()
    done = events[-1]
    assert isinstance(done, TurnDone)
    assert done.finish_reason == "interrupted"
    assert chat.session.messages[-1] == Message("assistant", "one ", interrupted=True)


def test_cancel_before_the_first_word_keeps_the_turn(renderer: Renderer) -> None:
    """Stopped during prefill: the question stays, with an empty marked answer."""
    chat, engine = conversation(renderer, ["one"])
    for event in chat.ask("count"):
        if isinstance(event, PrefillProgress):
            engine.cancel()
    assert chat.session.messages == (
        Message("user", "count"),
        Message("assistant", "", interrupted=True),
    )


def test_closing_the_events_cancels(renderer: Renderer) -> None:
    """A reader that goes away stops the engine; what it saw is kept once."""
    chat, engine = conversation(renderer, ["one ", "two"])
    events = chat.ask("count")
    assert isinstance(next(events), PrefillProgress)
    assert next(events) == AnswerDelta("one ")
    events.close()
    assert engine.cancelled.is_set()
    assert chat.session.messages[1:] == (Message("assistant", "one ", interrupted=True),)


def test_closing_after_the_end_changes_nothing(renderer: Renderer) -> None:
    """The finished message is not written twice."""
    chat, _ = conversation(renderer, ["one"])
    events = chat.ask("count")
    for event in events:
        if isinstance(event, TurnDone):
            break
    events.close()
    assert chat.session.messages == (Message("user", "count"), Message("assistant", "one"))


@pytest.mark.parametrize("error", [ContextOverflowError("700 of 512"), EngineCrashError("gone")])
def test_an_error_before_the_first_word_changes_nothing(
    renderer: Renderer, error: EngineError
) -> None:
    """The session is as it was, and the next turn works."""
    chat, _ = conversation(renderer, ["hi"], [error], ["again"])
    list(chat.ask("a"))
    before = chat.session.messages
    with pytest.raises(type(error)):
        list(chat.ask("b"))
    assert chat.session.messages == before
    assert collect(chat.ask("c"), AnswerDelta) == "again"


def test_a_crash_in_the_answer_keeps_what_was_said(renderer: Renderer) -> None:
    """The words before the crash stay, marked."""
    chat, _ = conversation(renderer, ["half ", EngineCrashError("gone")])
    with pytest.raises(EngineCrashError):
        list(chat.ask("a"))
    assert chat.session.messages[-1] == Message("assistant", "half ", interrupted=True)


def test_a_refused_template_changes_nothing(renderer: Renderer) -> None:
    """The engine is not asked, the session is as it was."""
    chat, engine = conversation(renderer, source="{{ raise_exception('no') }}")
    with pytest.raises(TemplateError):
        list(chat.ask("a"))
    assert chat.session.messages == ()
    assert engine.requests == []


def test_think_level_reaches_the_prompt(renderer: Renderer) -> None:
    """The level is an argument of the template."""
    chat, engine = conversation(renderer, ["x"], source=templates.SWITCHED)
    chat.settings = Settings(think=ThinkLevel.OFF)
    list(chat.ask("a"))
    assert "</think>" in engine.requests[0].prompt


def test_regenerating_replaces_the_answer(renderer: Renderer) -> None:
    """The same question again, with the same prompt; one turn stays one turn."""
    chat, engine = conversation(renderer, ["one"], ["two"])
    list(chat.ask("count", [Attachment("a.txt", "attached")]))
    assert collect(chat.regenerate(), AnswerDelta) == "two"
    assert engine.requests[0].prompt == engine.requests[1].prompt
    assert "attached" in engine.requests[1].prompt
    assert [m.content for m in chat.session.messages] == ["count", "two"]


def test_regenerating_in_vain_keeps_the_answer(renderer: Renderer) -> None:
    """An error before the first word leaves the old answer where it was."""
    chat, _ = conversation(renderer, ["one"], [EngineCrashError("gone")])
    list(chat.ask("count"))
    with pytest.raises(EngineCrashError):
        list(chat.regenerate())
    assert [m.content for m in chat.session.messages] == ["count", "one"]


def test_regenerating_that_is_stopped(renderer: Renderer) -> None:
    """Before the first word the old answer stays; after it the new one does, marked."""
    chat, engine = conversation(renderer, ["one"], ["never said"], ["two ", "three"])
    list(chat.ask("count"))
    for kind, left in ((PrefillProgress, "one"), (AnswerDelta, "two ")):
        for event in chat.regenerate():
            if isinstance(event, kind):
                engine.cancel()
        assert isinstance(event, TurnDone) and event.finish_reason == "interrupted"
        (turn,) = chat.session.turns
        assert turn.answer.content == left
    assert turn.answer.interrupted


def test_a_summary_takes_the_place_of_the_oldest_turns(renderer: Renderer) -> None:
    """The model is asked about those turns alone; the next prompt has its words in their place."""
    chat, engine = conversation(renderer, ["1"], ["2"], ["3"], ["they counted"], ["4"], system="S")
    for text in ("a", "b", "c"):
        list(chat.ask(text))
    list(chat.summarise(2, 50))
    asked = engine.requests[3]
    assert "a<|im_end|>" in asked.prompt and "c<|im_end|>" not in asked.prompt
    assert asked.max_tokens == 50
    list(chat.ask("d"))
    prompt = engine.requests[4].prompt
    assert "they counted" in prompt and "S" in prompt
    assert "user\na<" not in prompt and "user\nc<" in prompt
    assert len(chat.session.turns) == 4  # nothing is lost


def test_an_interrupted_summary_changes_nothing(renderer: Renderer) -> None:
    """Half a summary is no summary."""
    chat, engine = conversation(renderer, ["1"], ["2"], ["they ", "counted"])
    list(chat.ask("a"))
    list(chat.ask("b"))
    for event in chat.summarise(1, 50):
        if isinstance(event, AnswerDelta):
            engine.cancel()
    assert (chat.session.skipped, chat.session.summary) == (0, "")


def test_tokens_of_the_next_prompt(renderer: Renderer) -> None:
    """What is counted is the rendered prompt, with as many turns left out as asked."""
    chat, _ = conversation(renderer, ["1"], ["2"])
    list(chat.ask("a b c"))
    list(chat.ask("d"))
    question = Message("user", "next")
    all_, one, none = (chat.prompt_tokens(question, skip=skip) for skip in range(3))
    assert all_ > one > none > 0


def make_turn(question: str, answer: str) -> Turn:
    return Turn(Message("user", question), Message("assistant", answer))


class TestSession:
    def test_undo(self) -> None:
        """Undo takes the last question and its answer, then the one before, then nothing."""
        first, second = make_turn("a", "b"), make_turn("c", "d")
        session = Session("s", [first, second])
        assert session.undo() == second
        assert session.undo() == first
        assert session.undo() is None
        assert session.prompt_messages() == (Message("system", "s"),)

    def test_clear_keeps_the_system_text(self) -> None:
        """Clearing forgets the conversation only."""
        session = Session("s", [make_turn("a", "b")])
        session.clear()
        assert session.system == "s"
        assert session.turns == ()

    def test_shortened(self) -> None:
        """Skipped turns are kept, but not sent; their summary is part of the system text."""
        session = Session("s", [make_turn("a", "b"), make_turn("c", "d")])
        session.shorten(1, "they spoke of a")
        contents = [m.content for m in session.prompt_messages(Message("user", "e"))]
        assert contents[0].startswith("s\n\n") and contents[0].endswith("they spoke of a")
        assert contents[1:] == ["c", "d", "e"]
        assert len(session.turns) == 2

    def test_undo_reaches_into_what_is_skipped(self) -> None:
        """Taking back more than what is sent leaves nothing skipped that is not there."""
        session = Session("", [make_turn("a", "b"), Shortened(1)])
        session.undo()
        assert session.skipped == 0

    def test_its_changes_make_it_again(self) -> None:
        """The fewest changes give the same session."""
        session = Session("s", [make_turn("a", "b"), make_turn("c", "d"), Shortened(1, "x")])
        again = Session(changes=session.changes())
        assert again.prompt_messages() == session.prompt_messages()
        assert again.turns == session.turns

    def test_files_are_a_part_of_the_prompt_only(self) -> None:
        """The message stays what was typed; the model gets the file in front of it, fenced."""
        file = Attachment("a.md", "```\ncode\n```\n")
        question = Message("user", "what?", files=(file,))
        (sent,) = Session().prompt_messages(question)
        assert sent.content == "a.md:\n````\n```\ncode\n```\n````\n\nwhat?"
        assert question.content == "what?"


class TestSampling:
    def test_values_of_the_file(self) -> None:
        """``general.sampling.*`` wins over the plain values."""
        metadata = {
            "general.sampling.temp": 0.6,
            "general.sampling.top_k": 20,
            "general.sampling.top_p": 1,
            "general.sampling.penalty_repeat": 1.05,
        }
        assert default_sampling(metadata) == Sampling(0.6, 20, 1.0, 0.05, 1.05)

    def test_nonsense_is_left_out(self) -> None:
        """Wrong types, infinities and values out of range do not reach the engine."""
        metadata: dict[str, Value] = {
            "general.sampling.temp": float("nan"),
            "general.sampling.top_k": "many",
            "general.sampling.top_p": 7.0,
            "general.sampling.min_p": True,
            "general.sampling.penalty_repeat": -1,
        }
        assert default_sampling(metadata) == Sampling()
