"""``chat``: its beginning. The model loads while the first message is being typed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from localmoe.app.default_model import default_model
from localmoe.app.sessions import model_of, open_session
from localmoe.chat.attachments import read_attachment
from localmoe.chat.store import Log, Store
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.chat.loop import ChatLoop
from localmoe.cli.config import defaults
from localmoe.cli.output import Output
from localmoe.cli.requests import load_request, session_request
from localmoe.facts import catalog
from localmoe.terminal import tty
from localmoe.terminal.console import is_dumb
from localmoe.terminal.line_sources import Lines, Notices, PipedLines, TerminalLines

if TYPE_CHECKING:
    from localmoe.app.model import LoadedModel


def chat_command(options: Options, output: Output) -> int:
    """Exit code 0, or 130 after Ctrl-C twice."""
    return open_chat(only_model(options), options, output)


def open_chat(name: str | None, options: Options, output: Output) -> int:
    """A chat with the model of that name; None: the session's model, else the default one."""
    store, log = open_session(session_request(options))
    try:
        return _chat(name, store, log, options, output)
    finally:
        if log is not None:
            log.close()  # it may be a new one without turns: closing frees its name


def _chat(
    name: str | None, store: Store | None, log: Log | None, options: Options, output: Output
) -> int:
    files = [read_attachment(path) for path in options.files]
    grammar = None
    if options.schema:
        from localmoe.cli.schema_file import grammar_of

        grammar = grammar_of(options.schema)
    if name is None and log is not None:
        name = model_of(log, output)
        if name is not None:
            options = defaults.for_model(options, name)
    if not catalog.is_here(name or default_model()[0]):  # its question comes before the input line
        from localmoe.app.find import bring_here

        bring_here(load_request(options, name), output)
    notices = Notices()
    queued = QueuedOutput(output, notices)

    @contextlib.contextmanager
    def open_model(name: str | None, options: Options) -> Iterator[LoadedModel]:
        from localmoe.cli import loaded  # slow to import, so on the loading thread

        with loaded.open_model(name, options, queued) as model:
            import localmoe.cli.chat.screen  # noqa: F401 - else the first answer waits for it

            yield model

    loop = ChatLoop(open_model, options, output, notices, store=store, log=log, grammar=grammar)
    loop.chat.files += files
    with tty.kept():
        lines = line_reader(loop, notices, private=options.no_history)
        queued.lines_of_input = lines
        return loop.run(name, lines)


class QueuedOutput(Output):
    """The ``Output`` of other threads: its lines are posted to ``notices`` instead of written."""

    def __init__(self, output: Output, notices: Notices) -> None:
        super().__init__(quiet=output.quiet)
        self.lines_of_input: Lines | None = None
        self._to = output
        self._notices = notices

    def _say(self, text: str, *, label: str = "", style: str = "") -> None:
        self._notices.post(lambda: self._to._say(text, label=label, style=style))
        if self.lines_of_input is not None:
            self.lines_of_input.news()


def line_reader(loop: ChatLoop, notices: Notices, *, private: bool) -> Lines:
    """An editor on a terminal that can move its cursor; else a reader of lines."""
    if not sys.stdin.isatty():
        return PipedLines(sys.stdin)
    if not sys.stdout.isatty() or is_dumb():
        return TerminalLines(sys.stdin, sys.stderr)
    from localmoe.terminal.history import PrivateHistory
    from localmoe.terminal.input_line import EditedLines

    history = None if private else PrivateHistory()
    return EditedLines(loop.propose, notices, lambda: loop.model.loading, history)
