"""The chat in a real pseudo-terminal: keys, streaming, interrupts, and how it leaves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.chat import templates
from tests.cli.chat.conftest import Spawn, Start
from tests.cli.chat.terminal import ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, TAB, UP
from tests.cli.command import environment
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.process

ENDLESS = ["more "] * 9_000  # of an answer that nobody waits to the end of


def test_a_turn(start: Start) -> None:
    """The card, the answer, the status line, the next prompt; Ctrl-D leaves with 0."""
    terminal = start(["Hello", " there", "."])
    terminal.type("hi\r")
    text = terminal.turns(1)
    assert text.startswith("tiny · Q8_0")
    assert "> hi\nHello there.\n10.0 tok/s · 3 tokens · TTFT 0.10 s · context " in text
    assert " 6/100 (6 %) · experts in RAM\n\n>" in text
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0


MARKDOWN = """\
# Title

Some **bold** and `code`.

- one
- two
  - nested

```python
def f():
    return 1
```

| a | b |
|---|---|
| 1 | 2 |

3. third
4. [link](https://example.org/x)
"""


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_markdown(start: Start, columns: int) -> None:
    """Every construct is shown once, in order, without its marks; links show their address."""
    terminal = start(list(MARKDOWN), columns=columns)
    terminal.type("go\r")
    text = terminal.turns(1)
    assert "\nTitle\n\nSome bold and code.\n\n• one\n• two\n  ◦ nested\n\n── python ─" in text
    assert "def f():\n    return 1\n────" in text
    assert re.search(r"\na +b\n─+\n1 +2\n", text)
    assert "3. third\n4. link" in text
    assert "(https://example.org/x)" in text
    assert text.count("return 1") == 1
    assert text.count("Title") == 1
    assert "\x1b[1m" in terminal.raw or "\x1b[1;" in terminal.raw  # bold


@pytest.mark.parametrize(("columns", "rows"), [(40, 8), (80, 12), (160, 40)])
def test_what_is_printed_is_never_repainted(start: Start, columns: int, rows: int) -> None:
    """Whatever the window: the cursor never goes up, no line above is written to again."""
    terminal = start(list(MARKDOWN * 3), columns=columns, rows=rows)
    terminal.prompt()
    before = len(terminal.raw)
    terminal.type("go\r")
    text = terminal.turns(1)
    answer = terminal.raw[before:].split("tok/s", 1)[0].rsplit("\x1b[?2004l", 1)[1]
    assert len(answer) > 3 * len(MARKDOWN)
    assert not re.search(r"\x1b\[\d*[AFHJ]|\x1b\[\d*;\d*[Hf]|\x1bM|\x1b\[\d*[LMST]", answer)
    assert text.count("Title") == 3
    assert text.count("return 1") == 3


def test_words_appear_as_they_come(start: Start) -> None:
    """A paragraph is readable long before it ends."""
    terminal = start(["word ", "by ", "wo", "rd ", "until ", "the ", "end."], delay=0.3)
    terminal.type("go\r")
    terminal.wait(lambda text: "word by wo" in text and "end." not in text)
    text = terminal.turns(1)
    assert text.count("word by word until the end.") == 1


def test_hostile_text_does_nothing(start: Start) -> None:
    """No clipboard, no title, no colour, no markup from the model."""
    terminal = start(["[red]a[/red] \x1b]52;c;", "eA==\x07\x1b]0;t\x07\x1b[2Jb\x9b31mc"])
    terminal.type("go\r")
    text = terminal.turns(1)
    assert "[red]a[/red] bc" in text
    assert "\x1b]" not in terminal.raw


def test_thinking_is_one_line(start: Start) -> None:
    """A counter while it lasts, a line afterwards; ``/reasoning`` tells what it was."""
    terminal = start(["<think>", "so ", "then ", "hm", "</think>", "\n\nyes"], delay=0.2)
    terminal.type("go\r")
    terminal.wait("thinking ·")
    text = terminal.turns(1)
    assert "thought 3 words in" in text
    assert "thinking" not in text
    assert "\nyes\n" in text
    assert "so then hm" not in text
    terminal.say("/reasoning")
    terminal.wait("so then hm")


def test_thinking_can_be_shown(start: Start) -> None:
    """``/reasoning show``: behind a bar, before the answer."""
    terminal = start(["<think>", "so ", "then\nhm", "</think>", "\n\nyes"])
    terminal.type("/reasoning show\r")
    terminal.wait("reasoning is shown")
    terminal.say("go")
    text = terminal.turns(1)
    assert "│ so then\n│ hm\n" in text
    assert text.index("│ hm") < text.index("\nyes\n")


def test_several_lines_and_paste(start: Start) -> None:
    """Alt-Enter, a final backslash, three quotes and pasted newlines stay in one message."""
    terminal = start(["a"], ["b"], ["c"], ["d"])
    terminal.type(f"one{ALT_ENTER}two")
    terminal.wait("two")
    terminal.type("\r")
    terminal.turns(1)
    terminal.type("\x1b[200~x\ny\x1b[201~")
    terminal.wait("y")
    terminal.type("\r")
    terminal.turns(2)
    terminal.type("back\\\rslash\r")
    terminal.turns(3)
    terminal.type('"""\rquoted\rlines"""\r')
    terminal.turns(4)
    terminal.say("/stats")
    assert "turns    4" in terminal.wait("turns  ")
    terminal.say("/copy all")  # the messages as they were sent
    terminal.wait("copied")
    copied = terminal.raw.rsplit("\x1b]52;c;", 1)[1].split("\x07")[0]
    import base64

    text = base64.b64decode(copied).decode()
    for message in ("one\ntwo", "x\ny", "back\nslash", "quoted\nlines"):
        assert f"> {message}\n" in text


def test_history_search_and_completion(start: Start) -> None:
    """Up and Ctrl-R bring messages back, also in the next chat; Tab completes."""
    terminal = start(["a"], ["b"])
    terminal.type("remember me\r")
    terminal.turns(1)
    terminal.type(UP)
    terminal.wait(lambda text: text.endswith("> remember me"))
    terminal.type(CTRL_C)  # empties the line, does not leave
    terminal.prompt()
    terminal.type("/stat" + TAB)
    terminal.wait(lambda text: text.endswith("> /stats"))
    terminal.type("\r")
    terminal.wait("turns    1")
    terminal.prompt()
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0
    again = start()
    again.type(CTRL_R + "member")
    again.wait("remember me")


def test_completion_of_arguments(start: Start, tmp_path: Path) -> None:
    """Settings and their values, files with blanks in their names, sessions."""
    (tmp_path / "my notes.txt").write_text("hello world")
    terminal = start(["a"])
    for typed, completed in (
        ("/set over", "/set overflow"),
        ("/set overflow dr", "/set overflow drop"),
        ("/think h", "/think high"),
        ("/reasoning s", "/reasoning show"),
        ("/read my", "/read my notes.txt"),
        ("/help cont", "/help context"),
        ("/model na", "/model nano"),
        ("/model ./my", "/model ./my notes.txt"),
    ):
        terminal.type(typed + TAB)
        terminal.wait(lambda text, line=completed: text.endswith(f"> {line}"))  # type: ignore[misc]
        terminal.type(CTRL_C)
        terminal.prompt()


def test_keys_typed_during_an_answer_wait(start: Start) -> None:
    """They do not get into the answer; each line is a message of its own afterwards."""
    terminal = start(["one ", "two ", "three ", "four"], ["second"], delay=0.3)
    terminal.type("count\r")
    terminal.wait("one")
    terminal.type("next\r/stats\r")
    text = terminal.turns(2)
    assert "one two three four\n" in text
    assert "> next\nsecond\n" in text
    terminal.wait("turns    2")


def test_keys_typed_during_a_command_wait(start: Start) -> None:
    """They are not echoed into its output, and each line is a message of its own afterwards."""
    terminal = start(["first"], ["second"])
    terminal.type("/slow 1.5\r")
    terminal.wait("> /slow 1.5")
    time.sleep(0.3)  # the command is under way: nothing on the screen says so
    terminal.type("one\rtwo\r")
    text = terminal.turns(2)
    assert "> /slow 1.5\nthat took 1.5 s\n> one\nfirst\n" in text
    assert "> two\nsecond\n" in text


def test_an_error_stays_in_sight_above_a_long_draft(start: Start) -> None:
    """A message of 60 lines that did not fit comes back, and why is on the same screen."""
    terminal = start(["never"], rows=24)
    draft = [f"line {n} of a long message" for n in range(60)]
    terminal.type(f"\x1b[200~{chr(10).join(draft)}\x1b[201~")
    terminal.wait("line 59 of a long message")
    terminal.type("\r")
    terminal.wait("does not fit")
    terminal.wait(lambda text: text.rstrip().endswith("line 59 of a long message"))
    screen = terminal.text.splitlines()[-24:]
    assert any("does not fit" in line for line in screen), "\n".join(screen)


@pytest.mark.skipif(shutil.which("dash") is None, reason="no shell that leaves a terminal as it is")
def test_ctrl_z_in_an_answer_gives_the_shell_its_terminal(tmp_path: Path) -> None:
    """The shell's lines are echoed while the chat is stopped; after fg keys are hushed again."""
    root = Path(__file__).parents[3]
    env = environment(tmp_path, TERM="xterm-256color", PS1="shell> ", PYTHONPATH=str(root))
    child = pexpect.spawn(
        "dash",  # bash would mend the terminal itself
        ["-i"],
        env=env,
        cwd=str(root),
        encoding="utf-8",
        dimensions=(40, 120),
        timeout=PATIENCE,
    )
    try:
        replies = json.dumps([["one ", "two ", "three ", *(f"{n} " for n in range(400)), "end"]])
        child.expect_exact("shell> ")
        child.sendline(f"{sys.executable} -m tests.cli.chat.scripted_chat '{replies}' 0.05")
        child.expect_exact("lists the commands")
        child.send("go\r")
        child.expect_exact("three")
        child.send("\x1a")
        child.expect_exact("shell> ")
        child.sendline("stty -a | tr ' ' '\\n' | grep -x -- '-*echo'; echo state-ends")
        child.expect("\r\n(-?echo)\r\n")
        assert isinstance(child.match, re.Match) and child.match.group(1) == "echo"
        child.expect_exact("state-ends")
        child.expect_exact("shell> ")
        child.sendline("fg")
        child.expect_exact("320")
        child.send("hushhush")
        child.expect_exact("end")
        assert "hushhush" not in (child.before or "")
    finally:
        child.close(force=True)


def test_ctrl_c_stops_the_answer_only(start: Start) -> None:
    """The prompt is back though the answer would go on, what was said stays, so does the chat."""
    terminal = start(["one ", "two ", *ENDLESS], ["fine"], delay=0.1)
    terminal.type("count\r")
    terminal.wait("two")
    terminal.type(CTRL_C)
    text = terminal.wait("interrupted; what is there is kept")
    terminal.prompt()
    assert "one two" in text
    terminal.type("and now?\r")
    terminal.wait("fine")
    terminal.turns(2)


def test_ctrl_c_twice_leaves(start: Start) -> None:
    """Exit 130, and the terminal is as it was."""
    terminal = start([])
    terminal.type(CTRL_C)
    terminal.wait("once more")
    assert terminal.exit_code(CTRL_C) == 130
    assert terminal.raw.rfind("\x1b[?2004l") > terminal.raw.rfind("\x1b[?2004h")


def test_ctrl_c_twice_in_an_answer_leaves(start: Start, tmp_path: Path) -> None:
    """Exit 130; what was said is kept in the session."""
    terminal = start(["one ", "two ", *ENDLESS], delay=0.1, options=("--session", "s"))
    terminal.type("count\r")
    terminal.wait("two")
    terminal.type(CTRL_C)
    assert terminal.exit_code(CTRL_C) == 130
    (file,) = tmp_path.rglob("s.jsonl")
    assert '"answer":"one two' in file.read_text()
    assert '"interrupted":true' in file.read_text()


def local_modes(terminal_fd: int) -> int:
    return int(termios.tcgetattr(terminal_fd)[3])


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_signal_at_the_prompt_restores_the_terminal(start: Start, number: int) -> None:
    """The mode of the terminal and bracketed paste; the exit code names the signal."""
    terminal = start()
    fd = terminal.child.child_fd
    assert not local_modes(fd) & termios.ICANON  # raw, while the editor runs
    terminal.child.kill(number)
    wait_until(lambda: terminal._read() and local_modes(fd) & termios.ICANON)
    assert local_modes(fd) & termios.ECHO
    assert terminal.exit_code() == 128 + number
    assert "Traceback" not in terminal.raw
    assert terminal.raw.rfind("\x1b[?2004l") > terminal.raw.rfind("\x1b[?2004h")


@pytest.mark.parametrize(
    "keys",
    ["\x1b[31mred", "\x1b[<0;1;1M", "\x1b[M !!", "\x1b[200~\x1b[31m\x1b[201~", "\x1b[99;99R"],
)
def test_pasted_sequences_are_survived(start: Start, keys: str) -> None:
    """Colour codes and reports of a mouse that nobody asked for end no chat."""
    terminal = start(["fine"], ["good"])
    terminal.type(f"{keys}typed")
    terminal.wait("typed")
    terminal.type("\r")
    terminal.turns(1)
    terminal.say("hello")
    text = terminal.wait("good")
    assert "Traceback" not in text and "exception" not in text.lower()


def test_a_crash_does_not_end_the_chat(start: Start) -> None:
    """The cause, a note, and the next answer."""
    terminal = start(["ha", "!"], ["fine"])
    terminal.type("a\r")
    text = terminal.wait("starts the engine again")
    assert "error: the engine process died" in text
    assert "\nha\n" in text
    terminal.say("b")
    terminal.wait("fine")
    terminal.turns(1)


def test_a_dumb_terminal_gets_plain_lines(start: Start) -> None:
    """``TERM=dumb``: no escape code at all, and the same chat."""
    terminal = start(["**b**"], ["c"], TERM="dumb")
    terminal.type("hi\r")
    text = terminal.turns(1)
    assert "**b**" in text
    terminal.type("two\\\rlines\r")
    terminal.turns(2)
    assert "\x1b" not in terminal.raw
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0


def test_no_color(start: Start) -> None:
    """``NO_COLOR``: the answer is plain text without escape codes, its words wrapped as ever."""
    terminal = start(["**b**\n\n", "`c`\n", "words of " * 6], columns=30, NO_COLOR="1")
    terminal.type("hi\r")
    text = terminal.turns(1)
    assert "**b**\n\n`c`\nwords of words of words of\nwords of words of words of\n" in text


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1"}, {"TERM": ""}, {}], ids=str)
def test_forty_columns(start: Start, env: dict[str, str]) -> None:
    """On any terminal: help and status within the window, and nothing of them left out."""
    terminal = start(["Hel", "lo."], columns=40, **env)
    terminal.type("/help\r")
    terminal.wait("/exit")
    text = terminal.prompt()
    shown = text.split("> /help\n")[1] if "> /help\n" in text else text
    for word in ("/regen", "ask your last message again", "/sessions [delete NAME]", "Ctrl-R"):
        assert word in shown
    terminal.type("hi\r")
    text = terminal.turns(1)
    for fact in ("10.0 tok/s", "TTFT 0.10 s", "context 5/100 (5 %)", "experts in RAM"):
        assert fact in text


def test_a_terminal_that_answers_nothing(start: Start) -> None:
    """As over ssh from a simple one: it is asked nothing, and warned of nothing."""
    terminal = start(
        ["fine"], TERM="vt100", PROMPT_TOOLKIT_NO_CPR="0", SSH_CONNECTION="10.0.0.1 1 10.0.0.2 22"
    )
    terminal.say("hello")
    text = terminal.turns(1)
    assert "CPR" not in text and "\x1b[6n" not in terminal.raw
    terminal.say("/copy")  # no program of the far machine can reach the clipboard here
    terminal.wait("by the terminal")


def test_run_without_a_prompt_opens_the_chat(spawn: Spawn, arch_file: Callable[..., Path]) -> None:
    """On a terminal: the model, its place and the context first; answers from a real engine."""
    model = arch_file("qwen3moe", template=templates.CHATML)
    terminal = spawn("-m", "localmoe", "run", str(model), "-n", "5", "--ctx", "512")
    text = terminal.wait("context 512")
    assert model.stem in text
    terminal.say("hello")
    terminal.wait("5 tokens")
    terminal.wait("/512 (")
    terminal.say("word " * 1000)
    text = terminal.wait("does not fit")
    assert "the context has 512" in text.replace("\n", " ")
    terminal.type(CTRL_C)  # the message is back on the input line
    terminal.say("/stats")
    terminal.wait("turns    1")
    terminal.say("/exit")
    assert terminal.exit_code() == 0
