"""The loop of a chat: read a line, ask the model or run a command, show what comes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Sequence

from localmoe.chat.builtin import add_builtin
from localmoe.chat.commands import Again, Ask, ExitChat, Registry, parse
from localmoe.chat.events import ChatEvent, TurnDone
from localmoe.chat.session import Message
from localmoe.chat.session_commands import add_session_commands, resumed
from localmoe.chat.state import Chat
from localmoe.chat.store import Log, Store
from localmoe.cli.arguments import Options
from localmoe.cli.chat.model import ChatModel, OpenModel
from localmoe.cli.chat.overflow import Overflowing
from localmoe.cli.output import Output
from localmoe.errors import (
    INTERRUPTED,
    ContextOverflowError,
    EngineCrashError,
    InterruptedLoadError,
    LocalmoeError,
)
from localmoe.terminal.interrupts import PressedTwice
from localmoe.terminal.line_sources import MORE, PROMPT, Lines, Notices
from localmoe.terminal.tty import hushed
from localmoe.text import clean

TWICE = 2.0  # seconds within which a second Ctrl-C leaves
NEVER = float("-inf")
# The order of the commands in the help.
ORDER = """help regen undo edit copy read think reasoning set system model
stats context experts save load sessions clear exit""".split()  # noqa: SIM905

Events = Generator[ChatEvent, None, None]


class Quit(Exception):  # noqa: N818 - leaving is no error
    """Ctrl-C twice."""


class ChatLoop:
    """One chat, from its options to its exit code. ``grammar``: GBNF that every answer follows."""

    def __init__(
        self,
        open_model: OpenModel,
        options: Options,
        output: Output,
        notices: Notices,
        *,
        store: Store | None = None,
        log: Log | None = None,
        grammar: str | None = None,
    ) -> None:
        self._output = output
        self._learns = not options.no_history
        self._notices = notices
        self._draft = ""  # text with which the next input line begins
        self._pressed = NEVER  # when Ctrl-C was pressed last
        self._code = 0  # what the chat will end with
        self.model = ChatModel(open_model, options, output, notices, grammar)
        self.chat = Chat(
            ready=self.model.ready,
            store=store,
            warn=output.warn,
            lost=output.lost,
            columns=lambda: output.columns,
            resize=self.model.resize,
            leaving=self.model.keep,
            entered=self.model.resume,
        )
        self.model.chat = self.chat
        if log is not None:
            self.chat.open_log(log)
        if options.system is not None:
            self.chat.session.system = options.system
        if options.overflow is not None:
            self.chat.set("overflow", options.overflow)
        self.commands = self._registry()

    def propose(self, text: str) -> Sequence[tuple[str, int]]:
        """Completions of what is typed so far."""
        return self.commands.complete(self.chat, text)

    def run(self, name: str | None, lines: Lines) -> int:
        """Chat with the model of that name until the end of input; returns the exit code.

        What is typed while no input line is there, as in a command, waits for the next one. Raises
        what planning and loading raise if no model could be loaded at all.
        """
        with hushed():
            return self._run(name, lines)

    def _run(self, name: str | None, lines: Lines) -> int:
        self._lines = self.model.lines = lines
        self._overflowing = Overflowing(self.chat, lines, self._output)
        if self.chat.session.turns and lines.interactive:
            self._show(resumed(self.chat))
        self.model.begin(name)
        try:
            if not lines.interactive:
                self.model.ready()
            elif not lines.tells_news:
                self.model.wait_for_plan()
            code = self._until_the_end()
            self.model.keep(self.chat.name)
            return code
        finally:
            self.model.close()
            if self.chat.log is not None:
                self.chat.log.close()

    # Lines and commands.

    def _until_the_end(self) -> int:
        try:
            self._read_lines()
        except Quit:
            return INTERRUPTED
        return self._code

    def _failed(self, error: LocalmoeError) -> None:
        """Show an error that does not end the chat.

        Nobody may be looking at a pipe's: there the first one is the exit code of the chat as well.
        """
        self._output.error(error)
        if not self._lines.interactive:
            self._code = self._code or error.exit_code

    def _read_lines(self) -> None:
        """Until the end of input or /exit. Raises ``Quit``."""
        while True:
            default, self._draft = self._draft, ""
            try:
                line = self._lines.read(default)
                self._pressed = NEVER
                self._handle(line)
            except (EOFError, ExitChat):
                return
            except PressedTwice:
                raise Quit from None
            except KeyboardInterrupt:
                self._interrupted()
            except InterruptedLoadError as error:
                if not self._lines.interactive:
                    raise
                self._pressed = time.monotonic()
                self._output.note(f"{error.message}; your next message begins it again")
            except LocalmoeError as error:
                if not self.model.loaded_once and self.model.load.error is error:
                    raise  # no model was ever loaded: the chat cannot go on
                self._failed(error)

    def _interrupted(self) -> None:
        """Ctrl-C at the input line or in a command. Raises ``Quit`` for the second in a row."""
        if time.monotonic() - self._pressed < TWICE or not self._lines.interactive:
            raise Quit
        self._pressed = time.monotonic()
        if self.model.load.busy:
            self.model.load.cancel()
            self._output.note("loading stops; your next message begins it again")
        else:
            self._output.note("Ctrl-C once more leaves; so does Ctrl-D")

    def _handle(self, line: str) -> None:
        self._notices.show()
        if not line.strip():
            return
        invocation = parse(line)
        if invocation is None:
            self._ask(line)
            return
        result = self.commands.dispatch(self.chat, invocation)
        if isinstance(result, Again):
            self._again()
        elif isinstance(result, Ask):
            # It was written in another program: here it is among what was said, as if typed.
            self._show(PROMPT + result.text.rstrip("\n").replace("\n", f"\n{MORE}"))
            self._ask(result.text, replace=result.replace)
        elif result:
            self._show(result)

    def _show(self, text: str) -> None:
        if not self._output.quiet:
            console = self._output.stderr
            with contextlib.suppress(OSError):
                console.print(clean(text), style="dim", soft_wrap=not console.file.isatty())

    # Turns.

    def _ask(self, text: str, *, replace: bool = False) -> None:
        """One turn; with ``replace`` instead of the last one, which is kept if no answer comes."""
        chat = self.chat
        text = text.encode(errors="replace").decode()  # a terminal may send half a character
        try:
            conversation = self.model.ready()
        except InterruptedLoadError:
            self._draft = text
            raise
        replaced = chat.session.undo() if replace else None
        files = (*(replaced.question.files if replaced else ()), *chat.files)
        before = len(chat.session.turns)
        try:
            if self._overflowing.fits(conversation, Message("user", text, files=files)):
                self._play(conversation.ask(text, files))
            else:
                self._draft = text
        finally:
            if replaced is not None and chat.session.put_back(replaced, before):
                self._draft = text
            elif len(chat.session.turns) > before:
                chat.files.clear()

    def _again(self) -> None:
        conversation = self.model.ready()
        if self.chat.settings.sampling.seed is not None:
            self._output.note("the seed is fixed (/set seed random for another answer)")
        self._play(conversation.regenerate())

    def _play(self, events: Events) -> None:
        """Show a turn as it happens."""
        from localmoe.cli.chat.screen import Screen
        from localmoe.cli.loaded import stoppable

        model = self.model.loaded()
        self.model.unsaved = True
        screen = Screen(self._output, show_reasoning=self.chat.show_reasoning)
        with stoppable(model, self._output) as pressed:
            try:
                with screen:
                    for event in events:
                        if pressed.count:
                            model.engine.cancel()
                        screen.show(event)
                        if isinstance(event, TurnDone):
                            self._done(event)
            except KeyboardInterrupt:
                raise Quit from None
            except ContextOverflowError as error:
                self._failed(error)
            except EngineCrashError as error:
                self._failed(error)
                self._output.note(
                    "the conversation is kept; your next message starts the engine again"
                )
            finally:
                events.close()
        if pressed.count:
            self._pressed = time.monotonic()

    def _done(self, done: TurnDone) -> None:
        """Note and show a turn's figures. One interrupted before its first word has none: how much
        of its prompt is in the context is unknown.
        """
        begun = done.usage.completion_tokens > 0 or done.finish_reason != "interrupted"
        self.chat.last = done if begun else None
        if done.finished is not None and done.finished.note:
            self._output.warn(done.finished.note)
        if begun:
            self._status(done)
            if self._learns:
                self._learn(done)
        else:
            self._output.note("interrupted before the first word")

    def _learn(self, done: TurnDone) -> None:
        """Note the turn's speed for later forecasts."""
        from localmoe.app.experience import learn_from

        model = self.model.loaded()
        learn_from(model.facts, model.plan, model.machine, done.finished)

    def _status(self, done: TurnDone) -> None:
        from localmoe.cli.chat.status import status_lines

        why = done.why_it_ended(self.chat.context, self.chat.trained, " (/set max_tokens)")
        if why:
            self._output.note(why)
        if done.no_answer is not None:
            if self._lines.interactive:
                self._output.note(done.no_answer.message)
            else:
                self._failed(done.no_answer)
        if self._output.quiet:
            return
        console = self._output.stderr
        width = self._output.columns - 1
        with contextlib.suppress(OSError):
            for line in status_lines(done, self.chat.meter, self.model.plan, width):
                console.print(line, soft_wrap=True)
            if self._lines.interactive:
                console.print()

    def _registry(self) -> Registry:
        from localmoe.cli.chat.commands import add_terminal_commands

        registry = Registry()
        add_builtin(registry)
        add_session_commands(registry)
        add_terminal_commands(registry, self._output, self.model, models=local_names)
        registry.sort(ORDER)
        return registry


def local_names() -> Iterable[str]:
    """What can be typed for the models on this machine: their names, and aliases."""
    from localmoe import config
    from localmoe.facts import catalog

    names = {model.name for model in catalog.installed_models()}
    with contextlib.suppress(LocalmoeError):  # of a configuration that cannot be read
        names |= config.read().aliases.keys()
    return sorted(names)
