"""An answer as plain text, without an escape code: for pipes, and under ``NO_COLOR``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from localmoe.text import Sanitizer

if TYPE_CHECKING:
    from localmoe.terminal.console import Screen

FENCE = "```"  # a line that begins with it begins or ends a block of code
TAB = 4  # blanks, at the beginning of a line


class PlainWriter:
    """Text of a model in any pieces → ``console``: made safe for a terminal.

    A pipe or a file gets every character as it is, since no terminal acts on them there.
    """

    def __init__(self, console: Screen) -> None:
        self._console = console
        self._sanitizer = Sanitizer() if console.file.isatty() else None
        self._last = "\n"

    def feed(self, text: str) -> None:
        self._write(self._sanitizer.feed(text) if self._sanitizer else text)

    def finish(self) -> None:
        """The rest, and a newline if it has none. May be called again, and then does nothing."""
        if self._sanitizer:
            self._write(self._sanitizer.flush())
        if self._last != "\n":
            self._write("\n")

    def _write(self, text: str) -> None:
        if text:
            self._console.file.write(text)
            self._console.file.flush()
            self._last = text[-1]


class WrappedWriter:
    """The same for a window: no word is broken at its edge, and an indentation is kept.

    Lines of code are left as they are, so that they can be copied.
    """

    def __init__(self, console: Screen) -> None:
        from localmoe.terminal.wrap import Wrapper  # late: a pipe need not wait

        self._console = console
        self._sanitizer = Sanitizer()
        self._wrapper = Wrapper(lambda: max(10, console.width - 1))
        self._in_code = False
        self._head = ""  # how the line under way begins; "" before its first character
        self._started = False  # the wrapper has the line under way

    def feed(self, text: str) -> None:
        self._put(self._sanitizer.feed(text))

    def finish(self) -> None:
        """The rest, and a newline if it has none. May be called again, and then does nothing."""
        self._put(self._sanitizer.flush())
        if self._head:
            self._put("\n")

    def _put(self, text: str) -> None:
        first, *others = text.split("\n")
        out = [self._more(first)]
        for part in others:
            out += (self._end(), self._more(part))
        if shown := "".join(out):
            self._console.file.write(shown)
            self._console.file.flush()

    def _more(self, text: str) -> str:
        """More of the line under way.

        Blanks at its beginning wait for what follows them, and a fence for its third character.
        """
        if self._started:
            return self._wrapper.add(text)
        self._head += text
        if self._in_code:
            return text
        words = self._head.lstrip(" \t")
        known = bool(words) and (words == FENCE or not FENCE.startswith(words))
        return self._begin(words) if known else ""

    def _begin(self, words: str) -> str:
        self._started = True
        indent = self._head.removesuffix(words).expandtabs(TAB)
        return self._wrapper.start(indent, indent) + self._wrapper.add(words)

    def _end(self) -> str:
        """The end of the line under way, with what has waited for more of it."""
        words = self._head.lstrip(" \t")
        waited = self._begin(words) if words and not self._started and not self._in_code else ""
        ended = self._wrapper.end() if self._started else "\n"
        if words.startswith(FENCE):
            self._in_code = not self._in_code
        self._head, self._started = "", False
        return waited + ended
