"""The chat as people use it: the real program in a terminal, real engines, small models."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chat import templates
from tests.cli.chat.conftest import Spawn
from tests.cli.chat.terminal import CTRL_C, CTRL_D, Terminal
from tests.cli.command import environment

LONG = "A mixture of experts has many small networks and a router. " * 8
NEAR = 60  # tokens: a question, an answer and the marks around them; the notes have over 200
ArchFile = Callable[..., Path]


@pytest.fixture(scope="module")
def model(arch_file: ArchFile) -> Path:
    return arch_file("qwen3moe", template=templates.CHATML)


@pytest.fixture(scope="module")
def other(arch_file: ArchFile) -> Path:
    return arch_file("lfm2moe", template=templates.CHATML)


class TerminalChat:
    """A chat in a terminal, command by command."""

    def __init__(self, spawn: Spawn, *args: str | Path, columns: int = 160, **env: str) -> None:
        words = ("-m", "localmoe", "chat", *map(str, args), "-t", "1", "--temp", "0")
        self.terminal: Terminal = spawn(*words, columns=columns, rows=50, **env)
        self.terminal.wait("context ")

    def does(self, line: str, *shown: str) -> str:
        """Type a line; what is on the screen below it, once ``shown`` is and the prompt is back."""
        echo = f"> {line}\n"
        before = self.terminal.text.count(echo)
        self.terminal.say(line)

        def below(text: str) -> str:
            return text.rsplit(echo, 1)[1] if text.count(echo) > before else ""

        def done(text: str) -> bool:
            return below(text).endswith("\n>") and all(words in below(text) for words in shown)

        return below(self.terminal.wait(done))

    def asks(self, text: str) -> str:
        return self.does(text, "TTFT")

    def fresh(self) -> int:
        """Tokens of the last prompt that had to be read."""
        found = re.search(r"prompt +([\d,]+) tokens.*\(([\d,]+) kept", self.does("/stats", "kept"))
        assert found is not None
        total, kept = (int(number.replace(",", "")) for number in found.groups())
        return total - kept

    def leaves(self, keys: str = CTRL_D) -> int:
        self.terminal.prompt()
        self.terminal.type(keys)
        return self.terminal.exit_code()


HYBRID = ("qwen3next", "granitehybrid", "lfm2moe", "nemotron_h_moe")


@pytest.mark.parametrize("architecture", HYBRID)
def test_what_was_read_is_not_read_again(
    spawn: Spawn, arch_file: ArchFile, tmp_path: Path, architecture: str
) -> None:
    """/regen, /undo, Ctrl-C in an answer, leaving and ``--continue``: the notes are read once."""
    model = arch_file(architecture, template=templates.CHATML)
    (tmp_path / "my notes.txt").write_text(LONG)
    chat = TerminalChat(spawn, model, "-n", "6", "-c", "4096")
    chat.does("/read 'my notes.txt'", "my notes.txt ·", "goes with your next message")
    chat.asks("What do they say?")
    assert chat.fresh() > 200
    chat.does("/regen", "TTFT")
    assert chat.fresh() < NEAR
    chat.asks("Why?")
    assert chat.fresh() < NEAR
    chat.does("/undo", "taken back: 1 turn, from “Why?” on; 1 turn left")
    chat.asks("How?")
    assert chat.fresh() < NEAR
    chat.does("/set max_tokens 3000", "max_tokens 3000")
    chat.terminal.say("Go on")
    chat.terminal.wait(lambda text: "> Go on\n" in text and len(text.rsplit("> Go on\n")[-1]) > 90)
    chat.terminal.type(CTRL_C)
    chat.terminal.wait("interrupted; what is there is kept")
    chat.does("/undo", "2 turns left")
    chat.does("/set max_tokens 6")
    chat.asks("And then?")
    assert chat.fresh() < NEAR
    assert chat.leaves() == 0
    again = TerminalChat(spawn, "--continue", "-n", "6", "-c", "4096")
    assert model.stem in again.terminal.text
    again.asks("Still there?")
    assert again.fresh() < NEAR
    assert again.leaves() == 0


@pytest.mark.parametrize("keys", [CTRL_C + CTRL_C, "/exit\r"])
def test_every_way_of_leaving_keeps_the_context(
    spawn: Spawn, model: Path, tmp_path: Path, keys: str
) -> None:
    """Ctrl-C twice and /exit, after an /undo too; a deleted conversation leaves nothing."""
    (tmp_path / "notes.txt").write_text(LONG)
    chat = TerminalChat(spawn, model, "-n", "6", "-f", "notes.txt", "--session", "work")
    chat.terminal.wait("notes.txt ·")  # with its tokens, before anything is typed
    chat.asks("What do they say?")
    chat.asks("Why?")
    chat.does("/undo", "1 turn left")
    chat.leaves(keys)
    kept = list((tmp_path / ".cache/localmoe/kv").iterdir())
    assert len(kept) == 1
    again = TerminalChat(spawn, model, "-n", "6", "--session", "work")
    again.asks("Why?")
    assert again.fresh() < NEAR
    again.does("/clear", "begun anew")
    again.does("/load work", "work is this conversation")
    again.does("/save other", "a copy: you are in other now")
    again.does("/sessions delete work", "work is deleted")
    assert again.leaves() == 0
    assert not [path for path in kept if path.exists()]


def test_another_model_in_the_same_chat(
    spawn: Spawn, model: Path, other: Path, tmp_path: Path
) -> None:
    """The conversation goes on with it, and back; what cannot be had changes nothing."""
    (tmp_path / "notes.txt").write_text(LONG)
    chat = TerminalChat(spawn, model, "-n", "6", "--session", "s", "-f", "notes.txt")
    chat.asks("hello")
    chat.does(f"/model {other}", f"{other.stem} ·", "the conversation goes on, 1 turn so far")
    chat.asks("and you?")
    assert chat.does("/stats", "turns    2").startswith(other.stem)
    chat.does(f"/model {other}", f"{other.stem} is the model of this chat already")
    chat.does("/model lfm3moe", 'error: no model "lfm3moe"')
    (tmp_path / "damaged.gguf").write_bytes(other.read_bytes()[:5000])
    chat.does("/model damaged.gguf", "error: ")
    chat.asks("still you?")
    assert chat.fresh() < NEAR  # nothing was unloaded for those
    chat.does(f"/model {model}", "the conversation goes on, 3 turns so far")
    chat.asks("hello again")
    assert chat.fresh() < 2 * NEAR  # what it had read before it was left was kept
    chat.does("/context", "4 turns")
    assert chat.leaves() == 0
    lines = (tmp_path / ".local/share/localmoe/sessions/s.jsonl").read_text().splitlines()
    turns = [entry for entry in map(json.loads, lines) if entry["kind"] == "turn"]
    assert [turn["model"] for turn in turns] == [model.stem, other.stem, other.stem, model.stem]


def test_a_crash_in_the_middle(spawn: Spawn, model: Path, tmp_path: Path) -> None:
    """SIGKILL in an answer, and a line that was half written: all whole turns are there."""
    chat = TerminalChat(spawn, model, "--session", "s", "-c", "8192")
    chat.does("/set max_tokens 6")
    chat.asks("one")
    chat.asks("two")
    chat.does("/set max_tokens 7000")
    chat.terminal.say("three")
    chat.terminal.wait(lambda text: len(text.rsplit("> three\n", 1)[-1]) > 20)
    chat.terminal.child.kill(signal.SIGKILL)
    chat.terminal.child.wait()
    log = tmp_path / ".local/share/localmoe/sessions/s.jsonl"
    with log.open("a") as file:
        file.write('{"kind":"turn","question":"thr')
    again = TerminalChat(spawn, "--continue", "-n", "6")
    assert "1 line of s could not be read; the rest is here" in again.terminal.text
    assert "s · 2 turns" in again.terminal.text
    again.asks("four")
    again.leaves()
    third = TerminalChat(spawn, "--continue", "-n", "6")
    assert "s · 3 turns" in third.terminal.text
    third.leaves()


def fills(spawn: Spawn, model: Path, *more: str) -> TerminalChat:
    """A chat whose next turn does not fit."""
    chat = TerminalChat(spawn, model, "-c", "512", "-n", "20", *more, columns=600)
    for number in (1, 2, 3):
        chat.asks(f"{number}{' one' * 55}")
    return chat


def test_a_full_context_can_be_summed_up(spawn: Spawn, model: Path) -> None:
    """Asked with the numbers; Enter stops, s lets the model sum up; the turn is then answered."""
    chat = fills(spawn, model)
    chat.terminal.say("4" + " one" * 60)
    text = chat.terminal.wait("or [Enter] to stop?")
    assert "warning: the next turn does not fit:" in text and "the context has 512" in text
    chat.terminal.type("\r")
    text = chat.terminal.wait("not sent; /clear begins anew")
    chat.terminal.wait(lambda text: text.endswith("one one"))  # the message is back
    chat.terminal.type("\r")
    chat.terminal.wait(lambda text: text.count("or [Enter] to stop?") == 2)
    chat.terminal.type("s\r")
    chat.terminal.wait("sent as a summary from now on")
    chat.terminal.wait(lambda text: text.count("TTFT") == 4)
    chat.does("/context", "system prompt and summary")
    chat.leaves()


def test_a_full_context_can_drop_the_oldest(spawn: Spawn, model: Path) -> None:
    """``--overflow drop``: told, and the turn is answered."""
    chat = fills(spawn, model, "--overflow", "drop")
    assert "not sent any more:" in chat.asks("4" + " one" * 60)
    chat.does("/context", "of 4")
    chat.leaves()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_no_history_leaves_no_file(spawn: Spawn, model: Path, other: Path, tmp_path: Path) -> None:
    """Not a conversation, typed lines, context, experts in use or the name of the model."""
    (tmp_path / "notes.txt").write_text(LONG)
    environment(tmp_path)  # puts the speeds of the machine there
    before = files_below(tmp_path)
    chat = TerminalChat(spawn, model, "--no-history", "-n", "40", "-f", "notes.txt")
    chat.asks("secret")
    chat.does("/regen", "TTFT")
    chat.does(f"/model {other}", "goes on")
    chat.asks("again")
    chat.does("/clear", "the conversation is forgotten")
    chat.does("/sessions", "--no-history")
    assert chat.leaves() == 0
    assert files_below(tmp_path) == before


def test_an_export_of_each_kind(spawn: Spawn, model: Path, tmp_path: Path) -> None:
    """Markdown for people, JSON for programs, private, never over a file that is there."""
    chat = TerminalChat(spawn, model, "-n", "6")
    chat.does("/save talk.md", "error: nothing was said yet")
    chat.asks("hello")
    chat.does("/save talk.md", "1 turn exported to talk.md")
    chat.does("/save talk.md", "error: talk.md exists already")
    chat.does("/save talk.json", "1 turn exported to talk.json")
    chat.leaves()
    document = json.loads((tmp_path / "talk.json").read_text())
    answer = document["turns"][0]["answer"].strip("\n")
    assert document["turns"][0]["question"] == "hello"
    markdown = (tmp_path / "talk.md").read_text()
    assert "## 1. Question\n\n> hello\n\n### Answer\n\n" in markdown and answer in markdown
    assert (tmp_path / "talk.md").stat().st_mode & 0o777 == 0o600


def test_the_other_commands(spawn: Spawn, model: Path, tmp_path: Path) -> None:
    """Each with a real model, and what a wrong word is told."""
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf "edited" > "$1"\n')
    editor.chmod(0o755)
    chat = TerminalChat(spawn, model, "-n", "6", VISUAL=str(editor))
    chat.does("/help regen", "ask your last message again")
    chat.does("/regen", "error: nothing was asked yet")
    chat.does("/undo", "error: there is nothing to take back")
    chat.does("/copy", "error: there is no answer yet")
    chat.does("/experts", "RAM", "ask something to see where its experts come from")
    chat.does("/system Be brief.", "system prompt changed")
    chat.asks("hello")
    chat.does("/copy", "copied ")
    chat.does("/copy code", "error: the last answer has no code block")
    chat.does("/experts", "last answer: ", "from RAM 100.0 %")
    chat.does("/edit", "TTFT")
    chat.does("/save", "written as you talk, to ")
    (log,) = (tmp_path / ".local/share/localmoe/sessions").iterdir()
    assert [json.loads(line)["kind"] for line in log.read_text().splitlines()][-2:] == [
        "undo",
        "turn",
    ]
    assert '"question":"edited"' in log.read_text()
    chat.does("/think high", "no control over thinking")
    chat.does("/think loud", "error: ")
    chat.does("/reasoning", "the last answer came without any")
    chat.does("/reasoning show", "reasoning is shown")
    chat.does("/set temp 0.5", "temp 0.5")
    chat.does("/set temp hot", "error: temp is a number from 0")
    chat.does("/set tempo 1", "Did you mean temp?")
    chat.does("/system", "Be brief.")
    chat.does("/sessions", "1 turn")
    chat.does("/save my chat", 'error: "my chat" cannot be the name of a conversation')
    chat.does("/save mine", "this conversation is now mine")
    chat.does("/load thine", 'error: no conversation "thine". Did you mean mine?')
    chat.does("/regn", "error: no command /regn. Did you mean /regen?")
    chat.does("/clear now", "error: /clear takes no argument")
    assert chat.leaves("/exit\r") == 0
