"""The table of options as argparse knows it, and the help texts made from both tables."""

from __future__ import annotations

import argparse
import textwrap
from typing import Any, NoReturn

from localmoe.cli.commands import COMMANDS
from localmoe.cli.option import Group, Option
from localmoe.cli.options import EVERY, GROUPS
from localmoe.errors import UsageError

HINT = "`localmoe COMMAND --help` lists the options"

DESCRIPTION = (
    "Will this Mixture-of-Experts model run here, and laid out how over GPU, RAM and disk? "
    "Then run it.",
    "MODEL is a name from the catalog (qwen3-30b-a3b), a Hub repository or its URL, each with an "
    "optional :QUANT; a local .gguf file (any part of a multi-part set) or the name of a model "
    "found here (`localmoe list`); or `nano`, the small model that comes with localmoe.",
    "An option that changes nothing about a command is refused by it. Where a plan is made, the "
    "options of placement are taken; where tokens are made, those of the answer.",
)

EXIT_CODES = (
    "exit codes: 0 done · 1 failure · 2 usage · 3 does not fit · 4 bad model file · "
    "5 download or integrity · "
    "130 interrupted · 143 terminated"
)


class _Parser(argparse.ArgumentParser):
    """argparse that raises our error instead of printing and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message.removeprefix("argument "), hint=HINT)


def option_parser() -> argparse.ArgumentParser:
    """A parser that knows every option, and leaves those that were not typed out of its answer.

    argparse's subparsers would not do: options before the command are reset by the subparser's
    defaults, and words of a prompt cannot be mixed with options.
    """
    parser = _bare_parser()
    parser.add_argument("words", nargs="*", default=[], help=argparse.SUPPRESS)
    for group in GROUPS:
        for option in group.options:
            _add(parser, option)
    return parser


def help_text(scope: str | None) -> str:
    """``localmoe [COMMAND [ACTION]] --help``; ``scope``: the command, or command and action."""
    command = COMMANDS[scope.split()[0]] if scope else None
    about = f"{command.summary[0].upper()}{command.summary[1:]}." if command else _overview()
    parser = _bare_parser(
        prog="localmoe",
        usage=f"localmoe {command.name} {command.usage}"
        if command
        else "localmoe COMMAND [MODEL] [options]",
        description=about,
        epilog=_examples(scope) + "\n\n" + textwrap.fill(EXIT_CODES, _screen_width()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for group in GROUPS:
        shown = [o for o in group.options if (o.taken_by(scope) if scope else _is_shared(group))]
        if shown:
            section = parser.add_argument_group(group.title, None if scope else _takers(group))
            for option in shown:
                who = _who(option, scope or "", group)
                _add(section, option, f"{option.help} ({who})" if who else option.help)
    return parser.format_help()


def _bare_parser(**how: Any) -> _Parser:
    return _Parser(argument_default=argparse.SUPPRESS, add_help=False, allow_abbrev=False, **how)


def _add(parser: argparse._ActionsContainer, option: Option, help: str = "") -> None:
    how: dict[str, Any] = {"dest": option.field, "help": help.replace("%", "%%")}
    if option.is_switch:
        how |= {"action": "store_true"}
    else:
        how |= {"type": option.parse, "metavar": option.value, "choices": option.choices or None}
        how |= {"action": "extend"} if option.repeatable else {}
    parser.add_argument(*option.flags, **how)


def _is_shared(group: Group) -> bool:
    """Whether several commands take its options: the overview shows no others."""
    return len({name.split()[0] for name in group.commands}) > 1


def _takers(group: Group) -> str | None:
    """The line below a heading of the overview; none where nearly every command is meant."""
    if len(group.commands) > len(EVERY) // 2:
        return None
    return textwrap.fill(", ".join(group.commands), _screen_width() - 2)


def _who(option: Option, scope: str, group: Group) -> str:
    """Who takes an option, where that is not everybody whom the reader has before the eyes."""
    if scope in option.commands:
        return ""
    lead = f"{scope} " if scope else ""
    everybody = (
        [f"{lead}{action}" for action in COMMANDS[scope].actions] if scope else group.commands
    )
    takers = [name for name in everybody if name in option.commands]
    others = [name for name in everybody if name not in option.commands]
    if not others:
        return ""
    lead, few = ("not ", others) if len(others) <= len(takers) else ("", takers)
    return lead + ", ".join(name.removeprefix(f"{scope} ") for name in few)


def _overview() -> str:
    """What localmoe is, and its commands."""
    width = _screen_width()
    longest = max(map(len, COMMANDS))
    indent = " " * (longest + 4)
    about = [textwrap.fill(paragraph, width) for paragraph in DESCRIPTION]
    lines = (
        textwrap.fill(f"  {c.name:<{longest}}  {c.summary}", width, subsequent_indent=indent)
        for c in COMMANDS.values()
    )
    return "\n".join(("\n\n".join(about), "", "commands:", *lines))


def _screen_width() -> int:
    """Columns that a help text may fill."""
    import shutil  # late: only a help text needs it

    return max(20, min(100, shutil.get_terminal_size().columns - 2))


def _examples(scope: str | None) -> str:
    """Those of one command or action; the first of each command where none is chosen."""
    lines = [line for command in COMMANDS.values() for line in command.examples]
    if scope is None:
        lines = [command.examples[0] for command in COMMANDS.values()]
    else:
        lines = [line for line in lines if f"{line} ".startswith(f"{scope} ")]
    return "\n".join(("examples:", *(f"  localmoe {line}" for line in lines)))
