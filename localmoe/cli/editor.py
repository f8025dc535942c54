"""The input line of a chat in a terminal. Imported late: it brings prompt_toolkit with it."""

from __future__ import annotations

from collections.abc import Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from localmoe.chat.commands import Registry
from localmoe.cli.lines import PROMPT


class EditedLines:
    """Editing over several lines, history (Ctrl-R searches it), Tab completion of commands."""

    interactive = True

    def __init__(self, commands: Registry) -> None:
        self._session: PromptSession[str] = PromptSession(
            history=InMemoryHistory(),
            completer=CommandCompleter(commands),
            complete_while_typing=False,
            multiline=True,
            key_bindings=key_bindings(),
            prompt_continuation=" " * len(PROMPT),
        )

    def read(self) -> str:
        return self._session.prompt(PROMPT)


class CommandCompleter(Completer):
    def __init__(self, commands: Registry) -> None:
        self._commands = commands

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        for text, replaced in self._commands.complete(document.text_before_cursor):
            yield Completion(text, start_position=-replaced)


def key_bindings() -> KeyBindings:
    """Enter sends, Alt-Enter breaks the line, Ctrl-C empties the line before it interrupts."""
    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    return keys
