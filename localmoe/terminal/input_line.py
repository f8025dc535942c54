"""The input line of a chat in a terminal. Imported late, since prompt_toolkit is slow to import."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType

from prompt_toolkit import PromptSession
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.controls import BufferControl
from prompt_toolkit.layout.dimension import Dimension
from prompt_toolkit.output import Output as TerminalOutput
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from localmoe.errors import LocalmoeError
from localmoe.terminal.line_sources import BACKSLASH, PROMPT, Notices, message_of, unfinished
from localmoe.terminal.resizing import erase_folded
from localmoe.terminal.tty import hushed

DRAWN_WITHIN = 1.0  # seconds that ``settle`` waits at most


class _SignalError(Exception):
    """The signal that ended the input line."""

    def __init__(self, number: int) -> None:
        self.number = number


Propose = Callable[[str], Sequence[tuple[str, int]]]
"""Text before the cursor → (proposal, how many characters it replaces)."""


class EditedLines:
    """Editing over several lines, history (Ctrl-R searches it), Tab completion.

    ``status`` is shown at the right end of the input line while it is not empty.
    """

    interactive = True
    tells_news = True

    def __init__(
        self,
        propose: Propose,
        notices: Notices,
        status: Callable[[], str],
        history: History | None = None,
    ) -> None:
        self._notices = notices
        self._status = status
        self._stopped: LocalmoeError | None = None
        self._drawn = threading.Event()
        self._session: PromptSession[str] = PromptSession(
            history=history or InMemoryHistory(),
            completer=ProposalCompleter(propose),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            reserve_space_for_menu=0,
            multiline=True,
            key_bindings=key_bindings(),
            prompt_continuation=" " * len(PROMPT),
            rprompt=self._right,
            output=_output(),
            enable_open_in_editor=True,
            enable_suspend=True,
            tempfile_suffix=".md",
        )
        erase_folded(self._session.app)
        self._leave_room_above()

    def _leave_room_above(self) -> None:
        """A long message takes two thirds of the window at most: what was said last, an error above
        all, stays in sight. It is shown whole when it is sent.
        """

        def most() -> Dimension:
            app = self._session.app
            rows = app.output.get_size().rows
            return Dimension() if app.is_done else Dimension(max=max(1, 2 * rows // 3))

        typed = self._session.default_buffer
        for window in self._session.layout.find_all_windows():
            if isinstance(window.content, BufferControl) and window.content.buffer is typed:
                window.height = most

    def read(self, default: str = "") -> str:
        self._notices.show()
        try:
            with self._ended_by(signal.SIGHUP, signal.SIGTERM):
                text = self._session.prompt(PROMPT, default=default, pre_run=self._begun)
        except _SignalError as caught:
            raise SystemExit(128 + caught.number) from None
        finally:
            self._drawn.set()
            self._notices.show()
        return message_of(text)

    @contextlib.contextmanager
    def _ended_by(self, *numbers: signal.Signals) -> Iterator[None]:
        """Within the block these signals end ``read`` with _SignalError, from its event loop."""

        def handle(number: int, frame: FrameType | None) -> None:
            app = self._session.app
            if app.loop is not None and app.is_running and not app.is_done:
                app.loop.call_soon_threadsafe(self._exit, _SignalError(number))

        before = {number: signal.getsignal(number) for number in numbers}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _exit(self, error: Exception) -> None:
        if self._session.app.is_running and not self._session.app.is_done:
            self._session.app.exit(exception=error)

    def choose(self, question: str) -> str:
        asking: PromptSession[str] = PromptSession(
            key_bindings=key_bindings(may_be_empty=True), output=_output()
        )
        try:
            return asking.prompt(question)
        except (EOFError, KeyboardInterrupt):
            return ""

    def news(self) -> None:
        app = self._session.app
        loop = app.loop
        if loop is not None and app.is_running:
            loop.call_soon_threadsafe(self._show_news, context=app.context)

    def stop(self, error: LocalmoeError) -> None:
        self._stopped = error
        self.news()

    def settle(self) -> None:
        self._drawn.wait(DRAWN_WITHIN)

    def _begun(self) -> None:
        """Show what was posted while the input line was being drawn."""
        self.news()

    def _show_news(self) -> None:
        self._drawn.set()
        app = self._session.app
        if not app.is_running or app.is_done:
            return
        if self._stopped is not None:
            error, self._stopped = self._stopped, None
            app.current_buffer.append_to_history()  # what was typed is not lost
            self._exit(error)
            return
        if self._notices.waiting:
            run_in_terminal(self._show_hushed)
        app.invalidate()

    def _show_hushed(self) -> None:
        """Show notices; keys typed meanwhile are not echoed, and Enter among them still sends."""
        with hushed():
            self._notices.show()

    def _right(self) -> FormattedText:
        return FormattedText([("fg:ansibrightblack", self._status())])


def _output() -> TerminalOutput:
    """The terminal, which is never asked for the cursor's position.

    It is not needed, and over a slow connection the reply would arrive among typed keys.
    """
    output = create_output()
    if isinstance(output, Vt100_Output):
        output.enable_cpr = False
    return output


class ProposalCompleter(Completer):
    def __init__(self, propose: Propose) -> None:
        self._propose = propose

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        for text, replaced in self._propose(document.text_before_cursor):
            yield Completion(text, start_position=-replaced)


def key_bindings(*, may_be_empty: bool = False) -> KeyBindings:
    """Enter sends, Alt-Enter breaks the line, Ctrl-C empties the line before it interrupts."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not buffer.text.strip() and not may_be_empty:
            return
        if unfinished(buffer.text) and buffer.document.is_cursor_at_the_end:
            if buffer.text.endswith(BACKSLASH):
                buffer.delete_before_cursor()
            buffer.insert_text("\n")
            return
        buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    @keys.add("<sigint>")
    def interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    # A pasted colour code looks like a mouse event, which would move the cursor.
    @keys.add(Keys.Vt100MouseEvent, eager=True)
    @keys.add(Keys.WindowsMouseEvent, eager=True)
    def ignore(event: KeyPressEvent) -> None:
        """The mouse is not used."""

    return keys
