"""JSON Schema → GBNF: every answer that the grammar lets through validates against the schema.

The grammar may allow less than the schema does (properties in the order of the schema, none that it
does not name), never more. A keyword that no grammar can enforce, such as ``uniqueItems``, is
therefore refused with a ``UsageError`` that names it, and not ignored. Sources: JSON Schema 2020-12
(https://json-schema.org/draft/2020-12), RFC 8259, and llama.cpp's ``grammars/README.md`` for GBNF.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any
from urllib.parse import unquote

from localmoe.engine.grammar import numbers, strings
from localmoe.engine.grammar.errors import refusal
from localmoe.engine.grammar.keywords import ABOUT, ANNOTATIONS, KNOWN, TYPES, is_of
from localmoe.engine.grammar.merge import MergeError, disjoint, merge
from localmoe.engine.grammar.notation import JSON, NAMES, Bounds, Notation, with_basic_rules
from localmoe.errors import UsageError

MAX_REPEAT = 1000  # llama.cpp refuses 2000; a lower upper bound only narrows what is allowed
_RESERVED = re.compile(r"root|answer|thought.*|plain|(?:value|object|array)-\d")


def schema_rules(
    schema: object,
    name: str,
    rules: dict[str, str],
    bounds: Bounds | None,
    notation: Notation = JSON,
) -> str:
    """Add the rules of a schema to ``rules``; return the name of its own. Raises UsageError."""
    try:
        converter = _Converter(schema, rules, bounds, notation)
        return converter.rule(name)
    except RecursionError:
        raise UsageError("the schema is nested too deep", hint="a flatter one") from None


def schema_to_gbnf(schema: object) -> str:
    """The grammar of a parsed JSON schema; its rule ``root`` is one JSON value.

    Raises UsageError, with the place in the schema, for what is no schema or cannot be enforced.
    """
    try:
        return _Converter(schema).grammar()
    except RecursionError:
        raise UsageError("the schema is nested too deep", hint="a flatter one") from None


class _Converter:
    """Walks a schema; each schema becomes the right side of a rule."""

    def __init__(
        self,
        schema: object,
        rules: dict[str, str] | None = None,
        bounds: Bounds | None = None,
        notation: Notation = JSON,
    ) -> None:
        self._document = schema
        self._rules = {} if rules is None else rules
        self._bounds = bounds
        self._notation = notation
        self._of_ref: dict[str, str] = {}  # JSON pointer → its rule, for recursive schemas

    def grammar(self) -> str:
        root = self._visit(self._document, "root", "#")
        rules = with_basic_rules({"root": root} | self._rules)
        return "\n".join(f"{name} ::= {rule}" for name, rule in rules.items())

    def rule(self, name: str) -> str:
        """The name of the rule for the whole document."""
        return self._rule(self._document, name, "#")

    def _rule(self, schema: object, name: str, at: str) -> str:
        """The name of a rule for ``schema``; a basic rule is used as it is."""
        body = self._visit(schema, name, at)
        if body in NAMES:
            return body
        name = self._free_name(name)
        self._rules[name] = body
        return name

    def _free_name(self, wanted: str) -> str:
        name = re.sub(r"[^a-zA-Z0-9]+", "-", wanted).strip("-")[:60] or "rule"
        if name in NAMES or _RESERVED.fullmatch(name):
            name += "-x"
        number, free = 2, name
        while free in self._rules:
            free, number = f"{name}-{number}", number + 1
        return free

    def _visit(self, schema: object, name: str, at: str) -> str:
        """The right side of the rule for ``schema``, which stands at ``at`` in the document."""
        if schema is True or schema == {}:
            return "value"
        if schema is False:
            raise refusal(at, "false allows no value at all")
        if not isinstance(schema, Mapping):
            raise refusal(at, "a schema is an object, true or false")
        for keyword in schema:
            if keyword not in KNOWN and not keyword.startswith("x-"):
                raise refusal(f"{at}/{keyword}", "a grammar cannot enforce this keyword")
        core = {k: v for k, v in schema.items() if k in KNOWN - ANNOTATIONS}
        if not core:  # nothing but a description
            return "value"
        if "$ref" in core:
            return self._reference(core, name, at)
        for combiner in ("allOf", "anyOf", "oneOf"):
            if combiner in core:
                return self._combined(core, combiner, name, at)
        if "const" in core or "enum" in core:
            return self._listed(core, at)
        return self._typed(core, name, at)

    def _reference(self, core: dict[str, Any], name: str, at: str) -> str:
        pointer = core.pop("$ref")
        target = self._resolve(pointer, f"{at}/$ref")
        self._follow(target, at)
        if core:  # beside a $ref everything holds as well
            return self._visit(self._merged(target, core, at), name, at)
        if pointer not in self._of_ref:
            self._of_ref[pointer] = rule = self._free_name(pointer.rpartition("/")[2] or "schema")
            self._rules[rule] = ""  # taken
            self._rules[rule] = self._visit(target, rule, pointer)
        return self._of_ref[pointer]

    def _resolve(self, pointer: object, at: str) -> object:
        """What a JSON pointer of this document names (RFC 6901); nothing is fetched."""
        if not isinstance(pointer, str) or not (pointer == "#" or pointer.startswith("#/")):
            raise refusal(at, "only references into the same file (#/…) are followed")
        found: Any = self._document
        for part in pointer[2:].split("/") if pointer != "#" else ():
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                found = found[int(key)] if isinstance(found, list) else found[key]
            except (KeyError, IndexError, ValueError, TypeError):
                raise refusal(at, f"{pointer} is not in the schema") from None
        return found

    def _combined(self, core: dict[str, Any], combiner: str, name: str, at: str) -> str:
        branches = core.pop(combiner)
        if not isinstance(branches, list) or not branches:
            raise refusal(f"{at}/{combiner}", "a list of schemas belongs here")
        resolved = [
            self._follow(branch, f"{at}/{combiner}/{i}") for i, branch in enumerate(branches)
        ]
        if combiner == "allOf":
            for i, branch in enumerate(resolved):
                core = self._merged(core, branch, f"{at}/allOf/{i}")
            return self._visit(core, name, at)
        if combiner == "oneOf" and not all(disjoint(a, b) for a, b in combinations(resolved, 2)):
            raise refusal(
                f"{at}/oneOf",
                "an answer could match several of these; anyOf, or a property with a const of "
                "its own in each, can be enforced",
            )
        alternatives = []
        for i, (branch, full) in enumerate(zip(branches, resolved, strict=True)):
            place = f"{at}/{combiner}/{i}"
            whole = self._merged(core, full, place) if core else branch
            alternatives.append(self._rule(whole, f"{name}-{i + 1}", place))
        return " | ".join(dict.fromkeys(alternatives))

    def _follow(self, schema: object, at: str) -> object:
        """The schema with its ``$ref`` looked up, and merged with what stands beside that."""
        for _ in range(32):
            if not (isinstance(schema, Mapping) and "$ref" in schema):
                return schema
            rest = {k: v for k, v in schema.items() if k != "$ref" and k not in ANNOTATIONS}
            schema = self._resolve(schema["$ref"], f"{at}/$ref")
            if rest:
                schema = self._merged(schema, rest, at)
        raise refusal(at, "these references never end")

    def _merged(self, left: object, right: object, at: str) -> dict[str, Any]:
        try:
            return merge(self._follow(left, at), self._follow(right, at), ANNOTATIONS)
        except MergeError as error:
            raise refusal(at, str(error)) from None

    def _listed(self, core: Mapping[str, Any], at: str) -> str:
        values = core.get("enum", [core.get("const")])
        if not isinstance(values, list) or not values:
            raise refusal(f"{at}/enum", "a list of values belongs here")
        if "const" in core:
            values = [value for value in values if json.dumps(value) == json.dumps(core["const"])]
        types = _types(core.get("type", TYPES), at)
        for keyword in core.keys() - {"enum", "const", "type"}:
            raise refusal(f"{at}/{keyword}", "beside const or enum this cannot be enforced")
        fitting = [v for v in values if any(is_of(v, wanted) for wanted in types)]
        if not fitting:
            raise refusal(at, "none of the listed values has the type")
        return " | ".join(dict.fromkeys(map(self._notation.value, fitting)))

    def _typed(self, core: Mapping[str, Any], name: str, at: str) -> str:
        if "type" in core:
            types = _types(core["type"], at)
        else:  # keywords of one type leave the other types free; to allow that one is enough
            types = next(([t] for t in TYPES if core.keys() & ABOUT[t]), [])
        bodies = [self._of_type(core, t, name, at) for t in types]
        if len(bodies) == 1:
            return bodies[0]
        rules = []
        for body, kind in zip(bodies, types, strict=True):
            if body not in NAMES:
                rule = self._free_name(f"{name}-{kind}")
                self._rules[rule] = body
                body = rule
            rules.append(body)
        return " | ".join(rules)

    def _of_type(self, core: Mapping[str, Any], kind: str, name: str, at: str) -> str:
        relevant = {k: v for k, v in core.items() if k in ABOUT[kind]}
        if not relevant:
            return kind
        match kind:
            case "object":
                return self._object(relevant, name, at)
            case "array":
                return self._array(relevant, name, at)
            case "string":
                most = self._bounds.characters if self._bounds else None
                return strings.string_rule(relevant, at, self._notation, most)
            case _:
                return numbers.number_rule(relevant, at, whole=kind == "integer")

    def _object(self, core: Mapping[str, Any], name: str, at: str) -> str:
        _only(core, at, "properties", "required", "additionalProperties",
              "unevaluatedProperties", "minProperties", "maxProperties")  # fmt: skip
        properties = core.get("properties", {})
        if not isinstance(properties, Mapping):
            raise refusal(f"{at}/properties", "an object belongs here")
        properties = dict(properties)
        required = core.get("required", [])
        if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
            raise refusal(f"{at}/required", "a list of names belongs here")
        more = core.get("additionalProperties", core.get("unevaluatedProperties", True))
        for key in required:
            if key not in properties and more is False:
                raise refusal(
                    f"{at}/required", f'"{key}" is required, but not among the properties'
                )
            properties.setdefault(key, more)
        low, high = _count(core, "minProperties", at) or 0, _count(core, "maxProperties", at)
        if not properties:
            if "minProperties" in core or "maxProperties" in core:
                raise refusal(at, "minProperties and maxProperties need named properties")
            return "object" if more is True else self._map(more, name, at)
        if low > len(required) or (high is not None and high < len(properties)):
            raise refusal(at, "minProperties and maxProperties cannot be enforced here")
        members = []
        for key, schema in properties.items():
            rule = self._rule(schema, f"{name}-{key}", f"{at}/properties/{key}")
            member = self._free_name(f"{name}-{key}-member")
            self._rules[member] = self._notation.member(key, rule)
            members.append((member, key in required))
        return self._notation.object(self._members(members, name))

    def _members(self, members: Sequence[tuple[str, bool]], name: str) -> str:
        """Members in order, the optional ones left out at will, with commas between.

        ``tail`` is what may follow once a member stands; alternatives choose the first one.
        """
        tail = ""
        first: list[str] = []
        for member, is_required in reversed(members):
            if is_required:
                first = []
            first.append(f"{member} {tail}".strip())
            more = f"{self._notation.comma} {member} {tail}".strip()
            rule = self._free_name(f"{name}-then-{member}")
            self._rules[rule] = (
                more if is_required else f"({more}) | {tail}" if tail else f"({more})?"
            )
            tail = rule
        self._rules.pop(tail)  # nothing stands before the first member
        body = "(" + " | ".join(reversed(first)) + ")"
        return body if any(is_required for _, is_required in members) else f"{body}?"

    def _map(self, values: object, name: str, at: str) -> str:
        """Any keys, with values of one schema."""
        if values is False:
            return self._notation.object("")
        rule = self._rule(values, f"{name}-value", f"{at}/additionalProperties")
        member = self._free_name(f"{name}-member")
        self._rules[member] = self._notation.any_member(rule)
        often = f"{{0,{self._bounds.items - 1}}}" if self._bounds else "*"
        return self._notation.object(f"({member} ({self._notation.comma} {member}){often})?")

    def _array(self, core: Mapping[str, Any], name: str, at: str) -> str:
        _only(core, at, "items", "prefixItems", "additionalItems", "unevaluatedItems",
              "minItems", "maxItems", "uniqueItems")  # fmt: skip
        items = core.get("items", core.get("unevaluatedItems", True))
        fixed = core.get("prefixItems", [])
        if isinstance(items, list):  # before 2020-12
            items, fixed = core.get("additionalItems", True), items
        if not isinstance(fixed, list):
            raise refusal(f"{at}/prefixItems", "a list of schemas belongs here")
        low, high = _count(core, "minItems", at) or 0, _count(core, "maxItems", at)
        if core.get("uniqueItems") and (high is None or high > 1):
            raise refusal(f"{at}/uniqueItems", "a grammar cannot tell whether items are different")
        rules = [
            self._rule(schema, f"{name}-{i + 1}", f"{at}/prefixItems/{i}")
            for i, schema in enumerate(fixed[:high])
        ]
        if items is False:
            high = min(len(rules), len(rules) if high is None else high)
        elif fixed and "items" not in core and low <= len(rules):
            high = len(rules)  # a tuple: what follows is not described, so nothing follows
        if high is not None and low > high:
            raise refusal(at, "minItems is more than there can be")
        if items is not False and (high is None or high > len(rules)):
            item = self._rule(items, f"{name}-item", f"{at}/items")
            if low > MAX_REPEAT:
                raise refusal(f"{at}/minItems", f"{low} items are too many to demand")
            rules += [item] * (low - len(rules))
            if high is None and self._bounds:
                high = max(low, len(rules), self._bounds.items)
            return self._list_of(rules, item, high)
        return self._list_of(rules, "", len(rules))

    def _list_of(self, rules: Sequence[str], item: str, high: int | None) -> str:
        """A list of ``rules``, and of ``item`` after them, up to ``high`` in all."""
        comma = f" {self._notation.comma} "
        first, item = comma.join(map(self._notation.item, rules)), self._notation.item(item)
        if high is not None and high <= len(rules):
            return self._notation.list(first)
        left = MAX_REPEAT if high is None or high > MAX_REPEAT else high - len(rules)
        often = "*" if high is None else f"{{0,{left if rules else left - 1}}}"
        more = f"({comma.strip()} {item}){often}"
        return self._notation.list(f"{first} {more}" if rules else f"({item} {more})?")


def _types(given: object, at: str) -> list[str]:
    types = [given] if isinstance(given, str) else given
    if not isinstance(types, list | tuple) or not types or any(t not in TYPES for t in types):
        raise refusal(f"{at}/type", f"the types are {', '.join(TYPES)}")
    return list(types)


def _count(core: Mapping[str, Any], keyword: str, at: str) -> int | None:
    value = core.get(keyword)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise refusal(f"{at}/{keyword}", "a whole number of at least 0 belongs here")
    return value


def _only(core: Mapping[str, Any], at: str, *enforced: str) -> None:
    for keyword in core.keys() - set(enforced):
        raise refusal(f"{at}/{keyword}", "a grammar cannot enforce this keyword")
