"""``--schema FILE``: the JSON schema that an answer follows."""

from __future__ import annotations

import json
from typing import Any

from localmoe.chat.attachments import read_attachment
from localmoe.engine.grammar import schema_to_gbnf
from localmoe.errors import UsageError
from localmoe.text import clean_line

LIMIT = 1 << 20  # bytes


def grammar_of(path: str) -> str:
    """The grammar of a schema file, as GBNF. Raises UsageError."""
    return schema_to_gbnf(read_schema(path))


def read_schema(path: str) -> Any:
    """The JSON of a schema file. Raises UsageError."""
    shown = clean_line(path)
    file = read_attachment(path)
    if file.replaced:  # it would be enforced with the replacement in it
        raise UsageError(f"--schema {shown} is not UTF-8", hint="save it in UTF-8")
    text = file.text

    def no_number(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        if len(text) > LIMIT:
            raise UsageError(f"--schema {shown} is longer than {LIMIT >> 20} MiB")
        return json.loads(text, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"--schema {shown} is not JSON: {error}", hint="a JSON schema, as for ajv or pydantic"
        ) from None
