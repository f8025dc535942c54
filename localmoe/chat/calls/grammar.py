"""Calls of tools as a grammar: names exist, arguments validate, marks are the template's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from localmoe.chat.answer_format import AnswerFormat
from localmoe.chat.calls.format import ANY, KEY, Body, CallFormat
from localmoe.chat.calls.values import types_of
from localmoe.chat.marks import SplitSpecials
from localmoe.chat.tools import ToolUse
from localmoe.engine.grammar import (
    Bounds,
    Symbols,
    literal,
    schema_rules,
    sequence,
    text_until,
    with_basic_rules,
    with_reasoning,
)

WORD = "[0-9a-z]{1,9}"  # for ANY, such as the number of a call
MOST_BOUNDED = 4096  # with a limit of so many tokens at most, open texts and lists are bounded
LISTED = 4  # items of a list that a schema leaves open, within bounds
LEAST_TEXT, MOST_TEXT = 4, 1000  # characters of a text that a schema leaves open, within bounds
MOST_BOUNDED_CALLS = 2
UNCONSTRAINED = (Body.GEMMA,)


def call_grammar(
    use: ToolUse,
    calls: CallFormat,
    answers: AnswerFormat,
    split_specials: SplitSpecials,
    max_tokens: int | None,
) -> str | None:
    """The grammar of an answer that may or must call tools; None where calls are not constrained.

    Where it must, a call is all that comes after thinking; else text may come before.
    """
    tools = use.callable
    if not tools or calls.body in UNCONSTRAINED:
        return None
    made = _Grammar(calls, split_specials, bounds_for(use, max_tokens))
    most = None if use.parallel and calls.several else 1
    if most is None and made.bounds:
        most = MOST_BOUNDED_CALLS
    if use.required:
        root = made.calls(tools, most)
    elif calls.body is not Body.CHANNEL and not made.prefix.strip():
        return None  # without a mark nothing tells where a call begins
    else:
        root = made.text_or_calls(tools, most, answers)
    grammar = made.text(root)
    marks = answers.thinking[0] if answers.thinking else None
    thinks = marks is not None and (answers.told or answers.is_open)
    start, end = (
        made.symbols(marks.start if marks and thinks else ""),
        made.symbols(marks.end if marks and thinks else ""),
    )
    return with_reasoning(grammar, start, end, is_open=answers.is_open)


def bounds_for(use: ToolUse, max_tokens: int | None) -> Bounds | None:
    """How long open texts and lists may be to end within ``max_tokens``; None for a high limit.

    A token is taken for one character, so that it holds for every vocabulary.
    """
    if max_tokens is None or max_tokens > MOST_BOUNDED:
        return None
    room, places = max_tokens, 1
    for name, schema in use.callable.items():
        fixed = len(json.dumps(schema, ensure_ascii=False)) // 3 + len(name) + 40
        room = min(room, max_tokens - fixed)
        places = max(places, open_places(schema))
    share = max(room, 0) // (places * (MOST_BOUNDED_CALLS if use.parallel else 1))
    return Bounds(max(LEAST_TEXT, min(MOST_TEXT, share)), LISTED)


def open_places(schema: object, depth: int = 0) -> int:
    """How many texts a value of that schema can have whose length it leaves open."""
    if not isinstance(schema, Mapping) or depth > 8:
        return LISTED * LISTED
    times = 1
    total = 0
    if isinstance(schema.get("properties"), Mapping):
        total += sum(open_places(s, depth + 1) for s in schema["properties"].values())
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(schema.get(key), list):
            total += sum(open_places(s, depth + 1) for s in schema[key])
    if "items" in schema:
        times = LISTED if "maxItems" not in schema else min(int(schema["maxItems"]), 1000)
        total += times * open_places(schema["items"], depth + 1)
    if schema.get("type") == "string" and not schema.keys() & {"enum", "const", "maxLength"}:
        total += 1
    if schema.get("type") in ("array", "object") and total == 0:
        total += LISTED * LISTED
    return max(total, 0 if schema.get("type") in ("integer", "number", "boolean", "null") else 1)


class _Grammar:
    """The rules of one grammar while it is made."""

    def __init__(
        self, format_: CallFormat, split_specials: SplitSpecials, bounds: Bounds | None
    ) -> None:
        self._format = format_
        self._split = split_specials
        self.bounds = bounds
        self._rules: dict[str, str] = {}
        self.prefix = format_.start + ("[" if format_.in_list else "") + format_.call_start

    def text(self, root: str) -> str:
        rules = with_basic_rules(self._rules, self.bounds)
        lines = (f"{name} ::= {rule}" for name, rule in rules.items())
        return "\n".join([f"root ::= {root}", *lines])

    def symbols(self, text: str) -> Symbols:
        """A mark: texts, and special tokens by their numbers."""
        (parts,) = self._split([text])
        return [part.text if part.token is None else part.token for part in parts]

    def _mark(self, text: str) -> str:
        """A mark in GBNF; a word for each ANY in it."""
        pieces = [sequence(self.symbols(piece)) if piece else "" for piece in text.split(ANY)]
        return f" {WORD} ".join(pieces).strip()

    def calls(self, tools: Mapping[str, Mapping[str, object]], most: int | None) -> str:
        """One call or more, from their first mark on."""
        if self._format.body is Body.CHANNEL:
            return self._channel(tools)
        return f"{self._mark(self.prefix)} {self._after_prefix(tools, most)}"

    def _after_prefix(self, tools: Mapping[str, Mapping[str, object]], most: int | None) -> str:
        format_ = self._format
        call_end = self._mark(format_.call_end)
        self._rules["a-call"] = f"{self._call(tools)} {call_end}".strip()
        more = ""
        if most is None or most > 1:
            often = "*" if most is None else f"{{0,{most - 1}}}"
            between = format_.between or (", " if format_.in_list else "")
            more = f"({self._mark(between + format_.call_start)} a-call){often}"
            if not (between + format_.call_start).strip():
                more = f'("\\n" a-call){often}'
        end = self._mark(("]" if format_.in_list else "") + format_.end)
        if (
            end
            and not format_.in_list
            and all(isinstance(s, int) for s in self.symbols(format_.end))
        ):
            end = f"({end})?"  # it may be the token that ends the answer
        elif format_.in_list and format_.end:
            end = f"{literal(']')} ({self._mark(format_.end)})?"
        return f"a-call {more} {end}".strip()

    def text_or_calls(
        self,
        tools: Mapping[str, Mapping[str, object]],
        most: int | None,
        answers: AnswerFormat,
    ) -> str:
        """Text, and calls from the moment on that their first mark is there."""
        if self._format.body is Body.CHANNEL:
            return self._channel_or_text(tools, answers)
        words = re.match(r"\s*(\S+)(.*)", self.prefix, re.DOTALL)
        assert words is not None
        first = self.symbols(words[1].split(ANY)[0])
        rest = words[1][len(words[1].split(ANY)[0]) :] + words[2]
        self._rules["the-calls"] = f"{self._mark(rest)} {self._after_prefix(tools, most)}".strip()
        if isinstance(first[0], int):
            then = f"{sequence(first[1:])} the-calls".strip()
            return f"!<[{first[0]}]>* (<[{first[0]}]> {then})?"
        then = f"{sequence(first[1:])} the-calls".strip()
        self._rules["first-call"] = then
        rules, start = text_until(first[0], "free", then="first-call", optional=True)
        self._rules |= rules
        return start

    def _call(self, tools: Mapping[str, Mapping[str, object]]) -> str:
        """The alternatives from the name on, one for each tool."""
        format_ = self._format
        before, ends = "", {}
        for number, (name, schema) in enumerate(tools.items()):
            label = f"tool-{number}"
            if format_.body in (Body.OBJECT, Body.KEYED, Body.NAMED):
                arguments = schema_rules(schema, label, self._rules, self.bounds)
                arguments = self._alias(f"the-{label}", arguments)
            if format_.body is Body.OBJECT:
                before = f'{{"{format_.name_key}": "'
                ends[name] = literal(f'", "{format_.arguments_key}": ') + f' {arguments} "}}"'
            elif format_.body is Body.KEYED:
                before = '{"'
                ends[name] = f'{literal(chr(34) + ": ")} {arguments} "}}"'
            elif format_.body is Body.NAMED:
                ends[name] = f"{self._mark(format_.name_end)} {arguments}"
            elif format_.body is Body.TAGGED:
                ends[name] = f"{self._mark(format_.name_end)} {self._tags(schema, label)}".strip()
            else:
                ends[name] = f'"(" {self._keywords(schema, label)} ")"'
        body = self._by_name(ends, "name")
        return f"{literal(before)} {body}" if before else body

    def _alias(self, name: str, rule: str) -> str:
        self._rules[name] = rule
        return name

    def _by_name(self, ends: Mapping[str, str], label: str) -> str:
        """The names with what follows each, as a tree: few of them are alive at a time."""
        groups: dict[str, dict[str, str]] = {}
        for name, end in ends.items():
            groups.setdefault(name[:1], {})[name[1:]] = end
        choices = []
        for letter, group in groups.items():
            if len(group) == 1:
                ((rest, end),) = group.items()
                choices.append(f"{literal(letter + rest)} {end}" if letter else end)
            else:
                below = f"{label}-{len(self._rules)}"
                self._rules[below] = ""
                self._rules[below] = self._by_name(group, label)
                choices.append(f"{literal(letter)} {below}")
        return f"({' | '.join(choices)})"

    def _tags(self, schema: Mapping[str, object], label: str) -> str:
        """The arguments between marks, in the order of the schema."""
        return " ".join(
            f"{rule}" if required else f"({rule})?"
            for rule, required in self._arguments(schema, label, self._tag)
        )

    def _keywords(self, schema: Mapping[str, object], label: str) -> str:
        """``key=VALUE, …``; those that must be there come first."""
        rules = list(self._arguments(schema, label, self._keyword))
        needed = [rule for rule, required in rules if required]
        others = [rule for rule, required in rules if not required]
        if needed:
            return ' ", " '.join(needed) + "".join(f' (", " {rule})?' for rule in others)
        chains = [
            rule + "".join(f' (", " {later})?' for later in others[number + 1 :])
            for number, rule in enumerate(others)
        ]
        return f"({' | '.join(chains)})?" if chains else ""

    def _arguments(
        self, schema: Mapping[str, object], label: str, write: Any
    ) -> Iterator[tuple[str, bool]]:
        """A rule for each argument, and whether it must be there."""
        properties = schema.get("properties")
        required = schema.get("required")
        needed = required if isinstance(required, list) else []
        listed = dict(properties) if isinstance(properties, Mapping) else {}
        for key in needed:
            listed.setdefault(key, True)
        for number, (key, value) in enumerate(listed.items()):
            rule = f"{label}-argument-{number}"
            self._rules[rule] = ""
            self._rules[rule] = write(key, value, schema, rule)
            yield rule, key in needed

    def _keyword(self, key: str, value: object, schema: Mapping[str, object], rule: str) -> str:
        return f"{literal(key + '=')} {self._json(value, schema, rule)}"

    def _tag(self, key: str, value: object, schema: Mapping[str, object], rule: str) -> str:
        format_ = self._format
        types = types_of(value, schema)
        textual = types == {"string"}
        word = format_.text_word if textual else _word(format_, types)
        key_end = format_.key_end.replace(ANY, word)
        end = format_.value_end.replace(KEY, key)
        start = f"{self._mark(format_.key_start)} {literal(key)} {self._mark(key_end)}"
        if textual:
            return f"{start} {self._bare_text(value, end, rule)}"
        return f"{start} {self._json(value, schema, rule)} {self._mark(end)}"

    def _json(self, value: object, schema: Mapping[str, object], rule: str) -> str:
        """A value as JSON; references lead into the whole schema of the tool."""
        if isinstance(value, Mapping):
            value = {**value, **{k: schema[k] for k in ("$defs", "definitions") if k in schema}}
        return schema_rules(value, f"{rule}-value", self._rules, self.bounds)

    def _bare_text(self, schema: object, end: str, rule: str) -> str:
        """Text without quotes, up to its end mark and with it."""
        mark = self._mark(end)
        known = schema if isinstance(schema, Mapping) else {}
        values = known.get("enum", [known["const"]] if "const" in known else None)
        if isinstance(values, list):
            texts = " | ".join(literal(v) for v in values if isinstance(v, str))
            return f"({texts}) {mark}"
        if "pattern" in known or "format" in known:
            body = schema_rules(known, f"{rule}-text", self._rules, self.bounds)
            quoted = re.fullmatch(r'"\\"" (.*) "\\""', self._rules.get(body, ""), re.DOTALL)
            if quoted and "char" not in re.findall(r"[\w-]+", quoted[1]):
                return f"({quoted[1]}) {mark}"
        low, high = known.get("minLength", 0), known.get("maxLength")
        if high is None and self.bounds:
            high = max(low, self.bounds.characters)
        symbols = self.symbols(end)
        if not low and high is None:
            if isinstance(symbols[0], int):
                return f"!<[{symbols[0]}]>* {mark}"
            rules, start = text_until(symbols[0], f"{rule}-text")
            self._rules |= rules
            return f"{start} {sequence(symbols[1:])}".strip()
        first = next((s for s in symbols if isinstance(s, str) and s.strip()), "<")
        letter = first.strip()[0]
        letter = f"\\{letter}" if letter in "[]\\" else letter
        often = f"{{{low},}}" if high is None else f"{{{low},{min(high, 1000)}}}"
        return f"[^{letter}\\x00]{often} {mark}"

    def _channel(self, tools: Mapping[str, Mapping[str, object]]) -> str:
        """gpt-oss: a message to the tool, which is the last one of the answer."""
        to = self._mark("<|channel|>commentary to=functions.")
        message = self._mark(" <|constrain|>json<|message|>")
        ends = {}
        for number, (name, schema) in enumerate(tools.items()):
            arguments = schema_rules(schema, f"tool-{number}", self._rules, self.bounds)
            ends[name] = f"{message} {arguments}"
        return f"{to} {self._by_name(ends, 'name')}"

    def _channel_or_text(
        self, tools: Mapping[str, Mapping[str, object]], answers: AnswerFormat
    ) -> str:
        end, start = self.symbols("<|end|>"), self._mark("<|end|><|start|>assistant")
        free = f"!<[{end[0]}]>*" if isinstance(end[0], int) else "[^\\x00]*"
        self._rules["aloud"] = f"{self._mark('<|channel|>commentary<|message|>')} {free} {start}"
        final = self._mark(answers.answer_start or "<|channel|>final<|message|>")
        self._rules["the-call"] = self._channel(tools)
        self._rules["the-answer"] = f"{final} {free}"
        return "aloud? (the-call | the-answer)"


def _word(format_: CallFormat, types: frozenset[str]) -> str:
    """The word for a value that is no text (DeepSeek V3.2: false; Kimi K3: its type)."""
    if format_.text_word != "string":
        return format_.other_word
    kind = next(iter(sorted(types)), "object")
    return {"integer": "number"}.get(kind, kind)
