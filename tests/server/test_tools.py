"""Tools in the three dialects, asked for by OpenAI's and Anthropic's own libraries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from tests.server.served import Served

if TYPE_CHECKING:
    import anthropic
    import openai

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}},
    "required": ["city", "days"],
}
FUNCTION: dict[str, Any] = {"name": "get_weather", "description": "It.", "parameters": SCHEMA}
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
ASKED: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
HOW: dict[str, Any] = {"model": "any", "max_tokens": 300, "temperature": 0}


def valid(arguments: str | object) -> Any:
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    jsonschema.validate(given, SCHEMA)
    return given


def test_chat_completions(of_openai: openai.OpenAI) -> None:
    """Whole and streamed a valid call; its result goes back, and an answer comes."""
    how: dict[str, Any] = {**HOW, "tools": TOOLS, "tool_choice": "required", "seed": 1}
    how["parallel_tool_calls"] = False
    whole = of_openai.chat.completions.create(messages=ASKED, **how).choices[0]
    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    assert whole.message.tool_calls
    call = whole.message.tool_calls[0]
    assert call.type == "function"
    valid(call.function.arguments)
    stream = of_openai.chat.completions.create(messages=ASKED, stream=True, **how)
    chunks = [chunk.choices[0] for chunk in stream]
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or ()]
    assert (pieces[0].index, pieces[0].function.name) == (0, "get_weather")
    assert pieces[0].id and all(piece.id is None for piece in pieces[1:])
    assert len(pieces) > 3
    valid("".join(piece.function.arguments for piece in pieces))
    assert chunks[-1].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains."}
    history = [*ASKED, whole.message.to_dict(), result]
    again = of_openai.chat.completions.create(messages=history, tools=TOOLS, **HOW)
    assert again.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_the_helper_of_the_library_follows(of_openai: openai.OpenAI) -> None:
    """Its own accumulator of streamed calls makes of them what was meant."""
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    with of_openai.chat.completions.stream(
        messages=ASKED, tools=TOOLS, tool_choice=choice, **HOW
    ) as stream:
        names = [event.type for event in stream]
    final = stream.get_final_completion().choices[0].message
    assert "tool_calls.function.arguments.delta" in names
    for call in final.tool_calls or ():
        valid(call.function.arguments)


def test_messages(of_anthropic: anthropic.Anthropic) -> None:
    """``tool_use`` blocks, whole and by ``input_json_delta``; results come in a user's message."""
    tools: list[Any] = [{"name": "get_weather", "input_schema": SCHEMA}]
    how: dict[str, Any] = {"model": "any", "max_tokens": 300, "extra_body": {"temperature": 0}}
    plain = dict(how)
    how |= {"tools": tools, "tool_choice": {"type": "any"}}
    whole = of_anthropic.messages.create(messages=ASKED, **how)
    assert whole.stop_reason == "tool_use"
    uses = [block for block in whole.content if block.type == "tool_use"]
    assert uses
    for block in uses:
        valid(block.input)
    with of_anthropic.messages.stream(messages=ASKED, **how) as stream:
        kinds = {event.delta.type for event in stream if event.type == "content_block_delta"}
        final = stream.get_final_message()
    assert kinds == {"input_json_delta"}
    for block in final.content:
        assert block.type == "tool_use"
        valid(block.input)
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "It rains."} for block in uses
    ]
    history: list[Any] = [
        *ASKED,
        {"role": "assistant", "content": [block.to_dict() for block in uses]},
        {"role": "user", "content": [*results, {"type": "text", "text": "And?"}]},
    ]
    again = of_anthropic.messages.create(messages=history, tools=tools, **plain)
    assert again.content[0].type == "text"
    with_tools = of_anthropic.messages.count_tokens(model="any", messages=ASKED, tools=tools)
    without = of_anthropic.messages.count_tokens(model="any", messages=ASKED)
    assert with_tools.input_tokens > without.input_tokens + 20


def test_responses(of_openai: openai.OpenAI) -> None:
    """``function_call`` items, whole and streamed; a namespace comes back as it was given."""
    inner = {"type": "function", **FUNCTION}
    tools: Any = [
        {"type": "web_search"},
        {"type": "namespace", "name": "sky", "description": "It.", "tools": [inner]},
    ]
    how: dict[str, Any] = {"model": "any", "max_output_tokens": 300, "temperature": 0}
    how |= {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    whole = of_openai.responses.create(input=ASKED, **how)
    (item,) = [item for item in whole.output if item.type == "function_call"]
    assert (item.name, item.to_dict()["namespace"]) == ("get_weather", "sky")
    valid(item.arguments)
    events = list(of_openai.responses.create(input=ASKED, stream=True, **how))
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    valid("".join(pieces))
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert done.arguments == "".join(pieces)
    assert events[-1].type == "response.completed"
    assert events[-1].response.output[-1].to_dict()["arguments"] == done.arguments
    output = {"type": "function_call_output", "call_id": item.call_id, "output": "It rains."}
    history: Any = [*ASKED, item.to_dict(), output]
    how = {"model": "any", "max_output_tokens": 30, "temperature": 0, "tools": tools}
    assert of_openai.responses.create(input=history, **how).output_text


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no tools": ({"tools": 3}, "tools is a list"),
    "no name": ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    "undeclared": ({"tools": TOOLS, "tool_choice": {"function": {"name": "x"}}}, "tool_choice"),
    "no result": (
        {
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
                },
                *ASKED,
            ]
        },
        "messages[1] makes the call 'a'",
    ),
    "result of nothing": (
        {"messages": [*ASKED, {"role": "tool", "tool_call_id": "b", "content": ""}]},
        "messages[1] is the result of the call 'b'",
    ),
    "broken arguments": (
        {
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{"}}],
                },
                {"role": "tool", "tool_call_id": "a", "content": ""},
            ]
        },
        "messages[1].tool_calls[0].function.arguments is no JSON",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_request_that_cannot_be_meant_is_a_400(nano: Served, case: str) -> None:
    """It names the message or the tool."""
    body, words = WRONG[case]
    status, _, document = nano.ask("POST", "/v1/chat/completions", {"messages": ASKED} | body)
    assert status == 400
    assert words in document["error"]["message"]
