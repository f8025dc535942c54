"""How a turn looks while it happens: plain text in a pipe, markdown on a terminal.

The answer is only ever appended to. Reading the prompt and folded reasoning are one live line each.
"""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Self

from localmoe.chat.events import AnswerDelta, ChatEvent, ReasoningDelta
from localmoe.cli.output import Output
from localmoe.engine.events import PrefillProgress
from localmoe.terminal.answers import Writer, answer_writer, reasoning_writer
from localmoe.terminal.live_line import LiveLine
from localmoe.text import counted, format_duration


class Screen:
    """Shows the events of one turn. A context manager: its end tidies the terminal."""

    def __init__(self, output: Output, *, show_reasoning: bool = False) -> None:
        self._output = output
        self._line = LiveLine(output.stderr)
        self._answer = answer_writer(output.stdout)
        self._show_reasoning = show_reasoning and not output.quiet
        self._reasoning: Writer | None = None
        self._words = 0
        self._began = time.monotonic()
        self._thinking_since: float | None = None

    def show(self, event: ChatEvent) -> None:
        if isinstance(event, PrefillProgress):
            self._read(event)
        elif isinstance(event, ReasoningDelta):
            self._think(event.text)
        else:
            self._end_thinking()
            if isinstance(event, AnswerDelta):
                self._answer.feed(event.text)
            else:
                self._answer.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a broken pipe: ``show`` raised it already
            self._end_thinking()
            self._answer.finish()

    def _live(self, text: str) -> None:
        if not self._output.quiet:
            self._line.show(text)

    def _read(self, event: PrefillProgress) -> None:
        if event.done >= event.total:
            return
        fresh, took = event.done - event.reused, time.monotonic() - self._began
        left = (event.total - event.done) * took / fresh if fresh > 0 else 0.0
        rest = f" · {left:.0f} s left" if left >= 1 else ""
        self._live(f"reading · {event.done:,} of {event.total:,} tokens{rest}")

    def _think(self, text: str) -> None:
        if self._thinking_since is None:
            self._thinking_since = time.monotonic()
            if self._show_reasoning:
                self._line.clear()
                self._reasoning = reasoning_writer(self._output.stderr)
        self._words += len(text.split())
        if self._reasoning is not None:
            with contextlib.suppress(OSError):  # the answer can still be written
                self._reasoning.feed(text)
            return
        seconds = time.monotonic() - self._thinking_since
        self._live(f"thinking · {counted(self._words, 'word')} · {seconds:.0f} s")

    def _end_thinking(self) -> None:
        self._line.clear()
        if self._thinking_since is None:
            return
        if self._reasoning is not None:
            with contextlib.suppress(OSError):
                self._reasoning.finish()
            self._reasoning = None
        seconds = time.monotonic() - self._thinking_since
        self._thinking_since = None
        words = counted(self._words, "word")
        self._output.note(f"thought {words} in {format_duration(seconds)}")
