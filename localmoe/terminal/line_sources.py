"""Where a chat's messages come from when there is no editing: pipes, files, plain terminals.

What other threads have to say while somebody may be typing waits in ``Notices`` until it can be
shown without disturbing the input line.
"""

from __future__ import annotations

import collections
import io
from collections.abc import Callable
from typing import Protocol, TextIO

from localmoe.errors import LocalmoeError

PROMPT = "> "
MORE = "… "
QUOTES = '"""'


class Notices:
    """Things to show, in order, once there is a good moment. ``post`` may come from any thread."""

    def __init__(self) -> None:
        self._waiting: collections.deque[Callable[[], None]] = collections.deque()

    def post(self, show: Callable[[], None]) -> None:
        self._waiting.append(show)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def show(self) -> None:
        """Show what waits."""
        while self._waiting:
            self._waiting.popleft()()


class Lines(Protocol):
    """A source of messages."""

    interactive: bool  # somebody is typing
    tells_news: bool  # even while a message is being typed

    def read(self, default: str = "") -> str:
        """The next message; ``default`` is on the input line already, where there is one.

        Raises ``EOFError`` at the end, ``KeyboardInterrupt`` on Ctrl-C, and what ``stop`` got.
        """

    def choose(self, question: str) -> str:
        """A short answer to a question; "" for none."""

    def news(self) -> None:
        """There is something new to show: a notice, or the state of loading. From any thread."""

    def stop(self, error: LocalmoeError) -> None:
        """End a ``read`` that is under way with this error. From any thread."""

    def settle(self) -> None:
        """Wait until the input line is on the screen for the first time. From any thread."""


class PipedLines:
    """Not a terminal: each line is a message."""

    interactive = False
    tells_news = False

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        self._stream = stream

    def read(self, default: str = "") -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def choose(self, question: str) -> str:
        """Nobody is there to answer."""
        return ""

    def news(self) -> None:
        """Shown before the next message is answered."""

    def stop(self, error: LocalmoeError) -> None:
        """A line that is waited for cannot be taken back: the next message meets the error."""

    def settle(self) -> None:
        """There is nothing to draw."""


class TerminalLines(PipedLines):
    """A terminal that cannot move its cursor: one line at a time, the prompt beside stdout.

    A backslash at the end, or three quotes at the beginning, go on in the next line.
    """

    interactive = True

    def __init__(self, stream: TextIO, prompts: TextIO) -> None:
        super().__init__(stream)
        self._prompts = prompts

    def read(self, default: str = "") -> str:
        text = self._line(PROMPT)
        while unfinished(text):
            text = f"{text.removesuffix(BACKSLASH)}\n{self._line(MORE)}"
        return message_of(text)

    def choose(self, question: str) -> str:
        try:
            return self._line(question)
        except (EOFError, KeyboardInterrupt):
            return ""

    def _line(self, prompt: str) -> str:
        self._prompts.write(prompt)
        self._prompts.flush()
        try:
            return super().read()
        except (EOFError, KeyboardInterrupt):
            self._prompts.write("\n")
            raise


BACKSLASH = "\\"


def unfinished(text: str) -> bool:
    """Whether Enter breaks the line here: an open block of three quotes, or a final backslash."""
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) == 1
    backslashes = len(text) - len(text.rstrip(BACKSLASH))
    return backslashes % 2 == 1


def message_of(text: str) -> str:
    """Without the quotes around a block of many lines."""
    inner = text.strip()
    if inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES):
        return inner.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text
