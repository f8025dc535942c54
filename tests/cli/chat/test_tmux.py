"""The chat inside tmux: another terminal between it and the eyes, with windows that change size."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.command import environment
from tests.waiting import PATIENCE

TMUX = shutil.which("tmux")
pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(TMUX is None, reason="tmux is not installed"),
]


class Window:
    """A chat over a scripted engine in a tmux server of its own."""

    def __init__(self, home: Path, reply: list[str], delay: float, columns: int, rows: int) -> None:
        self._home = home
        self._env = environment(home, TERM="xterm-256color")
        script = ["-m", "tests.cli.chat.scripted_chat", json.dumps([reply]), str(delay)]
        command = shlex.join([sys.executable, *script])
        size = ("-x", str(columns), "-y", str(rows))
        self.tmux(
            "-f", "/dev/null", "new-session", "-d", *size, f"stty -g; {command}; stty -g; sleep 600"
        )
        self.tmux("set", "-g", "history-limit", "9000")

    def tmux(self, *args: str) -> str:
        assert TMUX is not None
        command = [TMUX, "-S", str(self._home / "tmux"), *args]
        return subprocess.run(
            command, env=self._env, capture_output=True, text=True, check=True, cwd=self._home
        ).stdout

    @property
    def text(self) -> str:
        """All lines, those that were scrolled away first."""
        return self.tmux("capture-pane", "-p", "-S", "-").rstrip()

    def type(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def wait(self, found: Callable[[str], object] | str) -> str:
        check = found if callable(found) else lambda text: found in text
        end = time.monotonic() + PATIENCE
        while not check(text := self.text):
            assert time.monotonic() < end, f"waited for {found!r}, got:\n{text}"
            time.sleep(0.05)
        return text

    def prompt(self) -> str:
        return self.wait(lambda text: text.endswith("\n>"))

    def close(self) -> None:
        self.tmux("kill-server")


Open = Callable[..., Window]


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Open]:
    windows: list[Window] = []

    def begin(reply: list[str], delay: float = 0, columns: int = 80, rows: int = 24) -> Window:
        windows.append(Window(tmp_path, reply, delay, columns, rows))
        windows[-1].wait("tiny ·")
        windows[-1].prompt()
        return windows[-1]

    yield begin
    for window in windows:
        window.close()


def test_a_long_answer_in_a_small_window(window: Open) -> None:
    """What has scrolled away is whole, in order, and there once; the status is on two lines."""
    lines = [f"- item {n} of a list that is **long**\n" for n in range(40)]
    small = window(lines, columns=40, rows=8)
    small.type("go", "Enter")
    small.wait("experts in RAM")
    text = small.prompt()
    assert re.findall(r"• item (\d+)", text) == [str(n) for n in range(40)]
    status = next(line for line in text.splitlines() if "tok/s" in line)
    assert "TTFT" in status and len(status) <= 40


def test_a_window_that_changes_while_the_answer_comes(window: Open) -> None:
    """Every word is there once, in order, though tmux has wrapped the lines anew."""
    words = [f"word{n:03} " for n in range(120)]
    changing = window(words, delay=0.02)
    changing.type("go", "Enter")
    for number, columns, rows in ((20, 50, 10), (50, 100, 30), (80, 40, 6)):
        changing.wait(f"word{number:03}")
        changing.tmux("resize-window", "-x", str(columns), "-y", str(rows))
    changing.wait("experts in RAM")
    text = changing.prompt()
    # A word that tmux has broken at its margin is one word all the same.
    joined = changing.tmux("capture-pane", "-p", "-J", "-S", "-")
    assert re.findall(r"word(\d{3})", joined) == [f"{n:03}" for n in range(120)], text


def test_leaving(window: Open) -> None:
    """Ctrl-D ends the chat; the terminal has the settings that it had before."""
    left = window(["fine"])
    left.type("C-d")
    modes = re.compile(r"^[0-9a-f]+(?::[0-9a-f]+){10,}:?$", re.MULTILINE)
    text = left.wait(lambda text: len(modes.findall(text)) == 2)
    before, after = modes.findall(text)
    assert before == after


@pytest.mark.parametrize("draft", ["short", "a draft of several words, " * 9])
def test_a_narrower_window_leaves_no_ghosts(draft: str, window: Open) -> None:
    """tmux folds the input line anew; it is there once, however often the window changes."""
    changing = window([f"- item {n}\n" for n in range(40)], columns=100, rows=30)
    changing.type("hello", "Enter")
    changing.wait("experts in RAM")
    changing.prompt()
    changing.type("-l", draft)
    changing.wait(lambda text: draft.split()[-1] in text.splitlines()[-1])
    for columns in (60, 41, 90, 30):
        changing.tmux("resize-window", "-x", str(columns), "-y", "30")
        time.sleep(0.5)  # whatever is drawn anew, nothing on the screen tells when
    joined = changing.tmux("capture-pane", "-p", "-J", "-S", "-")
    assert len(re.findall(r"^> (?!hello)", joined, re.MULTILINE)) == 1, joined
    assert joined.count("> hello") == 1 and joined.count("item 39") == 1
    words = "".join(joined[joined.rindex("\n> ") + 3 :].split())
    assert words == "".join(draft.split())
