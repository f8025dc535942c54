"""The tools of a request, and the calls in its messages, in each dialect's words. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from localmoe.chat.tools import ToolUse, read_tools
from localmoe.errors import UsageError
from localmoe.server.asks import Message
from localmoe.server.fields import Fields
from localmoe.server.problems import Problem, problem_of

HOSTED = (
    "web_search", "web_search_preview", "file_search", "code_interpreter", "computer_use_preview",
    "image_generation", "local_shell", "mcp", "custom",
)  # fmt: skip
"""Tools of OpenAI's responses that are none here: the model is not told of them."""
ANTHROPIC_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
JOINT = "__"  # between the namespace of a tool and its name


def of_chat(fields: Fields) -> ToolUse | None:
    """OpenAI's chat completions. Raises Problem."""
    return _use(fields, fields.items("tools"), fields.raw("tool_choice"), _parallel(fields))


def of_messages(fields: Fields) -> ToolUse | None:
    """Anthropic's messages. Raises Problem."""
    tools = []
    for tool in fields.objects("tools") or ():
        kind = tool.text("type") or "custom"
        if kind != "custom":
            param = tool.path("type")
            raise Problem(400, f"{param}: {kind} is not run here, only custom tools", param=param)
        schema, about = tool.raw("input_schema"), tool.text("description")
        tools.append({"name": tool.raw("name"), "description": about, "parameters": schema})
    wanted = fields.inner("tool_choice")
    choice: object = "auto"
    parallel = True
    if wanted is not None:
        kind = wanted.choice("type", (*ANTHROPIC_CHOICES, "tool")) or wanted.missing("type")
        choice = wanted.required_text("name") if kind == "tool" else ANTHROPIC_CHOICES[kind]
        choice = {"name": choice} if kind == "tool" else choice
        parallel = not wanted.flag("disable_parallel_tool_use")
    return _use(fields, tools, choice, parallel)


def of_responses(fields: Fields) -> tuple[ToolUse | None, Mapping[str, tuple[str, str]]]:
    """OpenAI's responses; and the namespace and name of each tool that has one. Raises Problem."""
    tools: list[Mapping[str, object]] = []
    spaces: dict[str, tuple[str, str]] = {}
    for tool in fields.objects("tools") or ():
        kind = tool.text("type") or "function"
        if kind == "namespace":
            space = tool.required_text("name")
            for inner in tool.objects("tools") or ():
                name = inner.required_text("name")
                spaces[f"{space}{JOINT}{name}"] = space, name
                tools.append(_function(inner, f"{space}{JOINT}{name}"))
        elif kind == "function":
            tools.append(_function(tool, tool.raw("name")))
        elif kind not in HOSTED:
            param = tool.path("type")
            raise Problem(400, f"{param}: {kind} is not run here", param=param)
    choice = fields.raw("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in HOSTED:
        choice = "auto"
    return _use(fields, tools, choice, _parallel(fields)), spaces


def _function(tool: Fields, name: object) -> Mapping[str, object]:
    function = {"name": name, "description": tool.text("description")}
    strict = {"strict": True} if tool.flag("strict") else {}
    return {**function, "parameters": tool.raw("parameters"), **strict}


def _parallel(fields: Fields) -> bool:
    allowed = fields.flag("parallel_tool_calls")
    return True if allowed is None else allowed


def _use(
    fields: Fields, tools: Sequence[object] | None, choice: object, parallel: bool
) -> ToolUse | None:
    if not tools and choice in (None, "auto", "none"):
        return None
    try:
        return read_tools(tools or [], "auto" if choice is None else choice, parallel=parallel)
    except UsageError as error:
        problem = problem_of(error)
        name = "tool_choice" if "tool_choice" in error.message else "tools"
        raise Problem(400, problem.message, param=fields.path(name)) from None


def with_calls(message: Message, calls: Sequence[object]) -> Message:
    """An assistant's message that makes these calls."""
    return {**message, "content": message.get("content") or None, "tool_calls": list(calls)}


def call(id_: str, name: str, arguments: object) -> Mapping[str, object]:
    """A call as the message list has it."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": text}}


def result(id_: str, content: str) -> Message:
    return {"role": "tool", "tool_call_id": id_, "content": content}
