"""Calls written by the engine's own collection of chat templates are read as they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from localmoe.errors import EngineError
from scripts import engine_source
from tests.chat.calls_of_templates import Family, patient_renderer
from tests.needs import missing

pytestmark = pytest.mark.process

PROPERTIES = {
    "city": {"type": "string", "description": "A."},
    "days": {"type": "integer", "description": "B."},
    "more": {"type": "object", "description": "C."},
    "sure": {"type": "boolean", "description": "D."},
    "list": {"type": "array", "description": "E."},
}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": []}
SCHEMAS: dict[str, dict[str, Any]] = {"get_weather": PARAMETERS, "get_time": PARAMETERS}
MARKS = "</function></parameter></tool_call><tool_call><arg_value>[ARGS]<|call|></think>"
"""Not the end of a value with what follows it: in tags, nobody could tell that from the end."""
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"city": "Paris", "days": 3},
    {"city": "3", "sure": True, "list": [], "more": {}},
    {"city": " \"q\" 'x'\\ {}[],:é漢😀 \t", "days": -1, "more": {"a": [1, 2.5, None, "</f>"]}},
    {"city": f"a\n\n{MARKS}\nb", "list": [1, "2", {"k": "v"}], "sure": False},
)
NO_CALLS = {  # templates that write none: how their models call is in a list
    "HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct", "google-gemma-2-2b-it",
    "ibm-granite-granite-3.3-2B-Instruct", "llama-cpp-rwkv-world",
    "microsoft-Phi-3.5-mini-instruct",
}  # fmt: skip
LOSSY = {  # what a template writes of some texts cannot be read, by anyone
    "LFM2.5-8B-A1B": "strings in quotes that are not escaped",
    "openbmb-MiniCPM5-1B": "CDATA around some strings",
    "MiniMax-M3": "values without a type in tags, and no null: see TYPED",
}


POINT = {"type": "object", "properties": {"x": {"type": "number"}, "name": {"type": "string"}}}
TYPED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "points": {"type": "array", "items": {"$ref": "#/$defs/point"}},
        "item": {"type": "object", "properties": {"item": {"type": "string"}}},
        "sure": {"type": "boolean"},
        "more": {},
    },
    "$defs": {"point": POINT},
}
TYPED_ARGUMENTS: tuple[dict[str, Any], ...] = (
    {},
    {"text": "", "points": [], "item": {}, "sure": False},
    {"text": " 17\n", "points": [{"x": 1.5, "name": "2"}, {}], "item": {"item": "true"}},
    {"text": "<item></text> ]<]", "more": [1, "two", {"a": [True]}]},
)


@pytest.fixture(scope="module")
def families() -> Iterator[dict[str, Family]]:
    try:
        sources = engine_source.templates()
    except (EngineError, OSError) as error:
        missing(f"the engine's source package cannot be had: {error}", expected=False)
    with patient_renderer() as renderer:
        yield {name: Family.of(source, renderer) for name, source in sources.items()}


def test_what_a_template_writes_is_read_as_it_was(families: dict[str, Family]) -> None:
    """One call and two, values of every type, the marks as text in them; from several cuts."""
    wrong = []
    for name in sorted(families.keys() - NO_CALLS - LOSSY.keys()):
        family = families[name]
        for arguments in ARGUMENTS:
            calls: list[tuple[str, Any]] = [("get_weather", arguments)]
            if arguments and family.calls.several:
                calls.append(("get_time", {"city": "Rome"}))
            text = family.written(SCHEMAS, calls)
            read = [family.read(text, SCHEMAS, sizes).parsed() for sizes in ((1,), (len(text),))]
            if read != [calls, calls]:
                wrong.append((name, arguments, text))
    assert not wrong, wrong[:3]


def test_objects_as_tags_within_tags(families: dict[str, Family]) -> None:
    """MiniMax M3: each value as its schema has it, from every cut."""
    family = families["MiniMax-M3"]
    assert family.calls.item_key == "item"
    for arguments in TYPED_ARGUMENTS:
        calls = [("f", arguments)]
        text = family.written({"f": TYPED}, calls)
        for sizes in ((1,), (4, 2), (len(text),)):
            assert family.read(text, {"f": TYPED}, sizes).parsed() == calls
            plain = family.read(text, {"f": TYPED}, sizes, specials=())
            assert plain.parsed() == calls, "its marks may be no tokens"


def test_formats_come_from_the_templates(families: dict[str, Family]) -> None:
    """Of each template that writes calls; what is not derived is the generic form or listed."""
    derived = {name for name, family in families.items() if family.calls.derived}
    listed = families.keys() - derived
    assert listed == NO_CALLS | {"openai-gpt-oss-120b"}
    assert len(derived) >= 58


def test_arguments_are_json_while_they_arrive(families: dict[str, Family]) -> None:
    """Where a grammar holds, pieces come at once, and together they are the same."""
    for name in ("Qwen-Qwen3-0.6B", "Qwen3-Coder", "GLM-4.6", "deepseek-ai-DeepSeek-V3.1"):
        family = families[name]
        calls = [("get_weather", {"city": "Paris", "days": 3})]
        text = family.written(SCHEMAS, calls)
        held = family.read(text, SCHEMAS, (1,))
        at_once = family.read(text, SCHEMAS, (1,), hold=False)
        assert [(n, json.loads(a)) for n, a in at_once.calls] == held.parsed() == calls, name
