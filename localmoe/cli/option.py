"""What an option of the command line is, and how the table of them is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FILES, MODELS, SESSIONS = ":files", ":models", ":sessions"  # what Tab proposes


@dataclass(frozen=True, slots=True)
class Option:
    """One option. ``commands`` take it: names, or name and action as in "experts record"."""

    flags: tuple[str, ...]
    value: str  # what its value is called in the help
    help: str
    parse: Callable[[str], Any] = str
    field: str = ""  # of ``Options``
    commands: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    is_switch: bool = False  # has no value: it is typed or not
    repeatable: bool = False  # ``parse`` gives a list, and the lists are joined
    proposes: str = ""  # FILES, MODELS or SESSIONS
    setting: bool = True  # may stand in the configuration file
    why: str = ""  # what it is for, where a refusal should say so

    @property
    def name(self) -> str:
        """The first long form, without dashes: what a setting is called."""
        return next(flag for flag in self.flags if flag.startswith("--")).removeprefix("--")

    def taken_by(self, scope: str) -> bool:
        """Whether a command takes it, or one of its actions where only the command is named."""
        return any(name == scope or name.startswith(f"{scope} ") for name in self.commands)


@dataclass(frozen=True, slots=True)
class Group:
    """Options under one heading of the help."""

    title: str
    commands: tuple[str, ...]  # take its options, where an option says nothing else
    options: tuple[Option, ...]


def option(typed: str, help: str, parse: Callable[[str], Any] = str, **more: Any) -> Option:
    """``typed``: the flags, and what the value is called: "-c --ctx N"; a switch has no value."""
    words = typed.split()
    flags = tuple(word for word in words if word.startswith("-"))
    value = words[len(flags) :]
    made = Option(flags, "".join(value), help, parse, is_switch=not value, **more)
    return dataclasses.replace(made, field=made.field or made.name.replace("-", "_"))


def group(title: str, commands: tuple[str, ...], *options: Option, settings: bool = False) -> Group:
    """``commands`` take those options that name none; ``settings``: they can be configured."""
    return Group(
        title,
        commands,
        tuple(
            dataclasses.replace(
                each, commands=each.commands or commands, setting=settings and each.setting
            )
            for each in options
        ),
    )
