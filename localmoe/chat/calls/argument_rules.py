"""The arguments of a call in GBNF, as each form of call has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from localmoe.chat.calls.format import ANY, KEY, Body, CallFormat
from localmoe.chat.calls.notations import (
    GemmaNotation,
    MarkSymbols,
    NestedNotation,
    free_text,
    letter_without,
    letters_without,
)
from localmoe.chat.calls.values import types_of
from localmoe.engine.grammar import (
    JSON,
    Bounds,
    Notation,
    literal,
    schema_rules,
    sequence,
    text_until,
)

MOST_REPEATED = 1000  # llama.cpp refuses 2000
Write = Callable[[str, object, Mapping[str, object], str], str]
"""The rule of an argument: its key and schema, the schema of all, the name of the rule."""


class ArgumentRules:
    """Adds rules for the arguments of a format's calls to ``rules``."""

    def __init__(
        self,
        format_: CallFormat,
        symbols: MarkSymbols,
        rules: dict[str, str],
        bounds: Bounds | None,
    ) -> None:
        self._format = format_
        self._symbols = symbols
        self._rules = rules
        self._bounds = bounds
        self.notation: Notation = JSON
        if format_.body is Body.GEMMA:
            self.notation = GemmaNotation(symbols)
        elif format_.item_key:
            self.notation = NestedNotation(format_, symbols)

    def whole(self, schema: Mapping[str, object], label: str) -> str:
        """The name of the rule of all arguments as one object."""
        self._rules[f"the-{label}"] = self._value_rule(schema, label)
        return f"the-{label}"

    def tags(self, schema: Mapping[str, object], label: str) -> str:
        """The arguments between marks, in the order of the schema."""
        return " ".join(
            f"{rule}" if required else f"({rule})?"
            for rule, required in self._each(schema, label, self._tag)
        )

    def keywords(self, schema: Mapping[str, object], label: str) -> str:
        """``key=VALUE, …``; those that must be there come first."""
        rules = list(self._each(schema, label, self._keyword))
        needed = [rule for rule, required in rules if required]
        others = [rule for rule, required in rules if not required]
        if needed:
            return ' ", " '.join(needed) + "".join(f' (", " {rule})?' for rule in others)
        chains = [
            rule + "".join(f' (", " {later})?' for later in others[number + 1 :])
            for number, rule in enumerate(others)
        ]
        return f"({' | '.join(chains)})?" if chains else ""

    def _each(
        self, schema: Mapping[str, object], label: str, write: Write
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
        return f"{literal(key + '=')} {self._value(value, schema, rule)}"

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
        return f"{start} {self._value(value, schema, rule)} {self._mark(end)}"

    def _value(self, value: object, schema: Mapping[str, object], rule: str) -> str:
        """A value of one argument; references lead into the whole schema of the tool."""
        if isinstance(value, Mapping):
            value = {**value, **{k: schema[k] for k in ("$defs", "definitions") if k in schema}}
        return self._value_rule(value, f"{rule}-value")

    def _value_rule(self, schema: object, name: str) -> str:
        return schema_rules(schema, name, self._rules, self._bounds, self.notation)

    def _mark(self, text: str) -> str:
        return sequence(self._symbols(text)) if text else ""

    def _bare_text(self, schema: object, end: str, rule: str) -> str:
        """Text without quotes, up to its end mark and with it."""
        mark = self._mark(end)
        known = schema if isinstance(schema, Mapping) else {}
        values = known.get("enum", [known["const"]] if "const" in known else None)
        if isinstance(values, list):
            texts = " | ".join(literal(v) for v in values if isinstance(v, str))
            return f"({texts}) {mark}"
        if "pattern" in known or "format" in known:
            body = schema_rules(known, f"{rule}-text", self._rules, self._bounds)
            quoted = re.fullmatch(r'"\\"" (.*) "\\""', self._rules.get(body, ""), re.DOTALL)
            if quoted and "char" not in re.findall(r"[\w-]+", quoted[1]):
                return f"({quoted[1]}) {mark}"
        low, high = known.get("minLength", 0), known.get("maxLength")
        symbols = self._symbols(end)
        spelled = end.strip()
        if high is not None:
            return f"{letter_without(spelled)}{{{low},{min(high, MOST_REPEATED)}}} {mark}"
        if self._bounds:
            most = max(low, self._bounds.characters)
            return f"({letters_without(spelled)}){{{low},{most}}} {mark}"
        if low:
            return f"{letter_without(spelled)}{{{low}}} {free_text(spelled, symbols)} {mark}"
        if isinstance(symbols[0], int):
            return f"!<[{symbols[0]}]>* {mark}"
        rules, start = text_until(symbols[0], f"{rule}-text")
        self._rules.update(rules)
        return f"{start} {sequence(symbols[1:])}".strip()


def _word(format_: CallFormat, types: frozenset[str]) -> str:
    """The word for a value that is no text (DeepSeek V3.2: false; Kimi K3: its type)."""
    if format_.text_word != "string":
        return format_.other_word
    kind = next(iter(sorted(types)), "object")
    return {"integer": "number"}.get(kind, kind)
