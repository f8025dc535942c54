"""The tools of a request, and the calls in its messages, in each dialect's words. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from localmoe.chat.history import arguments_text
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
        tool.inner("input_schema")
        tools.append(_function(tool, tool.raw("name"), "input_schema"))
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


def _function(tool: Fields, name: object, schema: str = "parameters") -> Mapping[str, object]:
    """A function as ``read_tools`` has it; ``schema``: the field of its arguments' schema."""
    function = {"name": name, "description": tool.text("description"), "at": tool.where}
    strict = {"strict": True} if tool.flag("strict") else {}
    return {**function, "parameters": tool.raw(schema), **strict}


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
        raise Problem(400, problem.message, param=problem.param or fields.path(name)) from None


def with_calls(message: Message, calls: Sequence[object]) -> Message:
    """An assistant's message that makes these calls."""
    return {**message, "content": message.get("content") or None, "tool_calls": list(calls)}


def call(id_: str, name: str, arguments: str) -> Mapping[str, object]:
    """A call as the message list has it."""
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def call_of(fields: Fields, id_: str, name: str, arguments: str) -> Mapping[str, object]:
    """The call in an item or block with these fields. Raises Problem, UsageError."""
    given = fields.raw(arguments)
    text = arguments_text(fields.path(arguments), given)
    return {**call(fields.required_text(id_), name, text), "at": fields.where}


def result(fields: Fields, id_: str, content: str) -> Message:
    """The result of a call in an item or block. Raises Problem."""
    called = fields.required_text(id_)
    return {"role": "tool", "tool_call_id": called, "content": content, "at": fields.where}
