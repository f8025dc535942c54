"""How a chat template wants tools, calls and results, found out by rendering known ones.

Templates agree on the shape of messages and on little else: arguments as an object or as its text,
no text beside a call as "" or as nothing, ids of nine letters or of ``functions.NAME:0``. Each way
is tried with a call whose parts are told by their digits. Pure: ``Render`` does the rendering.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from localmoe.chat.answer_format import ANSWER, QUESTION, Arguments, Probe, Render

# Stand for the parts of a call; none is a part of another, or of a text of ``answer_format``.
NAME, KEY, VALUE, RESULT = "f6620391", "k7731502", "8842613", "5953724"
TOOL: Mapping[str, object] = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Says it.",
        "parameters": {
            "type": "object",
            "properties": {KEY: {"type": "string", "description": "What."}},
            "required": [KEY],
        },
    },
}


class Ids(StrEnum):
    """What a template takes for the id of a call."""

    GIVEN = "given"  # any text
    SHORT = "short"  # nine letters or digits
    FUNCTIONS = "functions"  # functions.NAME:NUMBER, and the name of the call is read from it


PROBED_IDS = {
    Ids.GIVEN: "call_1-2-3-4-5",
    Ids.SHORT: "abcdefgh1",
    Ids.FUNCTIONS: f"functions.{NAME}:0",
}


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """What a template knows of tools, and how messages about them are handed to it.

    Where it does not know them, they are told in the words of ``localmoe.chat.generic_tools``.
    """

    declares: bool = False  # it writes what the tools are
    calls: bool = False  # it writes calls
    results: bool = False  # it writes results
    arguments_as_text: bool = False
    no_text: str | None = ""  # content of a message that has calls alone
    text_beside: bool = True  # text and calls may stand in one message
    result_in_parts: bool = False  # the content of results is a list of parts
    ids: Ids = Ids.GIVEN


def find_style(render: Render, arguments: Arguments) -> ToolStyle:
    """The style of the template behind ``render`` when it is given these arguments."""
    known = {**arguments, "tools": [TOOL]}
    ask = {"role": "user", "content": QUESTION}
    tries = [
        ToolStyle(arguments_as_text=as_text, no_text=no_text, ids=ids)
        for ids, as_text, no_text in itertools.product(Ids, (False, True), ("", None))
    ]
    calls: list[Probe] = [([ask, _calling(style)], known, False) for style in tries]
    declared, *shown = render([([ask], known, True), *calls])
    declares = declared is not None and NAME in declared
    style = next((s for s, text in zip(tries, shown, strict=True) if _is_call(text)), None)
    if style is None:
        return ToolStyle(declares=declares, results=False)
    beside, *results = render(
        [
            ([ask, _calling(style, ANSWER)], known, False),
            *(_with_result(ask, style, content, known) for content in (RESULT, _parts(RESULT))),
        ]
    )
    in_parts = not _has(results[0], RESULT) and _has(results[1], RESULT)
    return ToolStyle(
        declares=declares,
        calls=True,
        results=in_parts or _has(results[0], RESULT),
        arguments_as_text=style.arguments_as_text,
        no_text=style.no_text,
        text_beside=_has(beside, ANSWER) and _is_call(beside),
        result_in_parts=in_parts,
        ids=style.ids,
    )


def _calling(style: ToolStyle, content: str | None = None) -> dict[str, object]:
    arguments: object = {KEY: VALUE}
    if style.arguments_as_text:
        arguments = json.dumps(arguments)
    function = {"name": NAME, "arguments": arguments}
    call = {"id": PROBED_IDS[style.ids], "type": "function", "function": function}
    content = style.no_text if content is None else content
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def _with_result(
    ask: Mapping[str, object], style: ToolStyle, content: object, arguments: Arguments
) -> Probe:
    result = {
        "role": "tool",
        "tool_call_id": PROBED_IDS[style.ids],
        "name": NAME,
        "content": content,
    }
    messages: Sequence[Mapping[str, object]] = [ask, _calling(style), result]
    return messages, arguments, True


def _parts(text: str) -> list[Mapping[str, object]]:
    return [{"type": "text", "text": text}]


def _is_call(text: str | None) -> bool:
    """Whether a call is written, and neither as Python shows an object nor as JSON in JSON."""
    said = (text or "").partition(QUESTION)[2]
    broken = f"'{KEY}'" in said or f'\\"{KEY}' in said
    return NAME in said and KEY in said and VALUE in said and not broken


def _has(text: str | None, part: str) -> bool:
    return text is not None and part in text.partition(QUESTION)[2]
