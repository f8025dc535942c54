"""``chat``: the loop that reads a line, asks the model or runs a command, and shows what comes."""

from __future__ import annotations

import os
import sys

from localmoe.chat.commands import (
    Chat,
    ExitChat,
    Registry,
    context_meter,
    parse,
    standard_commands,
)
from localmoe.chat.conversation import TurnDone
from localmoe.cli import talk
from localmoe.cli.arguments import Options, only_model
from localmoe.cli.chat_screen import MarkdownScreen, PlainScreen, Screen
from localmoe.cli.lines import Lines, PipedLines, TerminalLines
from localmoe.cli.output import Output
from localmoe.errors import ContextOverflowError, EngineCrashError, LocalmoeError, UsageError
from localmoe.text import clean

INTERRUPTED = 130


def chat_command(options: Options, output: Output) -> int:
    """Exit code 0, or 130 after Ctrl-C twice."""
    return open_chat(only_model(options), options, output)


def open_chat(name: str | None, options: Options, output: Output) -> int:
    """A chat with the model of that name (the default one without a name)."""
    if output.as_json:
        raise UsageError(
            "a chat has no JSON form", hint="localmoe run PROMPT… --json answers one prompt"
        )
    with talk.open_talk(name, options, output) as room:
        loaded = room.load()
        conversation = room.conversation(options)
        about = talk.about(room.model, room.plan, loaded.context)
        chat = Chat(conversation, loaded.context, about)
        commands = standard_commands()
        lines = _line_reader(commands)
        output.note(about)
        if lines.interactive:
            output.note("/help lists the commands, Ctrl-D leaves")
        return ChatLoop(room, chat, commands, lines, output).run()


class ChatLoop:
    """Turns until the end of input."""

    def __init__(
        self, room: talk.Talk, chat: Chat, commands: Registry, lines: Lines, output: Output
    ) -> None:
        self._room = room
        self._chat = chat
        self._commands = commands
        self._lines = lines
        self._output = output
        self._interrupted = False  # by the Ctrl-C before this one, at the empty prompt

    def run(self) -> int:
        while True:
            try:
                line = self._lines.read()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if self._interrupted or not self._lines.interactive:
                    return INTERRUPTED
                self._interrupted = True
                self._output.note("Ctrl-C once more leaves; so does Ctrl-D")
                continue
            self._interrupted = False
            try:
                self._handle(line)
            except ExitChat:
                return 0
            except LocalmoeError as error:
                self._output.error(error)

    def _handle(self, line: str) -> None:
        if not line.strip():
            return
        invocation = parse(line)
        if invocation is None:
            self._turn(line)
            return
        shown = self._commands.dispatch(self._chat, invocation)
        if shown:
            self._output.stderr.print(clean(shown), style="dim", soft_wrap=True)

    def _turn(self, text: str) -> None:
        if not self._room.engine.alive:
            self._output.note("starting the engine again")
            self._room.load()
        screen = self._screen()
        events = self._chat.conversation.ask(text)
        try:
            with talk.interrupts(self._room.engine) as pressed, screen:
                for event in events:
                    if pressed.pressed:
                        self._room.engine.cancel()
                    screen.show(event)
                    if isinstance(event, TurnDone):
                        self._chat.last = event
                        self._status(event)
        except KeyboardInterrupt:
            self._output.note("interrupted; what is there is kept")
        except ContextOverflowError as error:
            self._output.error(error)
            if self._chat.conversation.session.messages:
                self._output.note("/clear forgets the conversation and makes room")
        except EngineCrashError as error:
            self._output.error(error)
            self._output.note("the conversation is kept; your next message starts the engine again")
        finally:
            events.close()

    def _screen(self) -> Screen:
        kind = MarkdownScreen if self._output.stdout.is_terminal else PlainScreen
        return kind(self._output)

    def _status(self, done: TurnDone) -> None:
        context = self._chat.context
        why = talk.why_it_ended(done, context)
        if why:
            self._output.note(why)
        parts = [*talk.figures(done), f"context {context_meter(done, context)}"]
        self._output.note(" · ".join(parts))
        if self._lines.interactive and not self._output.quiet:
            self._output.stderr.print()


def _line_reader(commands: Registry) -> Lines:
    if not sys.stdin.isatty():
        return PipedLines(sys.stdin)
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return TerminalLines(sys.stdin, sys.stderr)
    from localmoe.cli.editor import EditedLines

    return EditedLines(commands)
