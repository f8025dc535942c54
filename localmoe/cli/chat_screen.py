"""How a turn looks while it happens: plain text for pipes, markdown for terminals.

Both only ever append. What a terminal shows of an unfinished block is one line that changes in
place until the block is whole. Thinking is folded to a count.
"""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import ClassVar, Self

from rich.console import JustifyMethod
from rich.markdown import Heading, Markdown, MarkdownElement
from rich.segment import Segment, SegmentLines
from rich.syntax import Syntax
from rich.text import Text

from localmoe.chat.conversation import AnswerDelta, ChatEvent, ReasoningDelta
from localmoe.chat.markdown import Block, Kind, MarkdownStream
from localmoe.cli.live import LiveLine
from localmoe.cli.output import Output
from localmoe.engine.events import PrefillProgress
from localmoe.text import Sanitizer, clean, format_duration

CODE_THEME = "ansi_dark"  # the terminal's own colours
HIGHLIGHT_LINES = 400  # longer code is shown without colours: each line colours all before it


class Screen:
    """What both screens do the same way. A context manager: its end tidies the terminal."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._line = LiveLine(output.stderr)
        self._words = 0
        self._thinking_since: float | None = None

    def show(self, event: ChatEvent) -> None:
        if isinstance(event, PrefillProgress):
            if event.done < event.total:
                self._live(f"reading · {event.done}/{event.total} tokens")
        elif isinstance(event, ReasoningDelta):
            self._think(event.text)
        else:
            self._end_thinking()
            if isinstance(event, AnswerDelta):
                self.answer(event.text)
            else:
                self.finish()

    def answer(self, text: str) -> None:
        """More of the answer."""
        raise NotImplementedError

    def finish(self) -> None:
        """The rest of the answer. May be called again, and then does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # the reader is gone, and that is told elsewhere
            self._end_thinking()
            self.finish()

    def _live(self, text: str) -> None:
        if not self._output.quiet:
            self._line.show(text)

    def _think(self, text: str) -> None:
        if self._thinking_since is None:
            self._thinking_since = time.monotonic()
        self._words += len(text.split())
        self._live(f"thinking · {self._words} words")

    def _end_thinking(self) -> None:
        self._line.clear()
        if self._thinking_since is not None:
            seconds = time.monotonic() - self._thinking_since
            self._thinking_since = None
            self._output.note(f"thought {self._words} words in {format_duration(seconds)}")


class PlainScreen(Screen):
    """The answer as it arrives, cleaned and otherwise untouched, and a newline at its end."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._sanitizer = Sanitizer()
        self._last = "\n"

    def answer(self, text: str) -> None:
        self._write(self._sanitizer.feed(text))

    def finish(self) -> None:
        self._write(self._sanitizer.flush())
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            stream = self._output.stdout.file
            stream.write(text)
            stream.flush()
            self._last = text[-1]


class MarkdownScreen(Screen):
    """Finished blocks as rich text; of the unfinished one, its end in one changing line."""

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._stream = MarkdownStream()
        self._tail = LiveLine(output.stdout)
        self._code: list[str] = []
        self._blank_due = False  # a blank line in the source, shown once something follows

    def answer(self, text: str) -> None:
        blocks = self._stream.feed(text)
        if blocks:
            self._tail.clear()
        for block in blocks:
            self._show(block)
        lines = self._stream.pending.rstrip().rsplit("\n", 1)
        self._tail.show(clean(lines[-1]))

    def finish(self) -> None:
        self._tail.clear()
        for block in self._stream.finish():
            self._show(block)

    def _show(self, block: Block) -> None:
        text = clean(block.text)
        if block.kind is Kind.TEXT and not text.strip():
            self._blank_due = True
            return
        if self._blank_due:
            self._output.stdout.print()
            self._blank_due = False
        if block.kind is Kind.FENCE:
            self._code.clear()
            self._output.stdout.print(Text(text.rstrip("\n"), style="dim"), soft_wrap=True)
        elif block.kind is Kind.CODE:
            self._code.append(text.rstrip("\n"))
            self._output.stdout.print(self._code_line(block.language), soft_wrap=True)
        else:
            self._print_markdown(text)
            self._blank_due = text.rstrip(" \t").endswith("\n\n")

    def _print_markdown(self, text: str) -> None:
        """Without the blank lines that rich puts around some constructs: the source decides."""
        console = self._output.stdout
        rendered = console.render_lines(AnswerMarkdown(text), pad=False)
        lines = [_trimmed(line) for line in rendered]
        while lines and not lines[0]:
            lines.pop(0)
        while lines and not lines[-1]:
            lines.pop()
        console.print(SegmentLines(lines, new_lines=True), end="")

    def _code_line(self, language: str) -> Text:
        """The last line of the code so far, coloured as part of the whole."""
        lexer = language.split()[0] if language else ""
        if not lexer or len(self._code) > HIGHLIGHT_LINES:
            return Text(self._code[-1])
        coloured = Syntax("", lexer, theme=CODE_THEME, background_color="default").highlight(
            "\n".join(self._code)
        )
        lines = coloured.split("\n", allow_blank=True)
        return lines[len(self._code) - 1] if len(lines) >= len(self._code) else Text(self._code[-1])


def _trimmed(line: list[Segment]) -> list[Segment]:
    """Without the blanks at its end, which nobody wants in a copy of it."""
    kept = list(line)
    while kept and not kept[-1].text.strip():
        kept.pop()
    if kept:
        kept[-1] = Segment(kept[-1].text.rstrip(), kept[-1].style)
    return kept


class LeftHeading(Heading):
    """rich centres the largest headings, away from the text they belong to."""

    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class AnswerMarkdown(Markdown):
    """Markdown whose links are written out: a hidden address is the model's to choose."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "heading_open": LeftHeading,
    }

    def __init__(self, text: str) -> None:
        super().__init__(text, code_theme=CODE_THEME, hyperlinks=False)
