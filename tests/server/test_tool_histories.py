"""Tools, calls and results that no client can mean: a 400 that names them, in each dialect."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.server.served import Served

ASK: dict[str, Any] = {"role": "user", "content": "What is the weather?"}
SCHEMA: dict[str, Any] = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}}
FUNCTION: dict[str, Any] = {"name": "look", "parameters": SCHEMA}
NOT: dict[str, Any] = {"properties": {"a": {"not": {}}}}
TREE: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}}}
Case = tuple[dict[str, Any], str]


def call(id_: object = "a", name: object = "look", arguments: object = "{}") -> Any:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def calls(*made: Any) -> Any:
    return {"role": "assistant", "content": None, "tool_calls": list(made)}


def result(id_: object = "a", content: object = "Rain.") -> Any:
    return {"role": "tool", "tool_call_id": id_, "content": content}


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [ASK, *messages], "max_tokens": 8, **more}


def tool(schema: object = SCHEMA, **more: Any) -> Any:
    return {"type": "function", "function": {**FUNCTION, "parameters": schema, **more}}


ARGUMENTS = "messages[1].tool_calls[0].function.arguments"
CHATS: dict[str, Case] = {
    "two ids": (chat(calls(call(), call()), result()), "messages[1].tool_calls[1]: a second call"),
    "two results": (chat(calls(call()), result(), result()), "messages[3] is a second result"),
    "no result": (chat(calls(call()), ASK), "messages[1] makes the call 'a'"),
    "no result at the end": (chat(calls(call())), "messages[1] makes the call 'a'"),
    "one result of two": (chat(calls(call(), call("b")), result("b")), "makes the call 'a'"),
    "no call": (chat(result()), "messages[1] is the result of the call 'a'"),
    "a call of before": (chat(calls(call()), result(), ASK, result()), "messages[4] is the result"),
    "no id": (chat(calls(call()), {"role": "tool", "content": ""}), "messages[2].tool_call_id"),
    "cut off": (chat(calls(call(arguments='{"a')), result()), f"{ARGUMENTS} is no JSON"),
    "deep": (
        chat(calls(call(arguments=f'{{"a": {"[" * 9999}{"]" * 9999}}}')), result()),
        f"{ARGUMENTS} is no JSON",
    ),
    "a list": (chat(calls(call(arguments="[1]")), result()), f"{ARGUMENTS} is a JSON object"),
    "a number": (chat(calls(call(arguments=3)), result()), f"{ARGUMENTS} is a JSON object"),
    "no name": (chat(calls(call(name=None)), result()), "messages[1].tool_calls[0].function.name"),
    "null for an id": (chat(calls(call(None)), result()), "messages[1].tool_calls[0].id"),
    "no function": (chat(calls({"id": "a", "custom": {}}), result()), "messages[1].tool_calls[0]"),
    "no list": (chat({"role": "assistant", "tool_calls": {}}), "messages[1].tool_calls is a list"),
    "an old call": (
        chat({"role": "assistant", "function_call": {"name": "look"}}, ASK),
        "messages[1].function_call",
    ),
    "a picture": (
        chat(calls(call()), result(content=[{"type": "image_url"}])), "messages[2].content[0].type"
    ),
    "strict": (chat(tools=[tool(NOT, strict=True)]), "tools[0] (look): the schema at #"),
    "no schema": (chat(tools=[tool([])]), "tools[0].function.parameters is a JSON schema"),
    "no end": (chat(tools=[tool({"$ref": "#"})]), "tools[0] (look): the schema at #: these ref"),
    "tools": (chat(tools=[tool()] * 2001), "2001 tools are too many"),
    "a bias of no token": (chat(logit_bias={"99999999": 1}), "logit_bias: no token has the number"),
    "as pairs": (chat(logit_bias=[[99999999, 1]]), "logit_bias: no token has the number 99999999"),
}  # fmt: skip


def use(id_: object = "a", **more: Any) -> Any:
    return {"type": "tool_use", "id": id_, "name": "look", "input": {}} | more


def given(id_: object = "a", **more: Any) -> Any:
    return {"type": "tool_result", "tool_use_id": id_, "content": "Rain."} | more


def messages(*turns: list[Any], **more: Any) -> dict[str, Any]:
    """The assistant's turns and the user's, with a system text before them."""
    said = [{"role": ("assistant", "user")[n % 2], "content": b} for n, b in enumerate(turns)]
    return {"system": "Be brief.", "messages": [ASK, *said], "max_tokens": 8, **more}


MESSAGES: dict[str, Case] = {
    "two ids": (messages([use(), use()], [given()]), "messages[1].content[1]: a second call"),
    "two results": (messages([use()], [given(), given()]), "messages[2].content[1] is a second"),
    "no result": (messages([use()], ["x"]), "messages[2].content[0] is not an object"),
    "a text for one": (
        messages([use()], [{"type": "text", "text": "x"}]),
        "messages[1] makes the call 'a', and no result of it comes before messages[2]",
    ),
    "no result at the end": (messages([use()]), "messages[1] makes the call 'a'"),
    "one result of two": (messages([use(), use("b")], [given("b")]), "makes the call 'a'"),
    "no call": (
        messages([{"type": "text", "text": "x"}], [given()]),
        "messages[2].content[0] is the result of the call 'a'",
    ),
    "no id": (messages([use(None)], [given()]), "messages[1].content[0].id is missing"),
    "a list": (messages([use(input=[1])], [given()]), "messages[1].content[0].input is an object"),
    "a text": (messages([use(input="{")], [given()]), "messages[1].content[0].input is an object"),
    "no name": (messages([use(name="")], [given()]), "messages[1].content[0].function.name"),
    "a picture": (
        messages([use()], [given(content=[{"type": "image"}])]),
        "messages[2].content[0].content[0].type",
    ),
    "a bad name": (messages(tools=[{"name": "a b", "input_schema": {}}]), "tools[0].name is"),
    "no schema": (messages(tools=[{"name": "a", "input_schema": 3}]), "tools[0].input_schema is"),
    "strict": (
        messages(tools=[{"name": "a", "input_schema": NOT, "strict": True}]),
        "tools[0] (a): the schema at #",
    ),
    "no such tool": (
        messages(
            tools=[{"name": "a", "input_schema": {}}], tool_choice={"type": "tool", "name": "b"}
        ),
        "tool_choice names 'b'",
    ),
}


def made(id_: object = "a", **more: Any) -> Any:
    return {"type": "function_call", "call_id": id_, "name": "look", "arguments": "{}"} | more


def output(id_: object = "a", **more: Any) -> Any:
    return {"type": "function_call_output", "call_id": id_, "output": "Rain."} | more


def response(*items: Any, **more: Any) -> dict[str, Any]:
    """Items after a question and instructions."""
    return {
        "instructions": "Be brief.",
        "input": [ASK, *items],
        "max_output_tokens": 8,
        **more,
    }


SPACE: dict[str, Any] = {"type": "namespace", "name": "sky"}
RESPONSES: dict[str, Case] = {
    "two ids": (response(made(), made(), output()), "input[2]: a second call has the id 'a'"),
    "two results": (response(made(), output(), output()), "input[3] is a second result"),
    "no result": (response(made(), ASK), "input[1] makes the call 'a', and no result of it"),
    "no result at the end": (response(made()), "input[1] makes the call 'a'"),
    "one result of two": (response(made(), made("b"), output("b")), "makes the call 'a'"),
    "no call": (response(output()), "input[1] is the result of the call 'a'"),
    "no id": (response(made(None), output()), "input[1].call_id is missing"),
    "cut off": (response(made(arguments='{"a'), output()), "input[1].arguments is no JSON"),
    "a list": (response(made(arguments="[1]"), output()), "input[1].arguments is a JSON object"),
    "an object": (response(made(arguments={}), output()), "input[1].arguments is a text"),
    "a picture": (response(made(), output(output=[{"type": "input_image"}])), "input[2].output[0]"),
    "another kind": (response({"type": "custom_tool_call"}), "input[1].type: custom_tool_call"),
    "behind a hosted one": (
        response(tools=[{"type": "web_search"}, {"type": "function", "name": "a b"}]),
        "tools[1].name is a name",
    ),
    "in a namespace": (
        response(tools=[{**SPACE, "tools": [{"type": "function", "name": "a b"}]}]),
        "tools[0].tools[0].name is a name",
    ),
    "strict": (
        response(tools=[{"type": "function", "name": "a", "parameters": NOT, "strict": True}]),
        "tools[0] (a): the schema at #",
    ),
}
REFUSED = {
    "/v1/chat/completions": CHATS,
    "/v1/messages": MESSAGES,
    "/v1/responses": RESPONSES,
}
EACH = [(path, name) for path, cases in REFUSED.items() for name in cases]


@pytest.mark.parametrize(("path", "name"), EACH)
def test_what_cannot_be_meant_is_a_400(nano: Served, path: str, name: str) -> None:
    """It names the message, item, block or tool as the client has sent it, streamed or not."""
    body, words = REFUSED[path][name]
    for stream in (False, True):
        status, _, document = nano.ask("POST", path, {**body, "stream": stream})
        assert status == 400, document
        error = document["error"]
        assert words in error["message"]
        if path != "/v1/messages" and "makes the call" not in words:
            assert not error["param"] or error["param"] in error["message"]


ONE: dict[str, Any] = {"parallel_tool_calls": False, "tool_choice": "required", "max_tokens": 200}
ANSWERED: dict[str, dict[str, Any]] = {
    "an undeclared tool": chat(calls(call(name="fly")), result(), tools=[tool()]),
    "an id once more": chat(calls(call()), result(), ASK, calls(call()), result()),
    "no arguments": chat(calls(call(arguments="")), result()),
    "an object": chat(calls(call(arguments={"city": "Rome"})), result()),
    "what no grammar can": chat(tools=[tool(NOT)]),
    "a tree": chat(tools=[tool(TREE)]) | ONE,
}


@pytest.mark.parametrize("name", ANSWERED)
def test_what_can_be_meant_is_answered(nano: Served, name: str) -> None:
    """Agents change their tools, and servers make ids anew; a schema may refer to itself."""
    body = ANSWERED[name]
    status, _, document = nano.ask("POST", "/v1/chat/completions", {**body, "temperature": 0})
    assert status == 200, document
    choice = document["choices"][0]
    if "tool_choice" in body:
        assert choice["finish_reason"] == "tool_calls"
        (made,) = choice["message"]["tool_calls"]
        jsonschema.validate(json.loads(made["function"]["arguments"]), TREE)


def test_what_is_not_enforced_is_told_once(nano: Served) -> None:
    """The log names the tool and the place in its schema."""
    for _ in range(2):
        nano.ask("POST", "/v1/chat/completions", chat(tools=[tool(NOT)]))
    told = [line for line in nano.lines if "no grammar enforces: look: #/properties/a" in line]
    assert len(told) == 1
