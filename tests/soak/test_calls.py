"""Calls of tools, again and again: constrained ones of a model that knows no tools."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema
import pytest

import localmoe
from localmoe.chat.calls.format import ANY, KEY, NAME, Body
from scripts import engine_source
from tests.chat.calls_of_templates import Family, patient_renderer
from tests.chat.test_call_grammar import SCHEMAS, TOOLS
from tests.chat.test_calls_of_templates import LOSSY, NO_CALLS
from tests.soak.conftest import Figures

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
CALLS = 200
GENERATED = 2000
LETTERS = "ab \n\t\"'\\<>{}[]|/=:,é漢😀\u2028"
MARKS = ("<tool_call>", "</tool_call>", "<|im_end|>", "[ARGS]", "</think>", "<arg_key>")


def test_two_hundred_calls(figures: Figures) -> None:
    """nano, which never saw a tool, writes 200 valid calls of 200."""
    figures["valid calls"] = 0
    with localmoe.load("nano", context=2048, wishes=localmoe.Wishes(threads=1)) as model:
        for seed in range(CALLS):
            done = model.chat(
                "What is the weather?", tools=TOOLS, tool_choice="required", temperature=1.5,
                seed=seed, max_tokens=400, parallel_tool_calls=False,
            ).result()  # fmt: skip
            (call,) = done.calls
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
            figures["valid calls"] += 1


def test_generated_arguments(figures: Figures) -> None:
    """What a template writes of any arguments is read as it was, from every cut."""
    rng = random.Random(8)
    figures |= {"calls of generated schemas": 0, "templates": 0}
    with patient_renderer() as renderer:
        sources = engine_source.templates()
        names = sorted(sources.keys() - NO_CALLS - LOSSY.keys())
        for at, name in enumerate(names):  # one after the other: each is compiled once
            family = Family.of(sources[name], renderer)
            marks = marks_of(family)
            for _ in range(at, GENERATED, len(names)):
                schema, arguments = generated(rng, marks)
                text = family.written({"f_1": schema}, [("f_1", arguments)])
                for sizes in ((1,), (len(text),), tuple(rng.randint(1, 9) for _ in range(5))):
                    found = family.read(text, {"f_1": schema}, sizes).parsed()
                    assert found == [("f_1", arguments)], (name, text)
                figures["calls of generated schemas"] += 1
            figures["templates"] += 1


def marks_of(family: Family) -> tuple[str, ...]:
    """Marks to be text in arguments: those of the template, and some of others.

    Not those that are a token of its own, where values stand bare: they end there.
    """
    own = {mark.strip() for mark in family.calls.marks}
    if family.calls.body in (Body.TAGGED, Body.GEMMA):
        own = {mark for mark in own if not any(token in mark for token in family.specials)}
    return (*MARKS, *sorted(mark for mark in own if mark and not set(mark) & {ANY, KEY, NAME}))


def generated(rng: random.Random, marks: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A schema, and arguments that follow it."""
    properties, arguments = {}, {}
    for number in range(rng.randint(0, 4)):
        key = f"key_{number}"
        kind = rng.choice(("string", "integer", "number", "boolean", "array", "object"))
        properties[key] = {"type": kind, "description": "It."}
        if rng.random() < 0.8:
            arguments[key] = _value(rng, marks, kind, 2)
    return {"type": "object", "properties": properties, "required": []}, arguments


def _value(rng: random.Random, marks: Sequence[str], kind: str, depth: int) -> Any:
    inner = ("string", "integer", "boolean", "array", "object") if depth else ("string", "integer")
    match kind:
        case "string":
            text = "".join(rng.choice(LETTERS) for _ in range(rng.randint(0, 12)))
            return rng.choice((text, text + rng.choice(marks) + text, "17", "true", "x"))
        case "integer":
            return rng.randint(-(10**12), 10**12)
        case "number":
            return rng.choice((0.5, -2.25, 3, 1e-7))
        case "boolean":
            return rng.random() < 0.5
        case "array":
            return [
                _value(rng, marks, rng.choice(inner), depth - 1) for _ in range(rng.randint(0, 3))
            ]
    return {
        f"k{n}": _value(rng, marks, rng.choice(inner), depth - 1) for n in range(rng.randint(0, 2))
    }
