"""Histories as other programs write them: one form for what means the same, or an error."""

from __future__ import annotations

from typing import Any

import pytest

from localmoe.chat.history import read_messages
from localmoe.chat.session import Message, ToolCall
from localmoe.errors import UsageError

pytestmark = pytest.mark.unit

ASK = {"role": "user", "content": "Which?"}
CALL = {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
OTHER = {**CALL, "id": "b"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL, OTHER]}
LOOK_A, LOOK_B = ToolCall("a", "look", '{"at": 1}'), ToolCall("b", "look", '{"at": 1}')


def result(id_: str, content: Any = "sky") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id_, "content": content}


def test_a_call_and_its_results_in_the_order_of_the_calls() -> None:
    """Whichever result is there first, the prompt is the same."""
    there = Message("tool", "sky", result_of=LOOK_A), Message("tool", "sea", result_of=LOOK_B)
    wanted = (Message("user", "Which?"), Message("assistant", "", calls=(LOOK_A, LOOK_B)), *there)
    assert read_messages([ASK, CALLS, result("a"), result("b", "sea")]) == wanted
    assert read_messages([ASK, CALLS, result("b", "sea"), result("a")]) == wanted


def test_what_clients_do_differently_comes_out_the_same() -> None:
    """Developer or system, parts or text, arguments as an object or its text."""
    parts = [{"type": "text", "text": "Whi"}, {"type": "input_text", "text": "ch?"}]
    plain = [{"role": "system", "content": "A\n\nB"}, ASK]
    other = [
        {"role": "system", "content": "A"},
        {"role": "developer", "content": "B"},
        {"role": "user", "content": parts},
    ]
    assert read_messages(other) == read_messages(plain)
    function = {"name": "look", "arguments": {"at": 1}}
    loose = {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": function}]}
    strict = {"role": "assistant", "tool_calls": [CALL]}
    assert read_messages([ASK, loose, result("a")]) == read_messages([ASK, strict, result("a")])


def test_thinking_comes_under_either_name() -> None:
    for key in ("reasoning", "reasoning_content"):
        said = {"role": "assistant", "content": "Sky.", key: "They ask."}
        assert read_messages([ASK, said, ASK])[1].reasoning == "They ask."


def changed(**function: object) -> dict[str, Any]:
    call = {**CALL, "function": {"name": "look", "arguments": "{}", **function}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


WRONG: dict[str, tuple[object, str]] = {
    "nothing": ([], "no messages"),
    "no list": (7, "a list of messages, not 7"),
    "no role": ([ASK, {"content": "x"}], r"messages\[1\]: role is one of"),
    "no content": ([{"role": "user"}], r"messages\[0\].content is a text, not None"),
    "picture": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}],
        r"messages\[0\].content\[0\] is no text but of the type 'image_url'",
    ),
    "assistant last": ([ASK, {"role": "assistant", "content": "x"}], r"messages\[1\] is the"),
    "system alone": ([{"role": "system", "content": "x"}], "no message of the user's"),
    "result of nothing": ([ASK, result("a")], r"messages\[1\] is the result of the call 'a'"),
    "result twice": ([ASK, CALLS, result("a"), result("a")], r"messages\[3\] is a second result"),
    "result without id": ([ASK, CALLS, {"role": "tool", "content": ""}], r"messages\[2\]: tool_ca"),
    "result missing": ([ASK, CALLS, result("a"), ASK], r"messages\[1\] makes the call 'b'.*\[3\]"),
    "results to come": ([ASK, CALLS], r"messages\[1\] makes the call 'a'"),
    "late result": ([ASK, CALLS, result("a"), result("b"), ASK, result("a")], r"messages\[5\]"),
    "one id for two": (
        [ASK, {**CALLS, "tool_calls": [CALL, CALL]}],
        r"messages\[1\].tool_calls\[1\]: a second call has the id 'a'",
    ),
    "call of nothing": ([ASK, {**CALLS, "tool_calls": [{"id": "a"}]}], r"\[0\] is no call"),
    "nameless call": (
        [ASK, changed(name="")],
        r"messages\[1\].tool_calls\[0\].function.name is",
    ),
    "broken arguments": (
        [ASK, changed(arguments='{"at": ')],
        r"messages\[1\].tool_calls\[0\].function.arguments is no JSON",
    ),
    "arguments in a list": (
        [ASK, changed(arguments="[1]")],
        r"arguments is a JSON object, not",
    ),
    "deep arguments": ([ASK, changed(arguments='{"a":' * 99_999)], r"arguments is no JSON"),
    "too deep to write": (
        [ASK, changed(arguments=f'{{"a": {"[" * 500}{"]" * 500}}}')],
        r"arguments is no JSON: nested more than 64",
    ),
    "no number": ([ASK, changed(arguments='{"a": NaN}')], r"arguments is no JSON: NaN"),
    "a set": ([ASK, changed(arguments={"a": {1}})], r"arguments is no JSON"),
    "from elsewhere": ([ASK, {**result("a"), "at": "input[7]"}], r"^input\[7\] is the result"),
    "a call from elsewhere": (
        [ASK, {**CALLS, "tool_calls": [CALL, {**CALL, "at": "input[2]"}]}],
        r"^input\[2\]: a second call",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_names_the_message(case: str) -> None:
    """A history that no client can mean is refused, by the number of its message."""
    messages, words = WRONG[case]
    with pytest.raises(UsageError, match=words):
        read_messages(messages)
