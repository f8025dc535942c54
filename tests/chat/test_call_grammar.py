"""Constrained calls: a model that never saw a tool writes nothing but valid ones."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import localmoe
from localmoe.chat.template import ChatTemplate
from localmoe.errors import EngineError, UsageError
from scripts import engine_source
from tests.archs.vocabulary import CHATML
from tests.chat.calls_of_templates import constrained, drawing, patient_renderer
from tests.needs import missing

pytestmark = pytest.mark.process

CASES = 12  # the first of the 200 of tests/soak/test_calls.py
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "unit": {"enum": ["c", "f"]},
    },
    "required": ["city", "unit"],
}
NOTE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
        "done": {"type": "boolean"},
        "by": {"type": "object", "properties": {"id": {"type": "number", "maximum": 9}}},
    },
    "required": ["tags"],
}
SCHEMAS = {"get_weather": WEATHER, "get_news": WEATHER, "note": NOTE}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
OPEN = {"properties": {"text": {"type": "string"}, "lines": {"type": "array"}, "more": {}}}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    try:
        return engine_source.templates()
    except (EngineError, OSError) as error:
        missing(f"the engine's source package cannot be had: {error}", expected=False)


@pytest.fixture(scope="module")
def nano() -> Iterator[localmoe.LoadedModel]:
    with localmoe.load("nano", context=8192, wishes=localmoe.Wishes(threads=1)) as model:
        yield model


def calls_of(model: localmoe.LoadedModel, **how: Any) -> tuple[localmoe.ToolCall, ...]:
    """The calls of an answer, which its events make as well; each is valid."""
    texts: dict[int, str] = {}
    done = None
    for event in model.chat("What is the weather?", tools=TOOLS, temperature=1.5, **how):
        if isinstance(event, localmoe.ToolCallDelta):
            texts[event.index] = texts.get(event.index, "") + event.text
        done = event
    assert isinstance(done, localmoe.TurnDone)
    assert done.finish_reason == "tool_calls"
    assert list(texts.values()) == [call.arguments for call in done.calls]
    for call in done.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    return done.calls


def test_required_calls_are_valid(nano: localmoe.LoadedModel) -> None:
    """Whatever is drawn: names exist, arguments validate, nothing but calls is said."""
    names = {
        call.name
        for seed in range(CASES)
        for call in calls_of(nano, tool_choice="required", seed=seed, max_tokens=400)
    }
    assert names <= SCHEMAS.keys()


def test_a_named_tool_and_one_call_alone(nano: localmoe.LoadedModel) -> None:
    for seed in range(4):
        (call,) = calls_of(
            nano, tool_choice="note", parallel_tool_calls=False, seed=seed, max_tokens=300
        )
        assert call.name == "note"


def test_open_arguments_end_within_the_limit(nano: localmoe.LoadedModel) -> None:
    """Texts and lists that a schema leaves open are ended, so that the call is whole."""
    tool = {"name": "write", "parameters": OPEN}
    for seed in range(4):
        done = nano.chat(
            "Go on", tools=[tool], tool_choice="required", temperature=1.5, seed=seed,
            max_tokens=500,
        ).result()  # fmt: skip
        assert done.finish_reason == "tool_calls"
        jsonschema.validate(json.loads(done.calls[0].arguments), OPEN)


FORMS = (
    "google-gemma-4-31B-it", "MiniMax-M3", "meetkai-functionary-medium-v3.2",
    "meta-llama-Llama-3.1-8B-Instruct", "Qwen3-Coder", "LFM2.5-8B-A1B",
)  # fmt: skip


THINKING = (
    "Qwen-QwQ-32B", "deepseek-ai-DeepSeek-V3.1", "MiniMax-M2", "GLM-4.6", "StepFun3.5-Flash",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_calls_in_the_form_of_other_templates(
    nano: localmoe.LoadedModel, sources: dict[str, str], name: str
) -> None:
    """Each form of call is enforced: what was drawn is read, and is valid."""
    with patient_renderer() as renderer:
        template = ChatTemplate(sources[name], "<s>", "</s>", renderer=renderer)
        for seed in range(2):
            done = constrained(nano.engine, template, SCHEMAS, temperature=1.5, seed=seed)
            assert (done.finish_reason, done.answer) == ("tool_calls", "")
        done = constrained(nano.engine, template, SCHEMAS, choice="auto", temperature=0)
        assert done.answer or done.calls or done.reasoning


@pytest.mark.parametrize("name", THINKING)
def test_a_model_that_thinks_for_ever_calls(
    nano: localmoe.LoadedModel, sources: dict[str, str], name: str, tmp_path: Path
) -> None:
    """Where a call is demanded, thinking is ended in time; its marks may be text or tokens."""
    how: dict[str, Any] = {"temperature": 1.5, "max_tokens": 1600}
    with drawing(tmp_path / "drawing.gguf", sources[name]) as model:
        template = ChatTemplate(sources[name], "<s>", "</s>", renderer=model.renderer)
        for engine in (nano.engine, model.engine):
            done = constrained(engine, template, SCHEMAS, seed=1, **how)
            assert (done.finish_reason, done.answer) == ("tool_calls", "")


NAMES_ALONE = "{% for tool in tools %}{{ tool.function.name }} {% endfor %}" + CHATML
"""With their schemas 500 tools would be a prompt of 26,000 tokens."""


def test_one_of_500_tools(nano: localmoe.LoadedModel) -> None:
    """All may be called, and their names are a tree: the grammar keeps up with the model."""
    schemas = {f"tool_{n}": {**WEATHER, "title": str(n)} for n in range(500)}
    with patient_renderer() as renderer:
        template = ChatTemplate(NAMES_ALONE, "<s>", "</s>", renderer=renderer)
        done = constrained(nano.engine, template, schemas, temperature=1.5, seed=1)
    assert done.finish_reason == "tool_calls"


def test_under_auto_an_answer_stays_one(nano: localmoe.LoadedModel) -> None:
    """A model that calls nothing answers; under none it is not even asked for calls."""
    for choice in ("auto", "none"):
        done = nano.chat("What is a mixture of experts?", tools=TOOLS, tool_choice=choice).result()
        assert (done.finish_reason, done.calls) == ("stop", ())
        assert done.answer


def test_a_call_after_text_is_constrained_from_its_mark_on(nano: localmoe.LoadedModel) -> None:
    """The mark is forced by a bias; what follows it is a call and validates."""
    mark = nano.tokenize("<tool_call>")
    bias = dict.fromkeys(mark, 30.0)
    done = nano.chat(
        "What is the weather?", tools=TOOLS, temperature=1.0, seed=3, max_tokens=400,
        logit_bias=bias,
    ).result()  # fmt: skip
    for call in done.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_what_was_sampled_is_not_read_again(nano: localmoe.LoadedModel) -> None:
    """Letters drawn one by one would be other tokens if they were read as a text."""
    ask: dict[str, Any] = {"role": "user", "content": "What is the weather?"}
    others = 0
    for seed in range(3):
        how: dict[str, Any] = {"temperature": 1.5, "seed": seed, "max_tokens": 400}
        first = nano.chat([ask], tools=TOOLS, tool_choice="required", **how).result()
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in first.calls
        ]
        results = [{"role": "tool", "tool_call_id": c.id, "content": "Rain."} for c in first.calls]
        said = {"role": "assistant", "content": None, "tool_calls": calls}
        second = nano.chat([ask, said, *results], tools=TOOLS, max_tokens=4).result()
        assert second.usage.reused_tokens >= first.usage.total - 1
        spelled = sum(len(nano.tokenize(call.arguments)) for call in first.calls)
        others += spelled < first.usage.completion_tokens - 20 * len(first.calls)
    assert others, "no answer had other tokens than its text"


DEEP: dict[str, Any] = functools.reduce(lambda s, _: {"properties": {"a": s}}, range(400), {})
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "deep": ({"tools": [{"name": "a", "parameters": DEEP}]}, r"tools\[0\] \(a\): .* too deep"),
    "no list": ({"tools": "x"}, "tools is a list of tools"),
    "no tool": ({"tools": [3]}, r"tools\[0\] is a tool, not 3"),
    "no function": ({"tools": [{"type": "retrieval"}]}, r"tools\[0\] is of the type 'retrieval'"),
    "no name": ({"tools": [{"name": "a b"}]}, r"tools\[0\].name is a name"),
    "two of a name": ({"tools": [{"name": "a"}, {"name": "a"}]}, r"tools\[1\]: a second tool"),
    "no schema": ({"tools": [{"name": "a", "parameters": 3}]}, r"parameters is a JSON schema"),
    "undeclared": ({"tools": TOOLS, "tool_choice": "fly"}, "names 'fly', which is none"),
    "no choice": ({"tools": TOOLS, "tool_choice": 3}, "tool_choice is auto, none, required or"),
    "nothing to call": ({"tools": [], "tool_choice": "required"}, "there are no tools"),
    "strict": (
        {"tools": [{"name": "a", "strict": True, "parameters": {"not": {}}}]},
        r"tools\[0\] \(a\): the schema at #/not",
    ),
    "beside a schema": ({"tools": TOOLS, "schema": {}}, "no tool can be called"),
}


@pytest.mark.parametrize("case", WRONG)
def test_tools_that_cannot_be_meant(nano: localmoe.LoadedModel, case: str) -> None:
    """An error before anything is read, which names the tool."""
    arguments, words = WRONG[case]
    with pytest.raises(UsageError, match=words):
        nano.chat("Hi", **arguments)


def test_a_keyword_that_cannot_be_enforced_is_left_out_and_told(
    nano: localmoe.LoadedModel,
) -> None:
    """The rest of the schema holds; recursion does; 500 tools can be given."""
    from localmoe.chat.tools import read_tools

    tree = {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {"type": "integer"}}}
    odd = {"properties": {"u": {"type": "array", "uniqueItems": True, "maxItems": 2}}}
    use = read_tools([{"name": "tree", "parameters": tree}, {"name": "odd", "parameters": odd}])
    assert use.not_enforced == (
        "odd: #/properties/u/uniqueItems: a grammar cannot tell whether items are different",
    )
    many = [{"name": f"tool_{n}", "parameters": {"properties": {}}} for n in range(500)]
    assert len(read_tools([*many, {"name": "tree", "parameters": tree}]).callable) == 501
