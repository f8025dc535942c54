"""How values are written: as JSON, or in a way of a model's own with the same parts. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from localmoe.engine.grammar.strings import CHAR, literal

MOST_DEEP = 3  # objects and lists in each other, where a schema leaves them open within bounds
PLAIN = "string | number | boolean | null"
SPACE = r'| " " | "\n" [ \t]{0,20}'
NAMES: Collection[str] = (
    "ws", "char", "piece", "string", "number", "integer", "boolean", "null", "value", "object",
    "array",
)  # fmt: skip
"""The basic rules, which every notation has."""
NUMBERS = {
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "boolean": '"true" | "false"',
    "null": '"null"',
}


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long what a schema leaves open may become."""

    characters: int  # of a text
    items: int  # of a list, and of an object without named properties


class Notation:
    """JSON. All that is returned is GBNF, in which the basic rules may be named."""

    comma = 'ws "," ws'
    char = CHAR
    piece = "char"  # the rule of a character, or of a few, where no schema counts them
    without = ""  # a letter that patterns do not write, where texts end at a mark with it

    def basic_rules(self, bounds: Bounds | None) -> dict[str, str]:
        """The rules of ``NAMES``, and those that they name.

        Within bounds, values nest three deep, and blank space is one space.
        """
        space = SPACE if bounds is None else '" "?'
        text = f"{self.piece}*" if bounds is None else f"{self.piece}{{0,{bounds.characters}}}"
        rules = {"ws": space, "char": self.char, "string": self.text(text), **NUMBERS}
        if bounds is None:
            rules |= {"value": f"object | array | {PLAIN}"}
            return rules | self._containers("value", "", "*")
        rules |= {"value": "object | array | plain", "plain": PLAIN}
        for depth in range(MOST_DEEP):
            inner = "plain" if depth == MOST_DEEP - 1 else f"value-{depth + 1}"
            suffix = f"-{depth}" if depth else ""
            rules |= self._containers(inner, suffix, f"{{0,{bounds.items - 1}}}")
            if depth:
                rules[f"value-{depth}"] = f"object-{depth} | array-{depth} | plain"
        return rules

    def _containers(self, inner: str, suffix: str, more: str) -> dict[str, str]:
        """The rules of an object and a list of any length, with values of the rule ``inner``."""
        member, item = self.any_member(inner), self.item(inner)
        return {
            f"object{suffix}": self.object(f"({member} ({self.comma} {member}){more})?"),
            f"array{suffix}": self.list(f"({item} ({self.comma} {item}){more})?"),
        }

    def text(self, characters: str) -> str:
        """A text of these characters."""
        return rf'"\"" {characters} "\""'

    def value(self, value: object) -> str:
        """A value that is known."""
        return literal(json.dumps(value, ensure_ascii=False))

    def member(self, key: str, rule: str) -> str:
        return f'{self.value(key)} ws ":" ws {rule}'

    def any_member(self, rule: str) -> str:
        return f'string ws ":" ws {rule}'

    def item(self, rule: str) -> str:
        return rule

    def object(self, members: str) -> str:
        return f'"{{" ws {members} ws "}}"' if members else '"{" ws "}"'

    def list(self, items: str) -> str:
        return f'"[" ws {items} ws "]"' if items else '"[" ws "]"'


JSON = Notation()


def with_basic_rules(
    rules: dict[str, str], bounds: Bounds | None = None, notation: Notation = JSON
) -> dict[str, str]:
    """``rules``, and those basic ones that they name, or that these name in turn."""
    basic = notation.basic_rules(bounds)
    wanted: dict[str, str] = {}
    pending = list(rules.values())
    while pending:
        words = re.findall(r"[\w-]+", re.sub(r'"(?:\\.|[^"\\])*"', "", pending.pop()))
        for word in words:
            if word in basic and word not in wanted:
                wanted[word] = basic[word]
                pending.append(basic[word])
    return rules | wanted
