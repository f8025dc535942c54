"""The tools that a model may call, checked. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localmoe.errors import UsageError
from localmoe.text import shortened

NAME = re.compile(r"[\w.:/-]{1,128}")
CHOICES = ("auto", "none", "required")
MOST_TOOLS = 2000
MOST_LEFT_OUT = 200  # keywords of one schema that no grammar can enforce
NO_ARGUMENTS: Mapping[str, object] = {"type": "object", "properties": {}}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """Tools, and whether the model may or must call them.

    ``schemas``: what is enforced of each tool's arguments; ``not_enforced`` says what is not.
    """

    tools: tuple[Mapping[str, object], ...]
    schemas: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    required: bool = False
    only: str = ""  # the one tool that may be called; "": any
    allowed: bool = True  # False: the model is told of them, and may not call them
    parallel: bool = True  # several calls in one answer
    not_enforced: tuple[str, ...] = ()

    @property
    def callable(self) -> dict[str, Mapping[str, object]]:
        """The schemas of the tools that may be called, by name."""
        if not self.allowed:
            return {}
        return {k: v for k, v in self.schemas.items() if not self.only or k == self.only}


def read_tools(tools: object, choice: object = "auto", *, parallel: object = True) -> ToolUse:
    """Tools as OpenAI's chat completions have them, and which of them to call.

    ``choice`` is auto, none, required, or a tool's name. A keyword of a schema that no grammar
    can enforce is left out, and named in ``not_enforced``; with ``"strict": true`` it is an error.
    Raises UsageError, which names the tool: ``tools[2]``, or what it has under ``at``.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise UsageError(f"tools is a list of tools, not {_shown(tools)}")
    if len(tools) > MOST_TOOLS:
        raise UsageError(f"{len(tools)} tools are too many; {MOST_TOOLS} may be given")
    if not isinstance(parallel, bool):
        raise UsageError(f"parallel_tool_calls is true or false, not {_shown(parallel)}")
    read: list[Mapping[str, object]] = []
    schemas: dict[str, Mapping[str, object]] = {}
    left_out: list[str] = []
    for number, tool in enumerate(tools):
        at = f"tools[{number}]"
        if isinstance(tool, Mapping) and isinstance(tool.get("at"), str):
            at = tool["at"]
        function = _function(at, tool)
        name = str(function["name"])
        if name in schemas:
            raise UsageError(f"{at}: a second tool has the name {_shown(name)}")
        schemas[name], missing = _enforceable(at, function)
        left_out += missing
        read.append({"type": "function", "function": function})
    only = _only(choice, schemas)
    if (choice == "required" or only) and not read:
        raise UsageError("tool_choice asks for a call, and there are no tools")
    return ToolUse(
        tools=tuple(read),
        schemas=schemas,
        required=choice == "required" or bool(only),
        only=only,
        allowed=choice != "none",
        parallel=parallel,
        not_enforced=tuple(left_out),
    )


def _function(at: str, tool: object) -> dict[str, object]:
    if not isinstance(tool, Mapping):
        raise UsageError(f"{at} is a tool, not {_shown(tool)}")
    kind = tool.get("type", "function")
    if kind != "function":
        raise UsageError(f"{at} is of the type {_shown(kind)}; this model calls functions alone")
    function = tool.get("function", tool)
    within = f"{at}.function" if "function" in tool else at
    if not isinstance(function, Mapping):
        raise UsageError(f"{at}.function is an object, not {_shown(function)}")
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            f"{within}.name is a name, not {_shown(name)}",
            hint="1 to 128 letters, digits, and . : / _ -",
        )
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise UsageError(f"{within}.parameters is a JSON schema, not {_shown(parameters)}")
    described = {k: v for k, v in function.items() if k not in ("strict", "type", "at")}
    described["name"] = name
    described["description"] = str(function.get("description") or "")
    described["parameters"] = dict(parameters) if parameters else dict(NO_ARGUMENTS)
    return described | ({"strict": True} if function.get("strict") is True else {})


def _only(choice: object, schemas: Mapping[str, object]) -> str:
    """The one tool that must be called; "" where there is none such."""
    if choice in CHOICES:
        return ""
    name = choice
    if isinstance(choice, Mapping):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else choice.get("name")
    if not isinstance(name, str):
        raise UsageError(f"tool_choice is {', '.join(CHOICES)} or a tool, not {_shown(choice)}")
    if name not in schemas:
        raise UsageError(f"tool_choice names {_shown(name)}, which is none of the tools")
    return name


def _enforceable(at: str, function: dict[str, object]) -> tuple[Mapping[str, object], list[str]]:
    """The schema of a tool's arguments without what no grammar can enforce, and what that was."""
    from localmoe.engine.grammar import SchemaRefusedError, schema_rules  # late: see answering.py

    strict = function.pop("strict", False)
    try:
        schema: dict[str, Any] = copy.deepcopy(dict(function["parameters"]))  # type: ignore[call-overload]
    except RecursionError:
        raise UsageError(f"{at} ({function['name']}): the schema is nested too deep") from None
    if "$ref" not in schema:
        schema["type"] = "object"
    left_out: list[str] = []
    while True:
        try:
            schema_rules(schema, "arguments", {}, None)
            return schema, left_out
        except SchemaRefusedError as error:
            name = function["name"]
            if strict or len(left_out) >= MOST_LEFT_OUT or not _leave_out(schema, error.at):
                raise UsageError(f"{at} ({name}): {error.message}", hint=error.hint) from None
            left_out.append(f"{name}: {error.message.removeprefix('the schema at ')}")


def _leave_out(schema: dict[str, Any], pointer: str) -> bool:
    """Make the schema weaker at ``pointer``; False where that is not possible."""
    path = [p.replace("~1", "/").replace("~0", "~") for p in pointer.lstrip("#/").split("/") if p]
    for cut in range(len(path), 0, -1):
        parent: Any = schema
        for part in path[: cut - 1]:
            try:
                parent = parent[int(part)] if isinstance(parent, list) else parent[part]
            except (KeyError, IndexError, ValueError, TypeError):
                parent = None
        last = path[cut - 1]
        if isinstance(parent, dict) and last in parent:
            return _weaken(parent, last, path[cut - 2] if cut > 1 else "")
        if isinstance(parent, list) and last.isdecimal() and int(last) < len(parent):
            return _weaken(parent, int(last), "list")
    return False


def _weaken(parent: Any, key: str | int, under: str) -> bool:
    """Drop a keyword; of a schema in its place keep the type."""
    if under in ("properties", "$defs", "definitions", "list"):
        value = parent[key]
        kept = {"type": value["type"]} if isinstance(value, Mapping) and "type" in value else {}
        weaker: object = True if value in (kept, {}) else kept
        if value == weaker:
            return False
        parent[key] = weaker
        return True
    del parent[key]
    return True


def _shown(value: object) -> str:
    return shortened(repr(value), 60)
