"""Values of arguments that are not written as JSON, as JSON text. Pure."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping

from localmoe.chat.call_text import NoCall

PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
MOST_REFERENCES = 16  # followed from one schema


def types_of(schema: object, root: object) -> frozenset[str]:
    """The JSON types that a schema allows, as far as it says so; empty where it does not."""
    for _ in range(MOST_REFERENCES):
        if not isinstance(schema, Mapping):
            return frozenset()
        pointer = schema.get("$ref")
        if not isinstance(pointer, str) or not pointer.startswith("#/"):
            break
        schema = root
        for part in pointer[2:].split("/"):
            schema = schema.get(part) if isinstance(schema, Mapping) else None
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
