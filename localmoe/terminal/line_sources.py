"""Where a chat's messages come from when there is no editor: pipes, files, plain terminals.

Notes of other threads wait in ``Notices`` until they can be shown without disturbing the input
line.
"""

from __future__ import annotations

import collections
import io
from collections.abc import Callable
from typing import Protocol, TextIO

from localmoe.errors import LocalmoeError

PROMPT = "> "
MORE = "… "  # the prompt of a message's further lines
QUOTES = '"""'


class Notices:
    """A queue of things to show; ``post`` may be called from any thread."""

    def __init__(self) -> None:
        self._waiting: collections.deque[Callable[[], None]] = collections.deque()

    def post(self, show: Callable[[], None]) -> None:
        self._waiting.append(show)

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def show(self) -> None:
        """Call everything that was posted, in order."""
        while self._waiting:
            self._waiting.popleft()()


class Lines(Protocol):
    """A source of messages. ``news``, ``stop`` and ``settle`` may be called from any thread."""

    interactive: bool  # messages are typed by a person
    tells_news: bool  # ``news`` shows them even while a message is being typed

    def read(self, default: str = "") -> str:
        """The next message; an editor's input line begins with ``default``.

        Raises EOFError at the end, KeyboardInterrupt on Ctrl-C, and the error given to ``stop``.
        """

    def choose(self, question: str) -> str:
        """A short answer to a question; "" for none."""

    def news(self) -> None:
        """There is something new to show: a notice, or the state of loading."""

    def stop(self, error: LocalmoeError) -> None:
        """End the current ``read`` with this error."""

    def settle(self) -> None:
        """Wait until the input line is on the screen for the first time."""


class PipedLines:
    """A pipe or file: each line is a message."""

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
        """Always "": there is nobody to answer."""
        return ""

    def news(self) -> None:
        """Does nothing: notices are shown before the next message is answered."""

    def stop(self, error: LocalmoeError) -> None:
        """Does nothing: a ``readline`` cannot be ended, and the next message raises the error."""

    def settle(self) -> None:
        """Does nothing: there is no input line."""


class TerminalLines(PipedLines):
    """A terminal without an editor, read line by line; prompts are written to ``prompts``.

    A message goes on in the next line after a final backslash, or within three quotes.
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
    """Whether Enter begins a new line: within three quotes, or after a final backslash."""
    if text.lstrip().startswith(QUOTES):
        return text.count(QUOTES) == 1
    backslashes = len(text) - len(text.rstrip(BACKSLASH))
    return backslashes % 2 == 1


def message_of(text: str) -> str:
    """The text, without three quotes around it."""
    inner = text.strip()
    if inner.startswith(QUOTES) and inner.endswith(QUOTES) and len(inner) >= 2 * len(QUOTES):
        return inner.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n")
    return text
