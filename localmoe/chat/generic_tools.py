"""Tools for models whose chat template knows none: told in the system message, called in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from localmoe.chat.session import ToolCall

CALL_START, CALL_END = "<tool_call>", "</tool_call>"
RESULT_START, RESULT_END = "<tool_response>", "</tool_response>"
EXPLANATION = """\
You can call the functions below; each line is one of them, with the JSON schema of its arguments.
{tools}
To call one, write nothing but this, once for each call, with the function's name and arguments:
{start}
{{"name": "NAME", "arguments": {{}}}}
{end}
What it gives then comes between {result_start} and {result_end}."""


def explained(tools: Sequence[Mapping[str, object]]) -> str:
    """What the tools are and how they are called, for the system message."""
    return EXPLANATION.format(
        tools="\n".join(json.dumps(tool.get("function"), ensure_ascii=False) for tool in tools),
        start=CALL_START,
        end=CALL_END,
        result_start=RESULT_START,
        result_end=RESULT_END,
    )


def call_text(call: ToolCall) -> str:
    """A call as the model writes it."""
    name = json.dumps(call.name, ensure_ascii=False)
    body = f'{{"name": {name}, "arguments": {call.arguments}}}'
    return f"{CALL_START}\n{body}\n{CALL_END}"


def result_text(content: str) -> str:
    return f"{RESULT_START}\n{content}\n{RESULT_END}"
