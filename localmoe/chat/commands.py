"""Slash commands: what was typed → which command, with which argument. No terminal in here.

A command is a record in a registry; ``standard_commands`` has those of every chat, and a caller
may add its own. A handler gets the chat and the argument, and returns text to show.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from localmoe.chat import settings as settings_module
from localmoe.chat.conversation import Conversation, TurnDone
from localmoe.chat.settings import SETTINGS
from localmoe.errors import UsageError
from localmoe.text import format_duration


@dataclass(slots=True)
class Chat:
    """What commands act on."""

    conversation: Conversation
    context: int  # tokens
    about: str = ""  # one line: the model and where it is
    last: TurnDone | None = None


class ExitChat(Exception):  # noqa: N818 - leaving is no error
    """The user wants to leave."""


Handler = Callable[[Chat, str], str]
Completion = Callable[[str], Iterable[str]]


def _nothing(argument: str) -> Iterable[str]:
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

    def find(self, name: str) -> Command:
        """By name or alias. Raises ``UsageError`` with the nearest name."""
        for command in self.commands.values():
            if name == command.name or name in command.aliases:
                return command
        names = {alias: c.name for c in self.commands.values() for alias in (c.name, *c.aliases)}
        starts = [n for n in names if name and n.startswith(name)]
        near = starts or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        meant = f" Did you mean /{names[near[0]]}?" if near else ""
        raise UsageError(f"no command /{name}.{meant}", hint="/help lists the commands")

    def dispatch(self, chat: Chat, invocation: Invocation) -> str:
        """Run a command. Raises ``UsageError`` or ``ExitChat``."""
        return self.find(invocation.name).run(chat, invocation.argument)

    def complete(self, text: str) -> Sequence[tuple[str, int]]:
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
        last = argument.rpartition(" ")[2]
        return [(word, len(last)) for word in command.complete(argument) if word.startswith(last)]

    def help(self, name: str = "") -> str:
        """All commands, or one. Raises ``UsageError`` for a name that is none."""
        if name:
            command = self.find(name.lstrip("/").lower())
            also = "".join(f", /{alias}" for alias in command.aliases)
            return f"{_typed(command)}{also}\n  {command.summary}"
        width = max(len(_typed(command)) for command in self.commands.values())
        return "\n".join(
            f"{_typed(command):<{width}}  {command.summary}" for command in self.commands.values()
        )


def _typed(command: Command) -> str:
    return f"/{command.name} {command.usage}".rstrip()


KEYS = """
Enter sends, Alt-Enter starts a new line, pasted lines stay together.
Ctrl-C stops an answer (what is there is kept), Ctrl-D leaves."""


def standard_commands() -> Registry:
    """The commands of every chat."""
    registry = Registry()

    def help_(chat: Chat, argument: str) -> str:
        return registry.help(argument) if argument else registry.help() + "\n" + KEYS

    def names(argument: str) -> Iterable[str]:
        return registry.commands

    registry.add(
        Command("help", "[COMMAND]", "this list", help_, names, aliases=("?", "h", "")),
        Command("set", "[NAME VALUE]", "show or change settings", _set, _complete_set),
        Command("system", "[TEXT]", "show or change the system prompt", _system),
        Command("stats", "", "speed and context of the last turn", _stats),
        Command("clear", "", "forget the conversation, keep the system prompt", _clear),
        Command("exit", "", "leave (Ctrl-D does too)", _exit, aliases=("quit", "bye", "q")),
    )
    return registry


def _set(chat: Chat, argument: str) -> str:
    conversation = chat.conversation
    if not argument:
        width = max(map(len, SETTINGS))
        return "\n".join(
            f"{name:<{width}}  {settings_module.show(conversation.settings, name):<8}"
            f"  {setting.wanted}"
            for name, setting in SETTINGS.items()
        )
    name, _, value = argument.replace("=", " ", 1).partition(" ")
    if not value.strip():
        return f"{name} {settings_module.show(conversation.settings, name)}"
    conversation.settings = settings_module.change(conversation.settings, name, value.strip())
    shown = f"{name} {settings_module.show(conversation.settings, name)}"
    note = conversation.think_note() if name == "think" else None
    return f"{shown} ({note})" if note else shown


def _complete_set(argument: str) -> Iterable[str]:
    name, space, _ = argument.partition(" ")
    if not space:
        return SETTINGS
    return SETTINGS[name].choices if name in SETTINGS else ()


def _system(chat: Chat, argument: str) -> str:
    session = chat.conversation.session
    if not argument:
        return session.system or "no system prompt; /system TEXT sets one, /system - removes it"
    session.system = "" if argument == "-" else argument
    if not session.system:
        return "no system prompt from now on"
    return "system prompt changed; the conversation so far stays"


def _stats(chat: Chat, argument: str) -> str:
    lines = [chat.about] if chat.about else []
    done = chat.last
    if done is None:
        return "\n".join([*lines, f"nothing asked yet · context of {chat.context} tokens"])
    usage, timings = done.usage, done.timings
    lines.append(f"answer   {usage.completion_tokens} tokens{_speed(timings.decode_tps)}")
    lines.append(
        f"prompt   {usage.prompt_tokens} tokens{_speed(timings.prefill_tps)}"
        f" ({usage.reused_tokens} kept from the turn before)"
    )
    lines.append(f"first    token after {format_duration(timings.ttft_s)}")
    lines.append(f"context  {context_meter(done, chat.context)}")
    lines.append(f"turns    {chat.conversation.session.turns}")
    return "\n".join(lines)


def _speed(tps: float | None) -> str:
    return f" at {tps:.1f} tok/s" if tps is not None else ""


def context_meter(done: TurnDone, context: int) -> str:
    """``1234/8192 (15 %)``: tokens in the context after a turn."""
    return f"{done.usage.total}/{context} ({100 * done.usage.total / context:.0f} %)"


def _clear(chat: Chat, argument: str) -> str:
    chat.conversation.session.clear()
    chat.last = None
    return "the conversation is forgotten"


def _exit(chat: Chat, argument: str) -> str:
    raise ExitChat
