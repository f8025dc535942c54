"""The keywords of JSON Schema, by what they speak about, and the type of a JSON value."""

from __future__ import annotations

from collections.abc import Mapping

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")

ANNOTATIONS = frozenset({
    "$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "title", "description",
    "default", "examples", "deprecated", "readOnly", "writeOnly", "contentEncoding",
    "contentMediaType", "contentSchema",
})  # fmt: skip
OBJECT = frozenset({
    "properties", "required", "additionalProperties", "unevaluatedProperties", "minProperties",
    "maxProperties", "patternProperties", "propertyNames", "dependentRequired",
    "dependentSchemas",
})  # fmt: skip
ARRAY = frozenset({
    "items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems",
    "uniqueItems", "contains", "minContains", "maxContains",
})  # fmt: skip
STRING = frozenset({"minLength", "maxLength", "pattern", "format"})
NUMBER = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
GENERAL = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"})

ABOUT: Mapping[str, frozenset[str]] = {
    "object": OBJECT,
    "array": ARRAY,
    "string": STRING,
    "number": NUMBER,
    "integer": NUMBER,
    "boolean": frozenset(),
    "null": frozenset(),
}
KNOWN = GENERAL | ANNOTATIONS | OBJECT | ARRAY | STRING | NUMBER

_PYTHON: Mapping[str, type] = {"object": dict, "array": list, "string": str, "null": type(None)}


def is_of(value: object, kind: str) -> bool:
    """Whether a parsed JSON value has a type of JSON Schema; ``1.0`` is an integer too."""
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and float(value).is_integer())
    return kind in _PYTHON and isinstance(value, _PYTHON[kind])
