"""Slash commands and settings, without a terminal."""

from __future__ import annotations

import pytest

from localmoe.chat.commands import (
    Chat,
    Command,
    ExitChat,
    Invocation,
    parse,
    standard_commands,
)
from localmoe.chat.conversation import Conversation, TurnDone
from localmoe.chat.session import Session
from localmoe.chat.settings import SETTINGS, Settings, change, show
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.engine.events import Sampling
from localmoe.errors import UsageError
from tests.chat.scripted import Reply, ScriptedEngine


def make_chat(*replies: Reply) -> Chat:
    engine = ScriptedEngine(list(replies))
    conversation = Conversation(engine, ChatTemplate(None), Session("s"), Settings())
    return Chat(conversation, context=100, about="nano")


def run(chat: Chat, line: str) -> str:
    invocation = parse(line)
    assert invocation is not None
    return standard_commands().dispatch(chat, invocation)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/help", Invocation("help", "")),
        (" /SET temp  0.5 ", Invocation("set", "temp  0.5")),
        ("/system two\nlines", Invocation("system", "two\nlines")),
        ("/", Invocation("", "")),
        ("/?", Invocation("?", "")),
        ("/etc/hosts is what?", None),
        ("hello /help", None),
        ("//", None),
        ("", None),
    ],
)
def test_parse(line: str, expected: Invocation | None) -> None:
    """A slash and a word is a command; a path or anything else is a message."""
    assert parse(line) == expected


def test_unknown_command_names_the_nearest() -> None:
    """A typo is not sent to the model."""
    with pytest.raises(UsageError, match="Did you mean /stats") as caught:
        run(make_chat(), "/stat")
    assert "/help" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="Did you mean /system"):
        run(make_chat(), "/sistem x")


def test_help_lists_every_command() -> None:
    """The list, one command, an alias, a name that is none."""
    text = run(make_chat(), "/help")
    assert all(f"/{name}" in text for name in standard_commands().commands)
    assert "settings" in run(make_chat(), "/help set")
    assert "/quit" in run(make_chat(), "/help /exit")
    with pytest.raises(UsageError):
        run(make_chat(), "/help nonsense")


def test_set_changes_sampling_and_the_rest() -> None:
    """``NAME VALUE`` and ``NAME=VALUE``; the next request has it."""
    chat = make_chat(["x"])
    assert run(chat, "/set temp 0") == "temp 0"
    assert run(chat, "/set seed=7") == "seed 7"
    assert run(chat, "/set max_tokens 5") == "max_tokens 5"
    list(chat.conversation.ask("hi"))
    engine = chat.conversation.engine
    assert isinstance(engine, ScriptedEngine)
    assert engine.requests[0].sampling == Sampling(temperature=0, seed=7)
    assert engine.requests[0].max_tokens == 5


def test_set_without_a_value_shows() -> None:
    """One value, or all of them with what they may be."""
    assert run(make_chat(), "/set top_k") == "top_k 40"
    everything = run(make_chat(), "/set")
    assert all(name in everything for name in SETTINGS)


def test_set_think_says_when_it_cannot() -> None:
    """A model without control over thinking is told of at once."""
    assert "no control" in run(make_chat(), "/set think high")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set temp hot", "a number from 0"),
        ("/set temp nan", "a number from 0"),
        ("/set top_k 1.5", "whole number"),
        ("/set think loudly", "auto, off"),
        ("/set tmep 1", "Did you mean temp"),
        ("/set plain maybe", "on or off"),
    ],
)
def test_wrong_settings(line: str, words: str) -> None:
    """The error says what would be right, and nothing changes."""
    chat = make_chat()
    with pytest.raises(UsageError, match=words):
        run(chat, line)
    assert chat.conversation.settings == Settings()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shown_value_can_be_typed(name: str) -> None:
    """What ``/set`` shows is what ``/set`` takes."""
    settings = Settings(Sampling(0.5, 10, 0.9, 0.1, 1.1, 3), 9, ThinkLevel.LOW, plain=True)
    typed = show(settings, name)
    assert typed != show(Settings(), name)
    assert show(change(Settings(), name, typed), name) == typed


def test_system() -> None:
    """Shows, sets and removes the system prompt."""
    chat = make_chat()
    assert run(chat, "/system") == "s"
    run(chat, "/system Be brief.")
    assert chat.conversation.session.prompt_messages()[0].content == "Be brief."
    run(chat, "/system -")
    assert chat.conversation.session.prompt_messages() == ()


def test_stats_and_clear() -> None:
    """Figures of the last turn; clearing forgets them and the messages."""
    chat = make_chat(["a", "b"])
    assert "nothing asked yet" in run(chat, "/stats")
    *_, done = chat.conversation.ask("one two")
    assert isinstance(done, TurnDone)
    chat.last = done
    text = run(chat, "/stats")
    assert "2 tokens at 10.0 tok/s" in text
    assert f"{done.usage.total}/100" in text
    run(chat, "/clear")
    assert chat.conversation.session.messages == ()
    assert "nothing asked yet" in run(chat, "/stats")


def test_exit() -> None:
    """Leaving is an exception that only the loop catches."""
    for line in ("/exit", "/quit", "/q"):
        with pytest.raises(ExitChat):
            run(make_chat(), line)


def test_completion() -> None:
    """Command names, then their arguments, with the number of letters they replace."""
    registry = standard_commands()
    assert registry.complete("/st") == [("/stats", 3)]
    assert ("/help", 1) in registry.complete("/")
    assert registry.complete("/set t") == [("temp", 1), ("top_k", 1), ("top_p", 1), ("think", 1)]
    assert registry.complete("/set think h") == [("high", 1)]
    assert registry.complete("hello /st") == []
    assert registry.complete("/nonsense x") == []


def test_more_commands_can_be_added() -> None:
    """A caller's command is found, helped and completed like the others."""
    registry = standard_commands()
    registry.add(Command("shout", "TEXT", "louder", lambda chat, text: text.upper()))
    assert registry.dispatch(make_chat(), Invocation("shout", "hi")) == "HI"
    assert "/shout TEXT" in registry.help()
    assert registry.complete("/sh") == [("/shout", 3)]
