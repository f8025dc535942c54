"""Messages and tools in the words that a chat template knows. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from localmoe.chat import generic_tools
from localmoe.chat.answer_format import AnswerFormat
from localmoe.chat.session import Message, ToolCall
from localmoe.chat.tool_style import Ids, ToolStyle

NOTHING_SAID = "…"  # stands for an answer that was interrupted at once: many templates refuse ""
Messages = tuple[Message, ...]


def with_generic_tools(
    messages: Sequence[Message], style: ToolStyle, tools: Sequence[Mapping[str, object]]
) -> Messages:
    """Tools, calls and results that the template cannot write, as text of the messages."""
    changed: list[Message] = []
    if tools and not style.declares:
        changed.append(Message("system", generic_tools.explained(tools)))
        if messages[0].role == "system":
            text = f"{messages[0].content}\n\n{changed[0].content}"
            changed, messages = [Message("system", text)], messages[1:]
    for message in messages:
        if message.calls and not style.calls:
            texts = [message.content, *map(generic_tools.call_text, message.calls)]
            message = replace(message, content="\n".join(filter(None, texts)), calls=())
        if message.result_of and not (style.calls and style.results):
            message = Message("user", generic_tools.result_text(message.content))
            if changed and changed[-1].role == "user" and changed[-1].result_of is None:
                text = f"{changed.pop().content}\n{message.content}"
                message = replace(message, content=text)
        elif message.calls and message.content and not style.text_beside:
            changed.append(replace(message, calls=()))
            message = replace(message, content="", reasoning="")
        changed.append(message)
    return tuple(changed)


def arrangements(messages: Messages) -> list[Messages]:
    """Ways to put the same messages, the truest first: some templates refuse the first ones.

    As they are; neighbours of one role as one message; system messages in the middle as the
    user's; all of them so.
    """
    lead = 1 if messages[:1] and messages[0].role == "system" else 0
    ways = [
        messages,
        merged(messages),
        merged((*messages[:lead], *_system_as_user(messages[lead:]))),
        merged(_system_as_user(messages)),
    ]
    return list(dict.fromkeys(ways))


def plainer(tools: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The same tools for a template that takes more for granted than a schema has to say.

    Every property has a description, every object says what its other values are, and no type is
    null: of these Command R+ makes an error.
    """
    changed = []
    for tool in tools:
        function = tool.get("function")
        if isinstance(function, Mapping):
            parameters = _plain(function.get("parameters"))
            tool = {**tool, "function": {**function, "parameters": parameters}}
        changed.append(tool)
    return changed


def _plain(schema: object) -> Mapping[str, object]:
    plain = {"description": "", **schema} if isinstance(schema, Mapping) else {"description": ""}
    kinds = plain.get("type")
    if isinstance(kinds, list) and "null" in kinds:
        others = [kind for kind in kinds if kind != "null"]
        plain["type"] = others[0] if len(others) == 1 else others
    if plain.get("type") in ("null", []):
        del plain["type"]
    if isinstance(properties := plain.get("properties"), Mapping):
        plain["properties"] = {key: _plain(value) for key, value in properties.items()}
    if plain.get("type") == "object":
        plain["additionalProperties"] = _plain(plain.get("additionalProperties"))
    if "items" in plain:
        plain["items"] = _plain(plain["items"])
    return plain


def system_merged(messages: Messages) -> Messages:
    """All system texts in front of the user's messages that follow them."""
    return merged(_system_as_user(messages))


def merged(messages: Messages) -> Messages:
    """Neighbours of one role as one message; results stay apart."""
    together: list[Message] = []
    for message in messages:
        last = together[-1] if together else None
        if last is None or last.role != message.role or message.role == "tool":
            together.append(message)
            continue
        join = "\n\n".join
        together[-1] = replace(
            last,
            content=join(filter(None, (last.content, message.content))),
            reasoning=join(filter(None, (last.reasoning, message.reasoning))),
            calls=(*last.calls, *message.calls),
        )
    return tuple(together)


def _system_as_user(messages: Messages) -> Messages:
    return tuple(replace(m, role="user") if m.role == "system" else m for m in messages)


def for_template(
    messages: Messages, format_: AnswerFormat, style: ToolStyle
) -> list[dict[str, object]]:
    """The messages as objects of the shape that templates read."""
    ids = _Ids(style.ids)
    return list(_shown(messages, format_, style, ids))


def _shown(
    messages: Messages, format_: AnswerFormat, style: ToolStyle, ids: _Ids
) -> Iterator[dict[str, object]]:
    for message in messages:
        if message.result_of is not None:
            content: object = message.content
            if style.result_in_parts:
                content = [{"type": "text", "text": message.content}]
            result = {"role": "tool", "content": content, "name": message.result_of.name}
            yield {**result, "tool_call_id": ids.of_result(message.result_of)}
        elif message.role == "assistant":
            yield _assistant(message, format_, style, ids)
        else:
            yield {"role": message.role, "content": message.content}


def _assistant(
    message: Message, format_: AnswerFormat, style: ToolStyle, ids: _Ids
) -> dict[str, object]:
    shown: dict[str, object] = {"role": "assistant", "content": message.content or NOTHING_SAID}
    if message.calls:
        shown["content"] = message.content or style.no_text
        shown["tool_calls"] = [_call(call, style, ids) for call in message.calls]
    if message.reasoning and format_.in_parts:
        parts = [{"type": "thinking", "thinking": message.reasoning}]
        if shown["content"]:
            parts.append({"type": "text", "text": message.content or NOTHING_SAID})
        shown["content"] = parts
    elif message.reasoning:
        shown[format_.key] = message.reasoning
    return shown


def _call(call: ToolCall, style: ToolStyle, ids: _Ids) -> dict[str, object]:
    arguments = call.arguments if style.arguments_as_text else json.loads(call.arguments)
    function = {"name": call.name, "arguments": arguments}
    return {"id": ids.of_call(call), "type": "function", "function": function}


class _Ids:
    """Ids as the template takes them."""

    def __init__(self, kind: Ids) -> None:
        self._kind = kind
        self._numbers: dict[str, int] = {}
        self._calls = 0

    def of_call(self, call: ToolCall) -> str:
        self._numbers[call.id] = self._calls
        self._calls += 1
        return self.of_result(call)

    def of_result(self, call: ToolCall) -> str:
        if self._kind is Ids.FUNCTIONS:
            return f"functions.{call.name}:{self._numbers.get(call.id, 0)}"
        short = len(call.id) == 9 and call.id.isalnum() and call.id.isascii()
        if self._kind is Ids.GIVEN or short:
            return call.id
        import hashlib  # late: see log_lines.py

        return hashlib.sha256(call.id.encode()).hexdigest()[:9]
