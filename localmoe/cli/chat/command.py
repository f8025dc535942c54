"""``chat``: how it begins. The model comes while the first message is being typed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from localmoe.chat.attachments import read_attachment
from localmoe.chat.store import Log, Store
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.chat.loop import ChatLoop
from localmoe.cli.config import defaults as configured
from localmoe.cli.output import Output
from localmoe.errors import UnknownModelError, UsageError
from localmoe.facts import catalog
from localmoe.terminal import tty
from localmoe.terminal.dumb import is_dumb
from localmoe.terminal.line_sources import Lines, Notices, PipedLines, TerminalLines
from localmoe.text import clean_line

if TYPE_CHECKING:
    from localmoe.cli.talk import Talk


def chat_command(options: Options, output: Output) -> int:
    """Exit code 0, or 130 after Ctrl-C twice."""
    return open_chat(only_model(options), options, output)


def open_chat(name: str | None, options: Options, output: Output) -> int:
    """A chat with the model of that name; without one, that of its session or the default one."""
    if output.as_json:
        raise UsageError(
            "a chat has no JSON form", hint="localmoe run PROMPT… --json answers one prompt"
        )
    store, log = open_session(options)
    files = [read_attachment(path) for path in options.files]
    grammar = _grammar(options.schema) if options.schema else None
    if name is None and log is not None:
        name = model_of(log, output)
        if name is not None:
            options = configured.for_model(options, name)
    bring_here(name or configured.default_model()[0], options, output)
    notices = Notices()
    queued = QueuedOutput(output, notices)

    @contextlib.contextmanager
    def open_room(model: str | None, options: Options) -> Iterator[Talk]:
        from localmoe.cli import talk  # on the loading thread: the input line does not wait for it

        with talk.open_talk(model, options, queued) as room:
            import localmoe.cli.chat.screen  # noqa: F401 - the first answer need not wait for it

            yield room

    loop = ChatLoop(open_room, options, output, notices, store=store, log=log, grammar=grammar)
    loop.chat.files += files
    with tty.kept():
        lines = line_reader(loop, notices, private=options.no_history)
        queued.lines_of_input = lines
        return loop.run(name, lines)


def _grammar(path: str) -> str:
    """The grammar of a JSON schema. Raises ``UsageError``."""
    from localmoe.cli.run.command import read_schema
    from localmoe.engine.grammar import schema_to_gbnf

    return schema_to_gbnf(read_schema(path))


def open_session(options: Options) -> tuple[Store | None, Log | None]:
    """Where the chat is written, as the options want it.

    Raises ``UsageError`` for a wrong name, or a conversation that is not there or in use.
    """
    if options.no_history:
        if options.resume or options.session:
            raise UsageError("--no-history neither reads nor writes conversations")
        return None, None
    store = Store()
    if options.resume:
        return store, store.open(store.latest())
    return store, store.open(options.session or store.new_name())


def model_of(log: Log, output: Output) -> str | None:
    """The model that a conversation was led with, if it is still here."""
    model = log.session.model
    if model is None:
        return None
    if Path(model.source).exists():
        return model.source
    output.note(f"{clean_line(model.name)}, the model of this conversation, is not here any more")
    return None


def bring_here(name: str, options: Options, output: Output) -> None:
    """Ask and download before the input line appears, if the model is not on this machine.

    Raises what ``prepare.open_model`` does.
    """
    try:
        path = catalog.resolve(name)
        if catalog.is_path(name) or catalog.is_whole(path):
            return
    except UnknownModelError:
        pass  # perhaps the Hub has it
    from localmoe.cli import prepare

    prepare.open_model(name, output, options)


class QueuedOutput(Output):
    """Notes of other threads: they are shown when the input line is not in the way."""

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
    """An editor on a terminal that can move its cursor; else line by line."""
    if not sys.stdin.isatty():
        return PipedLines(sys.stdin)
    if not sys.stdout.isatty() or is_dumb():
        return TerminalLines(sys.stdin, sys.stderr)
    from localmoe.cli.chat.history import PrivateHistory
    from localmoe.terminal.input_line import EditedLines

    history = None if private else PrivateHistory()
    return EditedLines(loop.propose, notices, lambda: loop.seat.loading, history)
