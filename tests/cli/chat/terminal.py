"""A program in a pseudo-terminal, seen through a terminal emulator."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pyte

from tests.cli.command import environment
from tests.waiting import PATIENCE

ALT_ENTER, CTRL_C, CTRL_D, CTRL_R, TAB = "\x1b\r", "\x03", "\x04", "\x12", "\t"
STATUS = re.compile(r"\bcontext (?:[━╌]+ )?(?:[\d,]+/[\d,]+|\d+ %)")  # of the lines after a turn
UP, DOWN = "\x1b[A", "\x1b[B"


def _heed_hang_ups() -> None:
    """A test run that outlives its terminal (nohup) hands on that they are ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """Keys in, the screen out, at any size."""

    def __init__(self, home: Path, *args: str, columns: int = 80, rows: int = 40, **env: str):
        self.child: pexpect.spawn[str] = pexpect.spawn(
            sys.executable,
            list(args),
            cwd=str(home),
            dimensions=(rows, columns),
            encoding="utf-8",
            preexec_fn=_heed_hang_ups,
            env=environment(
                home, **({"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"} | env)
            ),
        )
        self.raw = ""
        self._screen = pyte.HistoryScreen(columns, rows, history=5000, ratio=0.5)
        self._stream = pyte.Stream(self._screen)

    @property
    def text(self) -> str:
        """All lines, those that were scrolled away first."""
        gone = [
            "".join(line[x].data for x in range(self._screen.columns))
            for line in self._screen.history.top
        ]
        return "\n".join(line.rstrip() for line in [*gone, *self._screen.display]).rstrip()

    def wait(self, found: Callable[[str], bool] | str) -> str:
        """The screen, once it shows this."""
        check = found if callable(found) else lambda text: found in text
        end = time.monotonic() + PATIENCE
        while not check(self.text):
            assert time.monotonic() < end, f"waited for {found!r}, got:\n{self.text}"
            self._read()
        return self.text

    def prompt(self) -> str:
        """Wait for an empty input line at the end of the screen."""
        return self.wait(lambda text: text.endswith("\n>") or text == ">")

    def turns(self, count: int) -> str:
        """Wait until that many turns have ended, and for the prompt after them."""
        self.wait(lambda text: len(STATUS.findall(text)) >= count)
        return self.prompt()

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def say(self, text: str) -> None:
        """Type a line at the prompt and send it."""
        self.prompt()
        self.child.send(f"{text}\r")

    def exit_code(self, again: str = "") -> int:
        """Of the program, once it has ended; ``again`` is typed now and after a second of silence.

        Two signals that come before the first is heeded are one to the system, and two presses
        count only within some seconds: on a busy machine one press more may be needed.
        """
        self.child.send(again)
        read, pressed = len(self.raw), time.monotonic()
        while self.child.isalive() and self._read():
            if len(self.raw) > read:
                read, pressed = len(self.raw), time.monotonic()
            elif again and time.monotonic() > pressed + 1:
                self.child.send(again)
                pressed = time.monotonic()
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
