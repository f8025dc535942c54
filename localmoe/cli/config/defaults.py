"""What was typed, with what need not be typed: the configuration file and the environment.

Each beats those after it: the command line, ``LOCALMOE_NAME`` variables, the file's ``[models]``
table for the model, the file's general settings; what none of them says is decided as ever. A name
is an option's long name.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from localmoe import config, storage
from localmoe.app.default_model import default_model
from localmoe.cli.arguments import Options, model_and_prompt, option_values
from localmoe.cli.option import Option
from localmoe.cli.options import OPTIONS
from localmoe.config import Config, Value
from localmoe.errors import UsageError
from localmoe.facts import catalog
from localmoe.text import clean_line, did_you_mean

ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
ENVIRONMENT = "LOCALMOE_"

SETTINGS: Mapping[str, Option] = {option.name: option for option in OPTIONS if option.setting}
"""The options that can be configured, by long name, in the order of the help."""


def configured(options: Options) -> Options:
    """The options of a command that takes a MODEL, with what is configured. Aliases are resolved.

    Raises UsageError for a configuration that is not as it should be.
    """
    read = config.read()
    name, options = _with_model(options, read)
    return for_model(options, name, read)


def for_model(options: Options, name: str | None, read: Config | None = None) -> Options:
    """The options for another model: what was typed stays, what is configured is that model's."""
    read = read or config.read()
    if name is None and read.models and options.command in ("run", "chat"):
        name = default_model(read)[0]
    names = names_of(name, read) if name is not None and read.models else ()
    bare = Options(typed=options.typed)
    untyped = {
        option.field: getattr(bare, option.field)
        for option in SETTINGS.values()
        if hasattr(bare, option.field)  # --kv-type has none: it stands for two others
    }
    values = untyped | _values(read.for_model(names), str(read.path))
    values |= _values(environment(os.environ), "the environment")
    given = {field: value for field, value in values.items() if field not in options.typed}
    return dataclasses.replace(options, **given)


def names_of(name: str, read: Config) -> list[str]:
    """The names under which the file may have a table for a model, the most particular one last."""
    target = read.target(name)
    found = []
    for given in dict.fromkeys((target, name)):
        base = catalog.split_name(given)[0]
        entry = catalog.entry_of(base)
        found += [entry.repo, entry.alias] if entry else []
        if catalog.is_path(given):
            found.append(catalog.model_name(storage.user_path(given)))
        found += [base, given]
    return list(dict.fromkeys(filter(None, found)))


def environment(variables: Mapping[str, str]) -> dict[str, Value]:
    """The settings that ``LOCALMOE_…`` variables give."""
    found: dict[str, Value] = {}
    for name, option in SETTINGS.items():
        text = variables.get(variable(name))
        if text is None or (text == "" and not option.is_switch):
            continue
        if not option.is_switch:
            found[name] = text
        elif text.lower() in (*ON, *OFF, ""):
            found[name] = text.lower() in ON
        else:
            raise UsageError(f"{variable(name)} is on or off, not {clean_line(text)!r}")
    return found


def variable(name: str) -> str:
    """``top-k`` → ``LOCALMOE_TOP_K``."""
    return ENVIRONMENT + name.upper().replace("-", "_")


def setting(name: str, source: str) -> Option:
    """The option of that name. Raises UsageError for one that is not there to be configured."""
    if name in SETTINGS:
        return SETTINGS[name]
    near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
    meant = did_you_mean(near)
    raise UsageError(f"{source}: no setting {clean_line(name)!r}.{meant}", hint=config.HINT)


def check(name: str, value: Value, source: str) -> None:
    """Raises UsageError for a setting that there is not, or a value that it cannot have."""
    _values({name: value}, source)


def _values(table: Mapping[str, Value], source: str) -> dict[str, Any]:
    """Settings as the fields of ``Options`` that they are."""
    words = [word for name, value in table.items() for word in _typed(name, value, source)]
    try:
        values = option_values(words) if words else {}
    except UsageError as error:
        raise UsageError(f"{source}: {error.message}", hint=config.HINT) from None
    return values | {SETTINGS[name].field: False for name, value in table.items() if value is False}


def _typed(name: str, value: Value, source: str) -> Iterator[str]:
    """A setting as one would type it: nothing for a switch that is off."""
    option = setting(name, source)
    if option.is_switch != isinstance(value, bool):
        wanted = "true or false" if option.is_switch else option.help
        raise UsageError(f"{source}: {name} is {wanted}", hint=config.HINT)
    if value is True:
        yield f"--{name}"
    elif value is not False:
        yield from (f"--{name}={item}" for item in (value if isinstance(value, list) else [value]))


def _with_model(options: Options, read: Config) -> tuple[str | None, Options]:
    """The name of the model that is meant, and the options with its alias resolved."""
    if options.command == "run":

        def is_model(word: str) -> bool:
            return read.target(word) != word or catalog.looks_like_model(word)

        asked = model_and_prompt(options, is_model)
        if asked.model is None:
            return None, options
        words = options.words[1:] if options.model is None else options.words
        target = read.target(asked.model)
        return asked.model, dataclasses.replace(options, model=target, words=words)
    if options.model is not None:
        return options.model, dataclasses.replace(options, model=read.target(options.model))
    if not options.words:
        return None, options
    first, *rest = options.words
    return first, dataclasses.replace(options, words=(read.target(first), *rest))
