"""The one place where commands write: everything they say goes through an ``Output``.

Results go to stdout, everything else to stderr. Text that comes from files, models or users is
cleaned of control characters and never read as markup. ``rich`` is imported on first use only,
so that commands which print nothing styled start fast.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

from localmoe.errors import LocalmoeError
from localmoe.schema import SCHEMA_VERSION
from localmoe.terminal.console import Pipe, make_console
from localmoe.text import clean

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from localmoe.hub.download import Progress
    from localmoe.terminal.console import Screen


class Output:
    """The sink of one command: for people, as JSON, or quiet.

    ``as_json`` turns results and errors into documents on stdout; ``lines`` writes each document
    on one line (``--jsonl``); ``quiet`` drops notes and warnings.
    """

    def __init__(
        self,
        *,
        as_json: bool = False,
        lines: bool = False,
        quiet: bool = False,
        out: TextIO | None = None,
        err: TextIO | None = None,
    ) -> None:
        self.as_json = as_json or lines
        self.lines = lines
        self.quiet = quiet
        self._out = out
        self._err = err

    @cached_property
    def stdout(self) -> Console:
        """Console of the answer."""
        return make_console(self._out or sys.stdout)

    @cached_property
    def stderr(self) -> Console:
        """Console of everything that is not the answer."""
        return make_console(self._err or sys.stderr)

    @property
    def screen(self) -> Screen:
        """Of the answer, for text that is not styled: a pipe need not wait for ``rich``."""
        stream = self._out or sys.stdout
        return self.stdout if stream.isatty() else Pipe(stream)

    @property
    def margin(self) -> Screen:
        """Of everything that is not the answer, likewise."""
        stream = self._err or sys.stderr
        return self.stderr if stream.isatty() else Pipe(stream)

    @property
    def columns(self) -> int:
        """Cells of a line of stderr; 1000 if it is no terminal."""
        return self.stderr.width

    def print(self, *renderables: RenderableType) -> None:
        """Write results as text to stdout."""
        if self.stdout.is_terminal:
            for renderable in renderables:
                self.stdout.print(renderable, crop=False)
            return
        with self.stdout.capture() as captured:
            for renderable in renderables:
                self.stdout.print(renderable, crop=False)
        # Columns are padded for the eye; a pipe needs no trailing blanks.
        lines = (line.rstrip() for line in captured.get().splitlines())
        self.stdout.file.write("".join(f"{line}\n" for line in lines))

    def line(self, text: str) -> None:
        """Write a line of plain text to stdout."""
        from rich.text import Text

        self.print(Text(clean(text)))

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
    ) -> None:
        """Write rows of untrusted strings to stdout."""
        from localmoe.terminal.tables import Rows

        self.print(Rows(columns, rows, right=right))

    def json(self, document: Mapping[str, object]) -> None:
        """Write one document to stdout. ASCII only: no byte of it can act on a terminal."""
        stream = self._out or sys.stdout
        text = json.dumps(
            {"schema_version": SCHEMA_VERSION, **document},
            indent=None if self.lines else 2,
            allow_nan=False,
        )
        stream.write(text + "\n")
        stream.flush()

    def note(self, text: str) -> None:
        """One line of information on stderr."""
        if not self.quiet:
            self._say(text, style="dim")

    def warn(self, text: str) -> None:
        """One line that the user should not miss, on stderr."""
        if not self.quiet:
            self._say(text, label="warning: ", style="yellow")

    @contextlib.contextmanager
    def progress(self, what: str) -> Iterator[Callable[[Progress], None]]:
        """Show how far the download of ``what`` is, as the ``Listener`` says."""
        from localmoe.terminal import download_display as displays

        display = displays.Display()
        if self.lines:
            display = displays.EventLines(self.json)
        elif not self.as_json and not self.quiet:
            terminal = self.stderr.is_terminal
            display = (
                displays.Bars(what, self.stderr)
                if terminal
                else displays.PlainLines(what, self.note)
            )
        with display as shown:
            yield shown.show

    def ask(self, question: str, *, reason: str = "") -> bool | None:
        """True for y or yes, False for anything else; None: stdin or stderr is no terminal."""
        from localmoe.terminal.tty import spoken

        console = self.stderr
        if self.as_json or not (sys.stdin.isatty() and console.file.isatty()):
            return None
        if reason:
            self.warn(reason)
        console.out(f"{question} [y/N] ", end="", highlight=False)
        console.file.flush()
        with spoken():
            answer = sys.stdin.readline()
        if not answer.endswith("\n"):
            console.print()
        return answer.strip().lower() in ("y", "yes")

    def lost(self, text: str) -> None:
        """One line about something of the user's that is not kept; ``--quiet`` does not hide it."""
        self._say(text, label="warning: ", style="yellow")

    def announce(self, text: str) -> None:
        """One line on stderr that others wait for; ``--quiet`` does not hide it."""
        self._say(text)

    def error(self, error: LocalmoeError) -> None:
        """The error and its hint: a document on stdout in JSON mode, else lines on stderr."""
        if self.as_json:
            self.json(error.to_json())
            return
        message, hint = error.typed()
        self._say(message, label="error: ", style="bold red")
        if hint:
            self._say(hint, label="  hint: ", style="cyan")

    def _say(self, text: str, *, label: str = "", style: str = "") -> None:
        margin = self.margin
        with contextlib.suppress(OSError):  # the answer can still be written
            if isinstance(margin, Pipe):  # not wrapped: a line break would hide words from grep
                margin.file.write(f"{label}{clean(text)}\n")
                margin.file.flush()
                return
            from rich.text import Text

            line = Text()
            if label:
                line.append(label, style=style)
            line.append(clean(text), style="" if label else style)
            margin.print(line)
