"""The configuration file: reading it, and changing one line without touching the others.

``config.toml`` in the folder for settings (``storage.config_dir``)::

    model = "qwen3-30b-a3b:Q4_K_M"      # where no MODEL is named
    ctx = "16k"                         # any option of the command line, by its long name
    stop = ["END"]                      # a list where an option can be repeated

    [aliases]
    coder = "someone/Qwen3-Coder-30B-A3B-GGUF:Q4_K_M"

    [models."qwen3-30b-a3b"]            # for this model these win over the settings above
    temp = 0.6

Names and values of options are checked by the command line, not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localmoe import storage
from localmoe.errors import StorageError, UsageError
from localmoe.text import reason_of

SIZE_LIMIT = 1 << 20  # bytes
HINT = "`localmoe config explain` lists what can be set"

Value = str | int | float | bool | list[str]


@dataclass(frozen=True, slots=True)
class Config:
    """The contents of a configuration file; all empty if there is none."""

    path: Path
    model: str | None = None
    settings: Mapping[str, Value] = field(default_factory=dict)  # option name → value
    aliases: Mapping[str, str] = field(default_factory=dict)  # alias → name of a model
    models: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)  # model → settings

    def target(self, name: str) -> str:
        """The model of an alias, or of ``alias:QUANT``; any other name is returned as it is.

        Upper and lower case of an alias matter only where two differ in nothing else.
        """
        lowered = {alias.lower(): model for alias, model in self.aliases.items()}
        aliases = lowered | dict(self.aliases)
        exact = aliases.get(name, aliases.get(name.lower()))
        if exact is not None:
            return exact
        base, colon, quant = name.partition(":")
        known = aliases.get(base, aliases.get(base.lower()))
        if known is None or not colon:
            return name
        return known if known.endswith(f":{quant}") else f"{_without_quant(known)}:{quant}"

    def for_model(self, names: Sequence[str]) -> dict[str, Value]:
        """The general settings, and over them those of the model with these names, in order."""
        found = dict(self.settings)
        for name in names:
            found |= self.models.get(name, {})
        return found


def _without_quant(model: str) -> str:
    """A model's name up to the colon before its quantization; not that of ``hf://``."""
    found = re.match(r"(?:(?:hf|huggingface|https?):(?://)?)?[^:]*", model)
    return found[0] if found else model


def path() -> Path:
    """The configuration file, whether or not it exists."""
    return storage.config_dir() / "config.toml"


def read() -> Config:
    """The configuration. Raises UsageError for a file with mistakes, StorageError."""
    file = path()
    try:
        with file.open("rb") as stream:
            data = stream.read(SIZE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return Config(file)
    except OSError as error:
        raise StorageError(f"cannot read {file}: {(error.strerror or '').lower()}") from error
    if len(data) > SIZE_LIMIT:
        raise UsageError(f"{file} is longer than {SIZE_LIMIT >> 20} MiB")
    return parse(data, file)


def read_toml(text: str) -> dict[str, Any]:
    """What TOML says. Raises ValueError."""
    import tomllib  # late: most people have no configuration

    return tomllib.loads(text)


def parse(data: bytes, file: Path) -> Config:
    """The configuration in the bytes of ``file``. Raises UsageError."""
    try:
        body = read_toml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{file} is not UTF-8, in line {line}", hint="save it in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not TOML: {error}", hint="correct it, or delete it") from None
    aliases, models = body.pop("aliases", {}), body.pop("models", {})
    model = body.pop("model", None)
    if model is not None and not isinstance(model, str):
        raise UsageError(f"{file}: model is not the name of one", hint='model = "NAME"')
    if not _all_of(aliases, str):
        raise UsageError(f"{file}: [aliases] has something else than names", hint='big = "MODEL"')
    if not _all_of(models, dict):
        raise UsageError(f"{file}: [models] has something else than tables", hint='[models."NAME"]')
    for table in (body, *models.values()):
        for name, value in table.items():
            if not _is_value(value):
                raise UsageError(f"{file}: {name} has a value of no use", hint=HINT)
    return Config(file, model, body, aliases, models)


def _all_of(table: object, kind: type) -> bool:
    return isinstance(table, dict) and all(isinstance(value, kind) for value in table.values())


def _is_value(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | int | float | bool)


def write(text: str) -> None:
    """Replace the file. Raises StorageError."""
    storage.atomic_write(path(), text)


def text() -> str:
    """The text of the file; of one that does not exist, a comment. Raises StorageError."""
    try:
        return path().read_bytes().decode()
    except FileNotFoundError:
        return "# localmoe: see `localmoe config`\n"
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"cannot read {path()}: {reason_of(error)}") from error


def assign(section: tuple[str, ...], name: str, value: Value | None) -> None:
    """Give one setting of the file another value, or take it out (None); see ``changed``.

    A byte order mark and the line ends of other systems stay.
    Raises UsageError for a file that is not as it should be, before or after, and StorageError.
    """
    read()
    old = text()
    mark = "\ufeff" if old.startswith("\ufeff") else ""
    ends = "\r\n" if "\r\n" in old else "\n"
    new = changed(old.removeprefix(mark).replace("\r\n", "\n"), section, name, value)
    new = mark + new.replace("\n", ends)
    parse(new.encode(), path())
    write(new)


def changed(text: str, section: tuple[str, ...], name: str, value: Value | None) -> str:
    """TOML ``text`` with ``name`` set to ``value``, or removed for None, all else untouched. Pure.

    ``section`` is () for the top, ("models", "NAME") for a table. Raises UsageError if changing one
    line is not enough, as in an inline table.
    """
    wanted = _with(read_toml(text), section, name, value)
    lines = text.splitlines()
    start, end = _section(lines, section)
    new = [] if value is None else [f"{_key(name)} = {_literal(value)}"]
    if start is None:
        if value is not None:
            header = f"[{'.'.join(map(_key, section))}]"
            lines += [*([""] if lines and lines[-1].strip() else []), header, *new]
    else:
        at = next((i for i in range(start, end) if _assigned(lines[i]) == name), None)
        if at is not None:
            comment = re.search(r"\s+#[^\"']*$", lines[at])
            lines[at : at + 1] = [line + (comment[0] if comment else "") for line in new]
        else:
            while end > start and not lines[end - 1].strip():
                end -= 1
            lines[end:end] = new
    result = "\n".join(lines).strip("\n") + "\n"
    try:
        if read_toml(result) == wanted:
            return result
    except ValueError:
        pass
    raise UsageError(f"{name} is written in a way that is left alone", hint=f"edit {path()}")


def _with(
    body: dict[str, Any], section: tuple[str, ...], name: str, value: Value | None
) -> dict[str, Any]:
    table = body
    for part in section:
        if value is None and part not in table:
            return body
        table = table.setdefault(part, {})
    if value is None:
        table.pop(name, None)
    else:
        table[name] = value
    return body


def _section(lines: Sequence[str], section: tuple[str, ...]) -> tuple[int | None, int]:
    """Index of the first line of a section's body, and of the line after it; (None, end): none."""
    headers = [(i, line.strip()) for i, line in enumerate(lines) if line.lstrip().startswith("[")]
    starts: dict[tuple[str, ...], int] = {} if section else {(): 0}
    for i, line in headers:
        try:
            parsed = read_toml(line)
        except ValueError:
            continue  # a line of an array
        names = []
        while parsed:
            ((part, parsed),) = parsed.items()
            names.append(part)
        starts.setdefault(tuple(names), i + 1)
    start = starts.get(section)
    if start is None:
        return None, len(lines)
    return start, min((i for i, _ in headers if i >= start), default=len(lines))


def _assigned(line: str) -> str | None:
    """The name that a line sets; None: none."""
    try:
        parsed = read_toml(line)
    except ValueError:
        return None
    return next(iter(parsed), None)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)


def _literal(value: Value) -> str:
    """A TOML value; a JSON string is a TOML string too."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
