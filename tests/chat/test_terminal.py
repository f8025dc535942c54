"""The chat in a real pseudo-terminal, seen through a terminal emulator."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

from tests.chat import templates
from tests.cli.command import environment

COLUMNS, ROWS = 80, 40
ALT_ENTER, CTRL_C, CTRL_D, TAB, UP = "\x1b\r", "\x03", "\x04", "\t", "\x1b[A"


class Terminal:
    """A program in a terminal: keys in, the screen out."""

    def __init__(self, child: pexpect.spawn[str]) -> None:
        self.child = child
        self.raw = ""
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.Stream(self._screen)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def wait(self, found: Callable[[str], bool] | str, seconds: float = 20) -> str:
        """The screen, once it shows this."""
        check = found if callable(found) else lambda text: found in text
        end = time.monotonic() + seconds
        while not check(self.text):
            assert time.monotonic() < end, f"waited for {found!r}, got:\n{self.text}"
            self._read()
        return self.text

    def prompt(self) -> str:
        """Wait for an empty input line at the end of the screen."""
        return self.wait(lambda text: text.endswith("\n>") or text == ">")

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def exit_code(self) -> int:
        while self.child.isalive() and self._read():
            pass
        self.child.wait() if self.child.isalive() else None
        self.child.close()
        assert self.child.exitstatus is not None
        return self.child.exitstatus

    def _read(self) -> bool:
        try:
            data = self.child.read_nonblocking(4096, timeout=0.2)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.raw += data
        self._stream.feed(data)
        return True


Spawn = Callable[..., Terminal]
Start = Callable[..., Terminal]


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """``spawn("-m", "localmoe", …)`` → Python in a terminal, at the chat's first prompt."""
    children: list[pexpect.spawn[str]] = []

    def begin(*args: str, **env: str) -> Terminal:
        child: pexpect.spawn[str] = pexpect.spawn(
            sys.executable,
            list(args),
            cwd=str(tmp_path),
            dimensions=(ROWS, COLUMNS),
            encoding="utf-8",
            env=environment(
                tmp_path, **({"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"} | env)
            ),
        )
        children.append(child)
        terminal = Terminal(child)
        terminal.prompt()
        return terminal

    yield begin
    for child in children:
        child.close(force=True)


@pytest.fixture
def start(spawn: Spawn) -> Start:
    """``start(["chunk", …], …)`` → the chat over a scripted engine, at its first prompt."""

    def begin(*replies: list[str], delay: float = 0, **env: str) -> Terminal:
        return spawn("-m", "tests.chat.scripted_chat", json.dumps(replies), str(delay), **env)

    return begin


def test_a_turn(start: Start) -> None:
    """The answer, the status line, the next prompt; Ctrl-D leaves with 0."""
    terminal = start(["Hello", " there", "."])
    terminal.type("hi\r")
    text = terminal.wait("context")
    assert "> hi\nHello there.\n3 tokens written · 10.0 tok/s" in text
    terminal.prompt()
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


def test_markdown(start: Start) -> None:
    """Every construct is shown once, in order, without its marks; links show their address."""
    terminal = start(list(MARKDOWN))
    terminal.type("go\r")
    text = terminal.wait("context")
    assert "\nTitle\n\nSome bold and code.\n" in text
    assert " • one\n • two\n" in text
    assert "def f():\n    return 1\n" in text
    assert "3 third" in text
    assert "4 link (https://example.org/x)" in text
    assert text.count("return 1") == 1
    assert text.count("Title") == 1
    assert "\x1b[1m" in terminal.raw  # bold


def test_finished_lines_are_never_rewritten(start: Start) -> None:
    """The cursor never goes up while an answer is shown."""
    terminal = start(list(MARKDOWN))
    terminal.prompt()
    before = len(terminal.raw)
    terminal.type("go\r")
    terminal.wait("context")
    answer = terminal.raw[before:].split("Title", 1)[1].split("tok/s")[0]
    assert "\x1b[A" not in answer
    assert "\x1b[H" not in answer
    assert "\x1b[2J" not in answer


def test_an_unfinished_paragraph_is_visible(start: Start) -> None:
    """Words appear while the block is open, before its last word is there."""
    terminal = start(["word ", "by ", "word ", "until ", "the ", "end."], delay=0.3)
    terminal.type("go\r")
    terminal.wait(lambda text: "word by" in text and "end." not in text)
    text = terminal.wait("context")
    assert text.count("word by word until the end.") == 1


def test_hostile_text_does_nothing(start: Start) -> None:
    """No clipboard, no title, no colour, no markup from the model."""
    terminal = start(["[red]a[/red] \x1b]52;c;", "eA==\x07\x1b]0;t\x07\x1b[2Jb\x9b31mc"])
    terminal.type("go\r")
    text = terminal.wait("context")
    assert "[red]a[/red] bc" in text
    assert "\x1b]" not in terminal.raw


def test_thinking_is_one_line(start: Start) -> None:
    """A counter while it lasts, a line afterwards."""
    terminal = start(["<think>", "so ", "then ", "hm", "</think>", "\n\nyes"], delay=0.2)
    terminal.type("go\r")
    terminal.wait("thinking ·")
    text = terminal.wait("context")
    assert "thought 3 words in" in text
    assert "thinking" not in text
    assert "\nyes\n" in text


def test_several_lines_and_paste(start: Start) -> None:
    """Alt-Enter and pasted newlines stay in one message."""
    terminal = start(["a"], ["b"])
    terminal.type(f"one{ALT_ENTER}two")
    terminal.wait("two")
    terminal.type("\r")
    terminal.wait("context")
    terminal.prompt()
    terminal.type("\x1b[200~x\ny\x1b[201~")
    terminal.wait("y")
    terminal.type("\r")
    terminal.wait(lambda text: text.count("context") == 2)
    terminal.prompt()
    terminal.type("/stats\r")
    assert "turns    2" in terminal.wait("turns")


def test_history_and_completion(start: Start) -> None:
    """Up brings the last message back; Tab completes a command."""
    terminal = start(["a"], ["b"])
    terminal.type("remember me\r")
    terminal.wait("context")
    terminal.prompt()
    terminal.type(UP)
    terminal.wait(lambda text: text.endswith("> remember me"))
    terminal.type(CTRL_C)  # empties the line, does not leave
    terminal.prompt()
    terminal.type("/stat" + TAB)
    terminal.wait(lambda text: text.endswith("> /stats"))
    terminal.type("\r")
    terminal.wait("turns    1")


def test_ctrl_c_stops_the_answer_only(start: Start) -> None:
    """What was said stays on the screen, the prompt comes back, the chat goes on."""
    terminal = start(["one ", "two ", "three ", *["more "] * 50], ["fine"], delay=0.1)
    terminal.type("count\r")
    terminal.wait("two")
    terminal.type(CTRL_C)
    text = terminal.wait("interrupted; what is there is kept")
    assert "one two" in text
    terminal.prompt()
    terminal.type("and now?\r")
    terminal.wait("fine")
    terminal.wait(lambda text: text.count("context") == 2)


def test_ctrl_c_twice_leaves(start: Start) -> None:
    """Exit 130, and the terminal is as it was."""
    terminal = start([])
    terminal.type(CTRL_C)
    terminal.wait("once more")
    terminal.type(CTRL_C)
    assert terminal.exit_code() == 130
    assert terminal.raw.rfind("\x1b[?2004l") > terminal.raw.rfind("\x1b[?2004h")


def test_a_crash_does_not_end_the_chat(start: Start) -> None:
    """The cause, a note, and the next answer."""
    terminal = start(["ha", "!"], ["fine"])
    terminal.type("a\r")
    text = terminal.wait("starts the engine again")
    assert "error: the engine process died" in text
    assert "\nha\n" in text
    terminal.prompt()
    terminal.type("b\r")
    terminal.wait("fine")
    terminal.wait("context")


def test_a_dumb_terminal_gets_plain_lines(start: Start) -> None:
    """``TERM=dumb``: no escape code at all, and the same chat."""
    terminal = start(["**b**"], TERM="dumb")
    terminal.type("hi\r")
    text = terminal.wait("context")
    assert "**b**" in text
    assert "\x1b" not in terminal.raw
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0


def test_no_color(start: Start) -> None:
    """``NO_COLOR``: the answer is plain text, without escape codes."""
    terminal = start(["**b**\n\n", "`c`"], NO_COLOR="1")
    terminal.type("hi\r")
    text = terminal.wait("context")
    assert "**b**\n\n`c`\n" in text


def test_run_without_a_prompt_opens_the_chat(spawn: Spawn, arch_file: Callable[..., Path]) -> None:
    """On a terminal: the model, its experts and the context first; answers from a real engine."""
    model = arch_file("qwen3moe", template=templates.CHATML)
    terminal = spawn("-m", "localmoe", "run", str(model), "-n", "5", "--ctx", "512")
    assert f"{model.stem} · experts in RAM · context of 512 tokens" in terminal.text
    terminal.type("hello\r")
    terminal.wait("5 tokens written")
    terminal.wait("/512 (")
    terminal.prompt()
    terminal.type("word " * 1000 + "\r")
    terminal.wait("tokens, the context 512")
    terminal.prompt()
    terminal.type("/stats\r")
    terminal.wait("turns    1")
    terminal.prompt()
    terminal.type("/exit\r")
    assert terminal.exit_code() == 0
