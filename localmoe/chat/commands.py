"""Slash commands: what was typed → which command, with which argument. No terminal in here.

A command is a record in a registry; ``localmoe.chat.builtin`` has those of every chat, and a caller
may add its own. A handler gets the chat and the argument, and returns text to show, or what to do.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from localmoe.chat.columns import two_columns
from localmoe.chat.state import Chat
from localmoe.errors import UsageError
from localmoe.text import did_you_mean


class ExitChat(Exception):  # noqa: N818 - leaving is no error
    """The user wants to leave."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this to the model, as if it had been typed; with ``replace``, for the last turn."""

    text: str
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """Ask the last question again."""


Result = str | Ask | Again
Handler = Callable[[Chat, str], Result]
Completion = Callable[[Chat, str], Iterable[str]]
"""Proposals for a whole argument, given its beginning."""


def _nothing(chat: Chat, argument: str) -> Iterable[str]:
    return ()


@dataclass(frozen=True, slots=True)
class Command:
    """``usage`` names the argument as the help shows it; ``complete`` proposes arguments."""

    name: str
    usage: str
    summary: str
    run: Handler
    complete: Completion = _nothing
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Invocation:
    name: str
    argument: str


# "/etc/hosts is …" is a message, "/help" a command.
_INVOCATION = re.compile(r"/(?P<name>[A-Za-z?][\w-]*|)(?:\s+(?P<argument>.*))?", re.DOTALL)


def parse(line: str) -> Invocation | None:
    """The command that a line asks for; ``None`` for a message to the model."""
    found = _INVOCATION.fullmatch(line.strip())
    if not found:
        return None
    return Invocation(found["name"].lower(), (found["argument"] or "").strip())


@dataclass
class Registry:
    """The commands of a chat, in the order of the help."""

    commands: dict[str, Command] = field(default_factory=dict)

    def add(self, *commands: Command) -> None:
        for command in commands:
            self.commands[command.name] = command

    def sort(self, order: Sequence[str]) -> None:
        """Commands in this order first; the others stay behind them as they were added."""
        first = {name: self.commands[name] for name in order if name in self.commands}
        self.commands = first | self.commands

    def find(self, name: str) -> Command:
        """By name or alias. Raises ``UsageError`` with the nearest name."""
        for command in self.commands.values():
            if name == command.name or name in command.aliases:
                return command
        names = {alias: c.name for c in self.commands.values() for alias in (c.name, *c.aliases)}
        starts = [n for n in names if name and n.startswith(name)]
        near = starts or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = did_you_mean((names[word] for word in near[:1]), "/")
        raise UsageError(f"no command /{name}.{meant}", hint="/help lists the commands")

    def dispatch(self, chat: Chat, invocation: Invocation) -> Result:
        """Run a command. Raises ``UsageError``, ``ExitChat`` and what the command raises."""
        command = self.find(invocation.name)
        if invocation.argument and not command.usage:
            raise UsageError(f"/{command.name} takes no argument", hint=command.summary)
        return command.run(chat, invocation.argument)

    def complete(self, chat: Chat, text: str) -> Sequence[tuple[str, int]]:
        """Proposals for a line typed so far: (text, how many characters it replaces)."""
        if not text.startswith("/") or "\n" in text:
            return []
        name, space, argument = text[1:].partition(" ")
        if not space:
            return [("/" + n, len(text)) for n in self.commands if n.startswith(name.lower())]
        try:
            command = self.find(name.lower())
        except UsageError:
            return []
        argument = argument.lstrip(" ")
        found = command.complete(chat, argument)
        return [(word, len(argument)) for word in found if word.startswith(argument)]

    def help(self, name: str = "", width: int = 80) -> str:
        """All commands, or one. Raises ``UsageError`` for a name that is none."""
        if name:
            command = self.find(name.lstrip("/").lower())
            also = "".join(f", /{alias}" for alias in command.aliases if alias)
            return two_columns([(f"{_typed(command)}{also}", command.summary)], width)
        return two_columns([(_typed(c), c.summary) for c in self.commands.values()], width)


def _typed(command: Command) -> str:
    return f"/{command.name} {command.usage}".rstrip()


KEYS = (
    "Enter sends",
    "Alt-Enter, or \\ at the end, breaks the line",
    '""" … """ takes many lines',
    "Tab completes",
    "↑ ↓ earlier messages, Ctrl-R searches them",
    "Ctrl-X Ctrl-E opens $EDITOR",
    "Ctrl-C stops an answer (what is there is kept), twice leaves",
    "Ctrl-D leaves",
)
