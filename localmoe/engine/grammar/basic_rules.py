"""The rules of GBNF that every grammar of JSON shares, with or without bounds."""

from __future__ import annotations

import re
from dataclasses import dataclass

from localmoe.engine.grammar import strings

MOST_DEEP = 3  # objects and lists in each other, where a schema leaves them open within bounds
PLAIN = "string | number | boolean | null"
BASIC_RULES = {
    "ws": r'| " " | "\n" [ \t]{0,20}',
    "char": strings.CHAR,
    "string": r'"\"" char* "\""',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "member": r'string ws ":" ws value',
    "object": '"{" ws (member (ws "," ws member)*)? ws "}"',
    "array": '"[" ws (value (ws "," ws value)*)? ws "]"',
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long what a schema leaves open may become."""

    characters: int  # of a text
    items: int  # of a list, and of an object without named properties

    @property
    def basic_rules(self) -> dict[str, str]:
        """The basic rules within these bounds: values nest three deep, blank space is one space."""
        some = f"{{0,{self.items - 1}}}"
        rules = {
            "ws": '" "?',
            "string": rf'"\"" char{{0,{self.characters}}} "\""',
        }
        for depth in range(MOST_DEEP):
            last = depth == MOST_DEEP - 1
            inner = "plain" if last else f"value-{depth + 1}"
            suffix = f"-{depth}" if depth else ""
            pair = f'string ws ":" ws {inner}'
            rules[f"object{suffix}"] = f'"{{" ws ({pair} (ws "," ws {pair}){some})? ws "}}"'
            rules[f"array{suffix}"] = f'"[" ws ({inner} (ws "," ws {inner}){some})? ws "]"'
            if depth:
                rules[f"value-{depth}"] = f"object-{depth} | array-{depth} | plain"
        return rules | {"value": "object | array | plain", "plain": PLAIN}


def with_basic_rules(rules: dict[str, str], bounds: Bounds | None = None) -> dict[str, str]:
    """``rules``, and those of BASIC_RULES that they name, or that these name in turn."""
    basic = BASIC_RULES | (bounds.basic_rules if bounds else {})
    wanted: dict[str, str] = {}
    pending = list(rules.values())
    while pending:
        words = re.findall(r"[\w-]+", re.sub(r'"(?:\\.|[^"\\])*"', "", pending.pop()))
        for word in words:
            if word in basic and word not in wanted:
                wanted[word] = basic[word]
                pending.append(basic[word])
    return rules | wanted
