"""``--schema FILE`` and ``--tools FILE``: what an answer follows, and what it may call."""

from __future__ import annotations

import json
from typing import Any

from localmoe.chat.attachments import read_attachment
from localmoe.chat.tools import ToolUse, read_tools
from localmoe.engine.grammar import schema_to_gbnf
from localmoe.errors import UsageError
from localmoe.text import clean_line

LIMIT = 1 << 20  # bytes


def grammar_of(path: str) -> str:
    """The grammar of a schema file, as GBNF. Raises UsageError."""
    return schema_to_gbnf(read_json("--schema", path, "a JSON schema, as for ajv or pydantic"))


def tools_of(path: str, choice: str) -> ToolUse:
    """The tools of a file: a list, or an object with it under ``tools``. Raises UsageError."""
    given = read_json("--tools", path, 'a list of tools, as for the "tools" of OpenAI\'s requests')
    return read_tools(given.get("tools") if isinstance(given, dict) else given, choice)


def read_json(option: str, path: str, wanted: str) -> Any:
    """The JSON of a file. Raises UsageError."""
    shown = clean_line(path)
    file = read_attachment(path)
    if file.replaced:  # it would be enforced with the replacement in it
        raise UsageError(f"{option} {shown} is not UTF-8", hint="save it in UTF-8")
    text = file.text

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        if len(text) > LIMIT:
            raise UsageError(f"{option} {shown} is longer than {LIMIT >> 20} MiB")
        return json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} {shown} is not JSON: {error}", hint=wanted) from None
