"""Answers written under a schema's grammar validate against it, judged by another program."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Request, Sampling, Token
from localmoe.engine.grammar import schema_to_gbnf, with_reasoning
from localmoe.engine.grammar.numbers import number_rule
from localmoe.engine.grammar.patterns import pattern_body
from localmoe.errors import EngineError, UsageError
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings

pytestmark = pytest.mark.process

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", 'b"\\', "ü\n"]}, "maxItems": 3},
    },
    "required": ["age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "person": PERSON,
    "constants": {"enum": [None, True, 1.5, "x\ty", ["a", {"b": 1}], "\x7f\u2028𝄞"]},
    "const": {"const": {"a": [1, 2]}},
    "nullable": {"type": ["string", "null"], "maxLength": 3},
    "typed enum": {"type": "string", "enum": ["a", 1, "b"]},
    "tuple": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}]},
    "old tuple": {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
    "array bounds": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "empty array": {"type": "array", "items": {"type": "string"}, "maxItems": 0},
    "large maximum": {"type": "array", "items": {"const": 0}, "maxItems": 9999, "minItems": 1},
    "empty object": {"type": "object", "additionalProperties": False},
    "no optional": {"type": "object", "properties": {"a": {"const": 1}}},
    "described alone": {"properties": {"a": {"description": "It."}}, "required": ["a"]},
    "map": {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9}},
    "unnamed required": {"type": "object", "required": ["x y", 'q"'], "maxProperties": 2},
    "union": {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 7}, {"const": "none"}]},
    "union with base": {
        "type": "object",
        "properties": {"a": {"type": "integer", "maximum": 3}, "b": {"type": "boolean"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "discriminated": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "value": {"type": value}},
                "required": ["kind", "value"],
            }
            for kind, value in (("flag", "boolean"), ("nothing", "null"))
        ]
    },
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 2, "maximum": 3}, "b": {"type": "null"}}},
        ]
    },
    "references": {
        "$defs": {"point": {"type": "array", "items": {"const": 9}, "maxItems": 2}},
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
    },
    "recursive": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["left"],
            }
        },
        "$ref": "#/$defs/tree",
    },
    "a definition called root": {
        "$defs": {"root": {"type": "array", "items": {"$ref": "#/$defs/root"}, "maxItems": 2}},
        "$ref": "#/$defs/root",
    },
    "recursive root": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}},
        "required": ["next"],
    },
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d{3,4}(\.[^a-z\s])?$"},
    "pattern with quotes": {"type": "string", "pattern": r'^"?[\w\\]{1,9}/$|^x"$'},
    "anything of one type": {"type": "integer"},
    "no type": {"minLength": 1, "maxLength": 4},
    "float bounds": {"type": "number", "minimum": -1.25, "exclusiveMaximum": 3},
    "names like rules": {
        "type": "object",
        "properties": {"string": {"const": 1}, "ws": {"const": 2}, "root": {"const": 3}},
        "required": ["string", "ws", "root"],
    },
    "keys that collide": {
        "type": "object",
        "properties": {"a b": {"const": 1}, "a-b": {"const": 2}, "a": {"type": "object",
                       "properties": {"b": {"const": 3}}}},
        "required": ["a b", "a-b", "a"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(arch_file: Callable[[str], Path]) -> Iterator[Engine]:
    threads = EngineSettings(context=2048, batch=64, ubatch=64, threads=1, threads_batch=1)
    with Engine(read_model(arch_file("qwen3moe")), threads) as loaded:
        list(loaded.load())
        yield loaded


def write(
    engine: Engine, grammar: str, seed: int = 1, temperature: float = 2.0
) -> tuple[str, Finished]:
    """What a model with random weights writes; hot sampling tries every corner of a grammar."""
    sampling = Sampling(temperature=temperature, seed=seed, top_k=0, top_p=1, min_p=0)
    text = ""
    for event in engine.generate(Request("Go.", sampling=sampling, grammar=grammar)):
        if isinstance(event, Token):
            text += event.text
        elif isinstance(event, Finished):
            return text, event
    raise AssertionError


@pytest.mark.parametrize("name", SCHEMAS)
def test_answers_validate(engine: Engine, name: str) -> None:
    """Six answers of a real engine, each to its end, are JSON of the schema and its formats."""
    schema = SCHEMAS[name]
    validator: Any = jsonschema.Draft202012Validator
    if name == "old tuple":
        validator = jsonschema.Draft7Validator
    grammar = schema_to_gbnf(schema)
    for seed in range(6):
        text, done = write(engine, grammar, seed)
        assert done.reason == "stop", text
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(json.loads(text))


def test_the_same_sampling_with_and_without_a_grammar(engine: Engine) -> None:
    """Where the grammar allows everything, it changes no token: greedy, penalties included."""
    anything = "root ::= [^\\x00]*"
    sampling = Sampling(temperature=0, repeat_penalty=1.3, presence_penalty=0.2)
    texts = []
    for grammar in (None, anything):
        request = Request("Go on.", max_tokens=60, sampling=sampling, grammar=grammar)
        texts.append("".join(e.text for e in engine.generate(request) if isinstance(e, Token)))
    assert texts[0] == texts[1] != ""


def test_an_endless_grammar_is_an_error(engine: Engine) -> None:
    """The engine's refusal of a left recursion is a typed error, and the engine lives on."""
    with pytest.raises(EngineError, match="cannot use the grammar"):
        write(
            engine,
            schema_to_gbnf({"$defs": {"a": {"$ref": "#/$defs/a"}}, "anyOf": [{"$ref": "#"}]}),
        )
    assert write(engine, schema_to_gbnf({"const": 1}))[0] == "1"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"not": {"type": "string"}}, "#/not"),
        ({"type": "object", "properties": {"a": {"multipleOf": 3, "type": "number"}}},
         "#/properties/a/multipleOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "#/oneOf"),
        ({"type": "object", "patternProperties": {"^x": {}}}, "#/patternProperties"),
        ({"$ref": "https://example.org/schema.json"}, "#/$ref"),
        ({"$ref": "#/$defs/missing"}, "#/$ref"),
        ({"type": "text"}, "#/type"),
        ({"type": "string", "pattern": "(?=a)b"}, "#/pattern"),
        ({"type": "string", "pattern": "("}, "#/pattern"),
        ({"type": "string", "pattern": "^a$", "maxLength": 3}, "#"),
        ({"type": "string", "minLength": 5000}, "#/minLength"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "#"),
        ({"type": "array", "minItems": 3, "items": False}, "#"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "#/required"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "#/allOf/1"),
        ({"enum": []}, "#/enum"),
        ({"enum": [1], "type": "string"}, "#"),
        (False, "#"),
        ([], "#"),
        ({"$ref": "#/$defs/a", "minLength": 1, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "#"),
    ],
)  # fmt: skip
def test_what_cannot_be_enforced_is_refused(schema: object, place: str) -> None:
    """Nothing is ignored: the error names the place in the schema."""
    with pytest.raises(UsageError, match=re.escape(f"the schema at {place}:")):
        schema_to_gbnf(schema)


def test_a_schema_nested_without_end_is_refused() -> None:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(5000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="nested too deep"):
        schema_to_gbnf(schema)


DECIMALS = st.decimals(-1000, 1000, places=2).map(lambda d: d.normalize())


def as_regex(rule: str) -> re.Pattern[str]:
    """A rule without references, as a regular expression: GBNF writes blanks and quotes more."""
    parts = re.findall(r'"[^"]*"|\[[^\]]*\]|\{[\d,]*\}|[()|?*+]', rule)
    return re.compile("".join(re.escape(p[1:-1]) if p[0] == '"' else p for p in parts))


@settings(max_examples=400, deadline=None)
@given(low=st.none() | DECIMALS, high=st.none() | DECIMALS, value=DECIMALS, whole=st.booleans(),
       open_low=st.booleans(), open_high=st.booleans(), data=st.data())  # fmt: skip
def test_bounds_are_exact(
    low: Decimal | None,
    high: Decimal | None,
    value: Decimal,
    whole: bool,
    open_low: bool,
    open_high: bool,
    data: st.DataObject,
) -> None:
    """A number can be written exactly when it lies within its bounds, in every spelling tried."""
    schema: dict[str, Any] = {}
    if low is not None:
        schema["exclusiveMinimum" if open_low else "minimum"] = float(low)
    if high is not None:
        schema["exclusiveMaximum" if open_high else "maximum"] = float(high)
    if not schema:
        return
    steps = [Decimal(step) for step in ("0", "0.01", "-0.01", "0.001", "-0.001", "1", "-1")]
    near = [bound + step for bound in (low, high) if bound is not None for step in steps]
    value = data.draw(st.sampled_from([value, *near]))
    if whole:
        value = value.to_integral_value()
    above = low is None or (value > low if open_low else value >= low)
    below = high is None or (value < high if open_high else value <= high)
    places = max(-int(d.normalize().as_tuple().exponent) for d in (low, high) if d is not None)
    spellings = [f"{value:f}"] if whole else [f"{value:.{n}f}" for n in range(max(places, 0), 8)]
    spellings = [s for s in spellings if Decimal(s) == value]
    try:
        pattern = as_regex(number_rule(schema, "#", whole=whole))
    except UsageError:
        assert not (above and below)
        return
    for text in spellings:
        text = text.removeprefix("-") if value == 0 else text
        assert bool(pattern.fullmatch(text)) == (above and below), (schema, text, pattern.pattern)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.text("0123456789-+.e", max_size=8))
def test_integer_ranges_let_nothing_else_through(a: int, b: int, text: str) -> None:
    """What matches is a plain integer within the bounds: no leading zero, no sign."""
    low, high = sorted((a, b))
    if as_regex(number_rule({"minimum": low, "maximum": high}, "#", whole=True)).fullmatch(text):
        assert str(int(text)) == text and low <= int(text) <= high


@pytest.mark.parametrize(
    ("pattern", "found", "missed"),
    [
        ("ab?c", ["ac", "xabcx"], ["abbc", ""]),
        ("^a|b$", ["ab", "xb", "ax"], ["xa", "bx"]),
        ("^(foo|ba[rz]+)$", ["foo", "bazr"], ["foo!", "xfoo"]),
        ("^[^a-c]$", ["d", "é"], ["a", "dd"]),
        ("^.{2,3}$", ["ab", "abc"], ["a", "abcd"]),
        ("", ["", "x"], []),
    ],
)
def test_patterns_match_where_they_say(pattern: str, found: list[str], missed: list[str]) -> None:
    """Anchored or not, a pattern lets through what a search with it finds."""
    rule = as_regex(pattern_body(pattern).replace("char*", "[ -~]*"))
    assert [bool(rule.fullmatch(text)) for text in found] == [True] * len(found)
    assert not any(rule.fullmatch(text) for text in missed)


@pytest.mark.parametrize("end", ["</think>", "<|end|>x", "aab", "abab"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_thinking_ends_at_the_first_end(end: str, data: st.DataObject) -> None:
    """The automaton follows any text to the first end of thinking, and no further."""
    letters = "".join(sorted(set(end))) + "z"
    text = data.draw(st.text(letters, max_size=30)) + end
    grammar = with_reasoning('root ::= "1"', ["<think>"], [end], is_open=True)
    rules = dict(line.split(" ::= ", 1) for line in grammar.splitlines())
    stop = text.index(end) + len(end)
    state, at = "thought-0", 0
    while state:
        for choice in re.findall(
            r'("(?:\\.|[^"\\])"|\[\^[^\]]*\])(?: (thought-\d+))?', rules[state]
        ):
            wanted = re.compile(
                choice[0] if choice[0][0] == "[" else re.escape(choice[0].strip('"'))
            )
            if wanted.fullmatch(text[at]):
                state = choice[1]
                break
        else:
            raise AssertionError(f"stuck at {at} of {text!r}")
        at += 1
    assert at == stop


@pytest.mark.parametrize("is_open", [True, False])
def test_thinking_comes_before_the_answer(engine: Engine, is_open: bool) -> None:
    """A model may think in free text, and the answer after it still follows the schema."""
    short = with_reasoning(schema_to_gbnf(PERSON), ["<think>"], ["k"], is_open=is_open)
    thought = 0
    for seed in range(8):
        text, done = write(engine, short, seed)
        assert done.reason == "stop"
        if is_open or text.startswith("<think>"):
            thought += 1
            text = text.removeprefix("<think>").partition("k")[2]
        jsonschema.Draft202012Validator(PERSON).validate(json.loads(text))
    assert thought == 8 or not is_open
