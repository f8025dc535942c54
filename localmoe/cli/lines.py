"""Where a chat's messages come from when there is no editing: pipes, files, plain terminals."""

from __future__ import annotations

import io
from typing import Protocol, TextIO

PROMPT = "> "


class Lines(Protocol):
    """A source of messages."""

    interactive: bool  # somebody is typing

    def read(self) -> str:
        """The next message. Raises ``EOFError`` at the end, ``KeyboardInterrupt`` on Ctrl-C."""


class PipedLines:
    """Not a terminal: each line is a message."""

    interactive = False

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        self._stream = stream

    def read(self) -> str:
        line = self._stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


class TerminalLines(PipedLines):
    """A terminal that cannot move its cursor: one line at a time, the prompt beside stdout."""

    interactive = True

    def __init__(self, stream: TextIO, prompts: TextIO) -> None:
        super().__init__(stream)
        self._prompts = prompts

    def read(self) -> str:
        self._prompts.write(PROMPT)
        self._prompts.flush()
        try:
            return super().read()
        except (EOFError, KeyboardInterrupt):
            self._prompts.write("\n")
            raise
