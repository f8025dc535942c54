"""Values of arguments that are not written as JSON, as JSON text. Pure."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence

from localmoe.chat.calls.text import NoCall

PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
MOST_REFERENCES = 16  # followed from one schema


def types_of(schema: object, root: object) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says so; empty where it does not."""
    schema = _followed(schema, root)
    if not isinstance(schema, Mapping):
        return frozenset()
    given = schema.get("type")
    if isinstance(given, str):
        return frozenset([given])
    if isinstance(given, list):
        return frozenset(kind for kind in given if isinstance(kind, str))
    for key in ("anyOf", "oneOf"):
        branches = schema.get(key)
        if isinstance(branches, list):
            return frozenset().union(*(types_of(branch, root) for branch in branches))
    values = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if isinstance(values, list) and values:
        return frozenset(map(_type_of, values))
    return frozenset()


def property_schema(schema: object, key: str, root: object) -> object:
    """The schema of a member; None where an object's schema does not say."""
    schema = _followed(schema, root)
    if not isinstance(schema, Mapping):
        return None
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    return schema.get("additionalProperties")


def item_schema(schema: object, _: str, root: object) -> object:
    """The schema of a list's items; None where it does not say."""
    schema = _followed(schema, root)
    return schema.get("items") if isinstance(schema, Mapping) else None


def joined(members: Sequence[tuple[str, str]], *, as_list: bool) -> str:
    """The JSON of a list, or of an object, from that of its members. Raises NoCall."""
    if as_list:
        return f"[{', '.join(value for _, value in members)}]"
    if len({key for key, _ in members}) < len(members):
        raise NoCall
    pairs = (f"{json.dumps(key, ensure_ascii=False)}: {value}" for key, value in members)
    return f"{{{', '.join(pairs)}}}"


def is_text(schema: object, root: object) -> bool:
    """Whether a value of that schema is text as it stands."""
    return types_of(schema, root) == {"string"}


def from_text(text: str, schema: object, root: object) -> str:
    """The JSON of a value that is written bare: JSON where its schema allows that, else text."""
    types = types_of(schema, root)
    bare = text.strip()
    bare = PYTHON_WORDS.get(bare, bare)
    try:
        value = json.loads(bare, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = _from_literal(bare) if types and "string" not in types else None
        if value is None:
            return json.dumps(text, ensure_ascii=False)
        bare = json.dumps(value, ensure_ascii=False)
    kind = _type_of(value)
    allowed = not types or kind in types or (kind == "integer" and "number" in types)
    if "string" in types and not allowed:
        return json.dumps(text, ensure_ascii=False)
    return bare


def from_python(text: str) -> str:
    """The JSON of a Python literal, with the words of JSON too. Raises NoCall."""
    value = _from_literal(text.strip())
    if value is None and text.strip() not in ("None", "null"):
        raise NoCall
    return json.dumps(value, ensure_ascii=False)


def _followed(schema: object, root: object) -> object:
    """What a schema refers to within ``root``, or itself."""
    for _ in range(MOST_REFERENCES):
        pointer = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            break
        schema = root
        for part in filter(None, pointer[1:].split("/")):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
    return schema


def _from_literal(text: str) -> object:
    """None for what is none."""
    try:
        tree = ast.parse(text, mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in ("true", "false", "null"):
                node.id = {"true": "True", "false": "False", "null": "None"}[node.id]
        value: object = ast.literal_eval(_with_constants(tree))
        json.dumps(value, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
    return value


def _with_constants(tree: ast.Expression) -> ast.Expression:
    class Words(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            words = {"True": True, "False": False, "None": None}
            return ast.Constant(words[node.id]) if node.id in words else node

    changed: ast.Expression = Words().visit(tree)
    return changed


def _type_of(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    names = {float: "number", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "null")


def _refuse(word: str) -> object:
    raise ValueError(word)
