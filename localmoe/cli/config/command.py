"""``config``: what need not be typed, shown, set and explained."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence

from localmoe import config
from localmoe.app.default_model import default_model
from localmoe.cli.arguments import Options
from localmoe.cli.config import defaults
from localmoe.cli.config.defaults import OFF, ON
from localmoe.cli.option import Option
from localmoe.cli.output import Output
from localmoe.config import Config, Value
from localmoe.errors import UsageError
from localmoe.facts import catalog
from localmoe.text import clean, clean_line

PRECEDENCE = (
    "The command line beats LOCALMOE_ variables, which beat the file's table for the model, which "
    "beats its general settings. What none of them says is decided as ever: by the model's file, "
    "else by the planner."
)


def config_command(options: Options, output: Output) -> int:
    """Without words: what is configured. Exit code 0."""
    verb, *words = (*options.words, *(options.after_dashes or ())) or ("",)
    match verb, words:
        case "" | "show", []:
            _show(config.read(), output)
        case "path", []:
            if output.as_json:
                output.json({"path": str(config.path())})
            else:
                output.line(str(config.path()))
        case "set", ["model", name]:
            _set_model(name, output)
        case "set", [name, value, *more]:
            _set(name, [value, *more], options.model, output)
        case "unset", [name]:
            _unset(name, options.model, output)
        case "explain", [] | [_]:
            _explain(words, output)
        case "alias", []:
            _aliases(config.read(), output)
        case "alias", [name, target]:
            _alias(name, target, output)
        case _:
            raise UsageError(
                f"config does not understand: {' '.join((verb, *words))}",
                hint="config [show | set NAME VALUE | unset NAME | explain [NAME] | "
                "alias [NAME MODEL] | path], with -m MODEL for the settings of one model",
            )
    if output.as_json and words and verb in ("set", "unset", "alias"):
        _show(config.read(), output)
    return 0


def _set(name: str, values: Sequence[str], model: str | None, output: Output) -> None:
    option = defaults.setting(name, "config")
    if len(values) > 1 and not option.repeatable:
        raise UsageError(
            f"one value for {name}, not {len(values)}", hint="quote a value that has blanks"
        )
    value: Value = list(values) if len(values) > 1 else _value(option, values[0])
    defaults.check(name, value, "config")
    config.assign(_section(model), name, value)
    output.note(f"{name} = {json.dumps(value, ensure_ascii=False)}{_for(model)}")


def _value(option: Option, text: str) -> Value:
    """What was typed, as TOML would have it: a number where it is one."""
    if option.is_switch:
        return {word: word in ON for word in (*ON, *OFF)}.get(text.lower(), text)
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        if str(number) == text:
            return number
    return text


def _set_model(name: str, output: Output) -> None:
    with contextlib.suppress(catalog.NotHereError):
        catalog.resolve(config.read().target(name))
    config.assign((), "model", name)
    output.note(f"{clean_line(name)} is the model where none is named")


def _unset(name: str, model: str | None, output: Output) -> None:
    read = config.read()
    if model is None and name in read.aliases:
        config.assign(("aliases",), name, None)
    elif name in _table(read, model) or (model is None and name == "model" and read.model):
        config.assign(_section(model), name, None)
    else:
        raise UsageError(f"{clean_line(name)} is not set{_for(model)}", hint="localmoe config")
    output.note(f"{clean_line(name)} is not set any more{_for(model)}")


def _alias(name: str, target: str, output: Output) -> None:
    read = config.read()
    if not name or any(c.isspace() or c in "/:" for c in name) or name == target:
        raise UsageError(
            f"{clean_line(name)!r} cannot be an alias", hint="one word without / and :"
        )
    if catalog.looks_like_model(name) and name not in read.aliases:
        output.warn(f"{clean_line(name)} is the name of a model too; the alias hides it")
    config.assign(("aliases",), name, target)
    output.note(f"{clean_line(name)} → {clean_line(target)}")


def _section(model: str | None) -> tuple[str, ...]:
    return ("models", model) if model is not None else ()


def _table(read: Config, model: str | None) -> dict[str, Value]:
    return dict(read.models.get(model, {}) if model is not None else read.settings)


def _for(model: str | None) -> str:
    return f" for {clean_line(model)}" if model is not None else ""


def _show(read: Config, output: Output) -> None:
    """What is in force, and where it is said; the file is checked."""
    rows = _rows(read)
    for name, value, source, model in rows:
        if source != "environment":
            defaults.check(name, value, f"{read.path}{f' ({model})' if model else ''}")
    defaults.environment(os.environ)
    if output.as_json:
        output.json(_document(read, rows))
        return
    name, why = default_model(read)
    output.line(f"{read.path}{'' if read.path.exists() else ' (not there yet)'}")
    output.line(f"model where none is named: {clean_line(name)} ({why})\n")
    if rows:
        output.table(
            ("setting", "value", "said by", "model"),
            [(n, _shown(v), s, clean_line(m) or "all") for n, v, s, m in rows],
        )
    else:
        output.line(
            "nothing is set: `localmoe config explain` lists what can be, "
            "`localmoe config set NAME VALUE` sets it"
        )
    if read.aliases:
        output.line("")
        _aliases(read, output)


def _rows(read: Config) -> list[tuple[str, Value, str, str]]:
    """(name, value, source, model), the settings that lose to the environment left out."""
    outside = defaults.environment(os.environ)
    rows: list[tuple[str, Value, str, str]] = [
        (name, value, "environment", "") for name, value in outside.items()
    ]
    tables = [("", read.settings), *read.models.items()]
    rows += [
        (name, value, "file", model)
        for model, table in tables
        for name, value in table.items()
        if name not in outside
    ]
    return rows


def _aliases(read: Config, output: Output) -> None:
    if output.as_json:
        output.json({"aliases": dict(read.aliases)})
    elif not read.aliases:
        output.line("no alias is set: localmoe config alias NAME MODEL")
    else:
        rows = [(clean_line(name), clean_line(model)) for name, model in read.aliases.items()]
        output.table(("alias", "model"), rows)


def _explain(words: Sequence[str], output: Output) -> None:
    asked = [defaults.setting(name, "config") for name in words]
    options = asked or list(defaults.SETTINGS.values())
    if output.as_json:
        explained = [
            {
                "name": option.name,
                "takes": _takes(option),
                "help": option.help,
                "environment": defaults.variable(option.name),
            }
            for option in options
        ]
        output.json({"settings": explained, "precedence": PRECEDENCE})
        return
    output.table(
        ("setting", "takes", "what it does"),
        [(option.name, _takes(option), option.help) for option in options],
    )
    output.line("")
    for option in asked:
        output.line(f"environment: {defaults.variable(option.name)}")
    output.line(PRECEDENCE)


def _takes(option: Option) -> str:
    return "true or false" if option.is_switch else option.value


def _document(read: Config, rows: Sequence[tuple[str, Value, str, str]]) -> dict[str, object]:
    name, why = default_model(read)
    return {
        "path": str(read.path),
        "model": {"name": name, "why": why, "configured": read.model},
        "settings": [
            {"name": n, "value": v, "source": s, "model": m or None} for n, v, s, m in rows
        ],
        "aliases": dict(read.aliases),
    }


def _shown(value: Value) -> str:
    return clean(str(value).lower() if isinstance(value, bool) else str(value))
