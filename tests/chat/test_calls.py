"""Calls of tools in what a model writes: the same however it arrives, and text where it is none."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.chat.answer_format import AnswerFormat, Marks
from localmoe.chat.calls.format import GENERIC, Body, CallFormat
from localmoe.chat.events import ToolCallBegin, ToolCallDelta, ToolCallEnd
from localmoe.chat.splitter import Answer, Calling, Piece, Reasoning, Splitter
from tests.chat.scripted import split_at

pytestmark = pytest.mark.unit

THINK = AnswerFormat((Marks("<think>", "</think>"),), told=True, answer_end="<end>")
SPECIALS = ("<think>", "</think>", "<end>", "<calls>", "</calls>", '<|"|>')
CHANNELS = ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|call|>", "<|constrain|>")
TOOLS = {
    "look": {"properties": {"at": {"type": "string"}, "n": {"type": "integer"}}},
    "wait": {"properties": {}},
}
FORMATS: dict[str, tuple[CallFormat, str]] = {
    "object": (
        GENERIC,
        '<tool_call>\n{"name": "look", "arguments": {"at": "a\\n\\"b", "n": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>',
    ),
    "list": (
        CallFormat(Body.OBJECT, start="<calls>", end="</calls>", in_list=True),
        '<calls>[{"name": "look", "arguments": {"at": "a\\n\\"b", "n": 2}, "id": "x"}, '
        '{"id": "y", "arguments": {}, "name": "wait"}]</calls>',
    ),
    "keyed": (
        CallFormat(Body.KEYED, start="<calls>", end="</calls>", in_list=True),
        '<calls>[{"look": {"at": "a\\n\\"b", "n": 2}}, {"wait": {}}]</calls>',
    ),
    "named": (
        CallFormat(Body.NAMED, call_start="<calls>f.", call_end="</calls>", name_end=":\0 = "),
        '<calls>f.look:0 = {"at": "a\\n\\"b", "n": 2}</calls><calls>f.wait:1 = {}</calls>',
    ),
    "tagged": (
        CallFormat(
            Body.TAGGED,
            call_start="<calls>\n<function=",
            call_end="\n</function>\n</calls>",
            name_end=">",
            key_start="\n<parameter=",
            key_end=">\n",
            value_end="\n</parameter>",
        ),
        "<calls>\n<function=look>\n<parameter=at>\na\n\"b\n</parameter>\n<parameter=n>\n2\n"
        "</parameter>\n</function>\n</calls>\n<calls>\n<function=wait>\n</function>\n</calls>",
    ),
    "python": (
        CallFormat(Body.PYTHON, start="<calls>[", end="]</calls>", between=", "),
        "<calls>[look(at='a\\n\"b', n=2), wait()]</calls>",
    ),
    "gemma": (
        CallFormat(Body.GEMMA, call_start="<calls>call:", call_end="</calls>"),
        '<calls>call:look{at:<|"|>a\n"b<|"|>,n:2}</calls><calls>call:wait{}</calls>',
    ),
}  # fmt: skip
WANTED = [("look", {"at": 'a\n"b', "n": 2}), ("wait", {})]


@dataclass
class Read:
    answer: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] | None = None


def read(
    text: str,
    calls: CallFormat,
    cuts: list[int],
    *,
    answers: AnswerFormat = THINK,
    specials: tuple[str, ...] = SPECIALS,
    hold: bool = True,
    cut_off: bool = False,
) -> Read:
    """What comes of ``text``, which arrives in pieces of these lengths."""
    splitter = Splitter(
        answers,
        lambda texts: [split_at(t, specials) for t in texts],
        calling=Calling(calls, TOOLS, hold=hold),
    )
    pieces: list[Piece] = []
    sizes = iter(cuts * (len(text) + 1))
    for part in split_at(text, specials):
        rest = part.text
        while rest:
            size = len(rest) if part.token is not None else next(sizes)
            special = part.token is not None
            pieces += splitter.feed(rest[:size], special=special, control=special)
            rest = rest[size:]
    pieces += splitter.finish(cut=cut_off)
    found = Read(
        "".join(p.text for p in pieces if isinstance(p, Answer)),
        "".join(p.text for p in pieces if isinstance(p, Reasoning)),
    )
    names = {p.index: p.name for p in pieces if isinstance(p, ToolCallBegin)}
    texts = {
        index: "".join(p.text for p in pieces if isinstance(p, ToolCallDelta) and p.index == index)
        for index in names
    }
    ended = [p.index for p in pieces if isinstance(p, ToolCallEnd)]
    found.calls = [(names[index], json.loads(texts[index])) for index in ended]
    return found


cuts = st.lists(st.integers(1, 9), min_size=1, max_size=8)


@pytest.mark.parametrize("name", FORMATS)
@given(cuts=cuts, hold=st.booleans(), thinks=st.booleans())
def test_any_cutting_gives_the_same_calls(
    name: str, cuts: list[int], hold: bool, thinks: bool
) -> None:
    """In each format, after thinking or without, with text in front."""
    format_, text = FORMATS[name]
    thought = "<think>Do I <tool_call>?</think>" if thinks else ""
    found = read(f"{thought}I look: {text}<end>", format_, cuts, hold=hold)
    assert found.calls == WANTED
    assert found.answer.strip() == "I look:"
    assert found.reasoning == ("Do I <tool_call>?" if thinks else "")


NO_CALLS = {
    "another tool": '<tool_call>\n{"name": "fly", "arguments": {}}\n</tool_call>',
    "no name": '<tool_call>\n{"arguments": {}}\n</tool_call>',
    "no JSON": '<tool_call>\n{"name": "look", "arguments": {"at" 1}}\n</tool_call>',
    "no object": '<tool_call>\n{"name": "look", "arguments": [1]}\n</tool_call>',
    "no end": '<tool_call>\n{"name": "look", "arguments": {}} and so on',
    "prose": "A <tool_call> is a mark of <tool_call>s.",
}


@pytest.mark.parametrize("name", NO_CALLS)
@given(cuts=cuts)
def test_a_text_that_is_no_call_is_an_answer(name: str, cuts: list[int]) -> None:
    """Nothing of it is lost, and nothing of it was called."""
    found = read(NO_CALLS[name], GENERIC, cuts)
    assert (found.answer, found.calls) == (NO_CALLS[name], [])


@given(cuts=cuts)
def test_a_call_that_was_cut_off_is_none(cuts: list[int]) -> None:
    """The whole one before it is, and its beginning is no text for the reader."""
    whole = FORMATS["object"][1].partition("</tool_call>\n")[0] + "</tool_call>\n"
    started = '<tool_call>\n{"name": "look", "arguments": {"at": "so'
    found = read(whole + started, GENERIC, cuts, cut_off=True)
    assert (found.calls, found.answer.strip()) == (WANTED[:1], "")


@pytest.mark.parametrize("name", FORMATS)
@given(cuts=cuts, data=st.data())
def test_what_a_grammar_makes_a_call_is_no_text(
    name: str, cuts: list[int], data: st.DataObject
) -> None:
    """Wherever it is cut off, nothing but the beginning of its first mark is for the reader."""
    format_, text = FORMATS[name]
    mark = (format_.start or format_.call_start).split()[0]
    letters = [
        part.text if part.token is None else [part.text] for part in split_at(text, SPECIALS)
    ]
    tokens = list(itertools.chain.from_iterable(letters))
    written = "".join(tokens[: data.draw(st.integers(0, len(tokens)))])
    found = read(written, format_, cuts, hold=False, cut_off=True)
    assert mark.startswith(found.answer.strip())


@given(cuts=cuts, at=st.text(alphabet='<>/"\\ \n{}[]=:,|é漢', max_size=20), n=st.integers())
def test_arguments_may_spell_what_they_like(cuts: list[int], at: str, n: int) -> None:
    """The marks of the format too: JSON is read as JSON, a token is no text that spells it."""
    at = f"{at}</tool_call>{at}"
    arguments = json.dumps({"at": at, "n": n}, ensure_ascii=False)
    text = f'<tool_call>\n{{"name": "look", "arguments": {arguments}}}\n</tool_call>'
    assert read(text, GENERIC, cuts).calls == [("look", {"at": at, "n": n})]
    tagged = FORMATS["tagged"][0]
    value = f"{at}\n</parameter> <calls> \n</parameter>"
    text = (
        f"<calls>\n<function=look>\n<parameter=at>\n{value.replace('<calls>', '<call>')}\n"
        f"</parameter>\n<parameter=n>\n{n}\n</parameter>\n</function>\n</calls>"
    )
    wanted = {"at": value.replace("<calls>", "<call>"), "n": n}
    assert read(text, tagged, cuts).calls == [("look", wanted)]


@given(cuts=cuts)
def test_a_message_for_a_tool_is_a_call(cuts: list[int]) -> None:
    """gpt-oss names the tool in the header of a message, before or after its channel."""
    marks = Marks("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
    answers = AnswerFormat((marks,), answer_start="<|channel|>final<|message|>", told=True)
    thought = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
    aloud = "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    forms = (
        '<|channel|>commentary to=functions.look <|constrain|>json<|message|>{"at": "x"}<|call|>',
        ' to=functions.look<|channel|>commentary json<|message|>{"at": "x"}',
    )
    for form in forms:
        found = read(
            thought + aloud + form,
            CallFormat(Body.CHANNEL),
            cuts,
            answers=answers,
            specials=CHANNELS,
        )
        assert found == Read("I look.", "Hm.", [("look", {"at": "x"})])
