"""Slash commands and settings, without a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localmoe.chat.builtin import add_builtin
from localmoe.chat.commands import (
    Again,
    Command,
    ExitChat,
    Invocation,
    Registry,
    Result,
    parse,
)
from localmoe.chat.context import Overflow
from localmoe.chat.conversation import Conversation
from localmoe.chat.events import TurnDone
from localmoe.chat.session import ModelUsed, Session
from localmoe.chat.session_commands import add_session_commands
from localmoe.chat.settings import SETTINGS, Settings, change, show
from localmoe.chat.state import Chat
from localmoe.chat.store import Store
from localmoe.chat.template import ChatTemplate
from localmoe.chat.thinking import ThinkLevel
from localmoe.engine.events import Sampling
from localmoe.errors import StorageError, UsageError
from tests.chat.scripted import Reply, ScriptedEngine


def make_chat(*replies: Reply, store: Store | None = None) -> Chat:
    """A chat over a scripted engine; with a store it is written there."""
    engine = ScriptedEngine(list(replies))
    conversation = Conversation(engine, ChatTemplate(None), Session("s"), Settings())

    def ready() -> Conversation:
        conversation.session, conversation.settings = chat.session, chat.settings
        return conversation

    chat = Chat(ready=ready, context=100, about="nano", session=Session("s"), store=store)
    if store is not None:
        chat.begin()
    return chat


def commands() -> Registry:
    registry = Registry()
    add_builtin(registry)
    add_session_commands(registry)
    return registry


def run(chat: Chat, line: str) -> Result:
    invocation = parse(line)
    assert invocation is not None
    return commands().dispatch(chat, invocation)


def text_of(chat: Chat, line: str) -> str:
    result = run(chat, line)
    assert isinstance(result, str)
    return result


def ask(chat: Chat, text: str) -> None:
    *_, done = chat.ready().ask(text)
    assert isinstance(done, TurnDone)
    chat.last = done


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


def test_an_argument_too_many_is_an_error() -> None:
    """It is not silently ignored."""
    with pytest.raises(UsageError, match="/regen takes no argument"):
        run(make_chat(), "/regen please")


def test_help_lists_every_command() -> None:
    """The list with the keys, one command, an alias, a name that is none."""
    text = text_of(make_chat(), "/help")
    assert all(f"/{name}" in text for name in commands().commands)
    assert "Ctrl-C" in text
    assert "settings" in text_of(make_chat(), "/help set")
    assert "/quit" in text_of(make_chat(), "/help /exit")
    with pytest.raises(UsageError):
        run(make_chat(), "/help nonsense")


def test_set_changes_sampling_and_the_rest() -> None:
    """``NAME VALUE`` and ``NAME=VALUE``; the next request has it."""
    chat = make_chat(["x"])
    assert run(chat, "/set temp 0") == "temp 0"
    assert run(chat, "/set seed=7") == "seed 7"
    assert run(chat, "/set max_tokens 5") == "max_tokens 5"
    ask(chat, "hi")
    engine = chat.ready().engine
    assert isinstance(engine, ScriptedEngine)
    assert engine.requests[0].sampling == Sampling(temperature=0, seed=7)
    assert engine.requests[0].max_tokens == 5


def test_what_was_set_outlives_the_model() -> None:
    """Another model brings its own defaults; what was typed in goes over them."""
    chat = make_chat()
    run(chat, "/set temp 0")
    chat.model_settings(Settings(Sampling(temperature=0.6, top_k=20)))
    assert (chat.settings.sampling.temperature, chat.settings.sampling.top_k) == (0, 20)


def test_set_without_a_value_shows() -> None:
    """One value with what it may be, or all of them."""
    assert text_of(make_chat(), "/set top_k").startswith("top_k 40 (")
    everything = text_of(make_chat(), "/set")
    assert all(name in everything for name in SETTINGS)


def test_think() -> None:
    """Levels by ``/think`` and ``/set think``; a model without control over it is told of."""
    chat = make_chat()
    assert "no control" in text_of(chat, "/set think high")
    assert "auto, off, low, medium, high" in text_of(chat, "/think")
    run(chat, "/think low")
    assert chat.settings.think is ThinkLevel.LOW
    with pytest.raises(UsageError, match="auto, off"):
        run(chat, "/think much")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/set temp hot", "a number from 0"),
        ("/set temp nan", "a number from 0"),
        ("/set top_k 1.5", "whole number"),
        ("/set think loudly", "auto, off"),
        ("/set tmep 1", "Did you mean temp"),
        ("/set plain maybe", "on or off"),
        ("/set overflow explode", "ask, drop, summarise, stop"),
    ],
)
def test_wrong_settings(line: str, words: str) -> None:
    """The error says what would be right, and nothing changes."""
    chat = make_chat()
    with pytest.raises(UsageError, match=words):
        run(chat, line)
    assert chat.settings == Settings()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shown_value_can_be_typed(name: str) -> None:
    """What ``/set`` shows is what ``/set`` takes."""
    sampling = Sampling(
        0.5, 10, 0.9, 0.1, 1.1, 20, presence_penalty=0.5, frequency_penalty=0.25, seed=3
    )
    settings = Settings(sampling, 9, ThinkLevel.LOW, plain=True, overflow=Overflow.DROP)
    typed = show(settings, name)
    assert typed != show(Settings(), name)
    assert show(change(Settings(), name, typed), name) == typed


def test_system() -> None:
    """Shows, sets and removes the system prompt."""
    chat = make_chat()
    assert run(chat, "/system") == "s"
    run(chat, "/system Be brief.")
    assert chat.session.prompt_messages()[0].content == "Be brief."
    run(chat, "/system -")
    assert chat.session.prompt_messages() == ()


def test_stats_and_clear() -> None:
    """Figures of the last turn; clearing forgets them and the messages."""
    chat = make_chat(["a", "b"])
    assert "nothing asked yet" in text_of(chat, "/stats")
    ask(chat, "one two")
    text = text_of(chat, "/stats")
    assert chat.last is not None
    assert "2 tokens at 10.0 tok/s" in text
    assert f"{chat.last.usage.total}/100" in text
    run(chat, "/clear")
    assert chat.session.messages == ()
    assert "nothing asked yet" in text_of(chat, "/stats")


def test_context_adds_up() -> None:
    """System, turns, attachments and what is free are the whole context."""
    chat = make_chat(["a", "b"])
    ask(chat, "one two three")
    lines = text_of(chat, "/context").splitlines()
    counts = [int(line.split()[0]) for line in lines if line[:9].strip().isdecimal()]
    assert sum(counts) == chat.context
    assert "1 turn" in "\n".join(lines)


def test_regen_and_undo() -> None:
    """Asking again needs a turn; undo takes back one or several and says from which on."""
    chat = make_chat(["a"], ["b"], ["c"])
    with pytest.raises(UsageError, match="nothing was asked"):
        run(chat, "/regen")
    with pytest.raises(UsageError, match="nothing to take back"):
        run(chat, "/undo")
    for text in ("first", "second", "third"):
        ask(chat, text)
    assert isinstance(run(chat, "/regen"), Again)
    assert "“third”" in text_of(chat, "/undo")
    assert "2 turns, from “first” on; 0 turns left" in text_of(chat, "/undo 7")
    with pytest.raises(UsageError, match="number of turns"):
        run(chat, "/undo all")


def test_read(tmp_path: Path) -> None:
    """A file is attached with its tokens; ``-`` takes it off; what is no text is refused."""
    chat = make_chat()
    with pytest.raises(UsageError, match="nothing is attached"):
        run(chat, "/read")
    (tmp_path / "a b.txt").write_text("one two three")
    text = text_of(chat, f"/read {tmp_path}/a b.txt")
    assert "a b.txt · 7 tokens of the context's 100" in text  # its name and its fence, too
    assert chat.files[0].text == "one two three"
    run(chat, "/read -")
    assert chat.files == []
    (tmp_path / "binary").write_bytes(b"\x7fELF\x00")
    for name, words in (("binary", "not text"), ("", "a folder"), ("gone", "no such file")):
        with pytest.raises(UsageError, match=words):
            run(chat, f"/read {tmp_path}/{name}")


def test_reasoning() -> None:
    """Shown or folded; anything else is an error."""
    chat = make_chat()
    run(chat, "/reasoning show")
    assert chat.show_reasoning
    run(chat, "/reasoning fold")
    assert not chat.show_reasoning
    assert "folded" in text_of(chat, "/reasoning")
    with pytest.raises(UsageError, match="show or fold"):
        run(chat, "/reasoning hide")


class TestSessions:
    def test_saved_listed_loaded_deleted(self, tmp_path: Path) -> None:
        """A name for this chat, back to it from another one, and away with it."""
        chat = make_chat(["a"], ["b"], store=Store(tmp_path))
        ask(chat, "about owls")
        automatic = chat.name
        assert "written as you talk" in text_of(chat, "/save")
        assert text_of(chat, "/save owls") == "this conversation is now owls"
        assert not Store(tmp_path).exists(automatic)
        run(chat, "/save more-owls")  # a name that was given is copied, not taken away
        assert Store(tmp_path).exists("owls")
        assert "* more-owls  " in text_of(chat, "/sessions")
        assert "1 turn  about owls" in text_of(chat, "/sessions")
        model = ModelUsed("qwen3-30b-a3b", "/models/qwen3.gguf")
        chat.session.use(model)
        assert "* more-owls     1 turn  qwen3-30b-a3b  about owls" in text_of(chat, "/sessions")
        assert "> about owls" in text_of(chat, "/load owls")
        ask(chat, "and more")
        assert len(chat.session.turns) == 2
        run(chat, "/load more-owls")
        assert len(chat.session.turns) == 1
        assert text_of(chat, "/sessions delete owls") == "owls is deleted"
        with pytest.raises(UsageError, match='no conversation "owls"'):
            run(chat, "/load owls")
        with pytest.raises(UsageError, match="is open"):
            run(chat, "/sessions delete more-owls")

    def test_clear_keeps_what_was_said(self, tmp_path: Path) -> None:
        """An automatic session is left, and the system prompt comes along."""
        chat = make_chat(["a"], ["b"], store=Store(tmp_path))
        chat.session.system = "be brief"
        ask(chat, "one")
        name = chat.name
        assert f"/load {name}" in text_of(chat, "/clear")
        assert (chat.session.turns, chat.session.system) == ((), "be brief")
        run(chat, f"/load {name}")
        assert len(chat.session.turns) == 1

    def test_a_named_session_is_cleared_in_place(self, tmp_path: Path) -> None:
        """Who comes back to the name finds what came after."""
        store = Store(tmp_path)
        chat = make_chat(["a"], ["b"], store=store)
        chat.open_log(store.open("work"))
        ask(chat, "old")
        run(chat, "/clear")
        ask(chat, "new")
        chat.begin()
        run(chat, "/load work")
        assert [turn.question.content for turn in chat.session.turns] == ["new"]

    def test_names_that_cannot_be(self, tmp_path: Path) -> None:
        """No path, nothing hidden, nothing that is there already."""
        chat = make_chat(["a"], store=Store(tmp_path))
        ask(chat, "x")
        run(chat, "/save good")
        for name in ("../up", "a/b", ".hidden", "-x", "a b", "x" * 81):
            with pytest.raises(UsageError, match="cannot be the name"):
                run(chat, f"/save {name}")
        with pytest.raises(UsageError, match="already"):
            run(chat, "/save good")

    def test_export(self, tmp_path: Path) -> None:
        """Markdown for people, JSON for programs; private; a file is replaced with ``!`` only."""
        chat = make_chat(["an ", "owl"], ["a mouse"], store=Store(tmp_path / "s"))
        ask(chat, "who?")
        run(chat, f"/save {tmp_path}/talk.md")
        written = (tmp_path / "talk.md").read_text()
        assert "> who?" in written and "\nan owl\n" in written
        run(chat, f"/save {tmp_path}/talk.json")
        document = json.loads((tmp_path / "talk.json").read_text())
        assert document["turns"][0]["answer"] == "an owl"
        assert (tmp_path / "talk.json").stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError, match="exists already") as refused:
            run(chat, f"/save {tmp_path}/talk.md")
        assert refused.value.hint == f"/save {tmp_path}/talk.md ! replaces it"
        ask(chat, "and who else?")
        for replaced in ("talk.md !", "talk.md!", "talk.json !"):
            assert "2 turns exported" in text_of(chat, f"/save {tmp_path}/{replaced}")
        assert "> and who else?" in (tmp_path / "talk.md").read_text()
        assert len(json.loads((tmp_path / "talk.json").read_text())["turns"]) == 2
        with pytest.raises(StorageError):
            run(chat, "/save /proc/nowhere/talk.md")

    def test_without_history(self, tmp_path: Path) -> None:
        """Nothing to list or load; an explicit name is still written."""
        chat = make_chat(["a"])
        ask(chat, "x")
        for line in ("/sessions", "/load x"):
            with pytest.raises(UsageError, match="--no-history"):
                run(chat, line)
        assert "nothing is written" in text_of(chat, "/save")


def test_exit() -> None:
    """Leaving is an exception that only the loop catches."""
    for line in ("/exit", "/quit", "/q"):
        with pytest.raises(ExitChat):
            run(make_chat(), line)


def test_completion(tmp_path: Path) -> None:
    """Command names, then their arguments, with the number of letters they replace."""
    registry, chat = commands(), make_chat()
    assert registry.complete(chat, "/st") == [("/stats", 3)]
    assert ("/help", 1) in registry.complete(chat, "/")
    found = registry.complete(chat, "/set t")
    assert found == [("temp", 1), ("top_k", 1), ("top_p", 1), ("think", 1)]
    assert registry.complete(chat, "/set think h") == [("think high", 7)]
    assert registry.complete(chat, "hello /st") == []
    assert registry.complete(chat, "/nonsense x") == []
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a b.txt").touch()
    (tmp_path / ".hidden").touch()
    typed = f"{tmp_path}/"
    assert registry.complete(chat, f"/read {typed}") == [(f"{typed}notes/", len(typed))]
    deeper = f"{typed}notes/a"
    assert registry.complete(chat, f"/read {deeper}") == [(f"{deeper} b.txt", len(deeper))]


def test_more_commands_can_be_added() -> None:
    """A caller's command is found, helped and completed like the others."""
    registry = commands()
    registry.add(Command("shout", "TEXT", "louder", lambda chat, text: text.upper()))
    assert registry.dispatch(make_chat(), Invocation("shout", "hi")) == "HI"
    assert "/shout TEXT" in registry.help()
    assert registry.complete(make_chat(), "/sh") == [("/shout", 3)]
