"""One JSON schema for two that both must hold; and whether two exclude each other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from itertools import product
from typing import Any


class MergeError(ValueError):
    """Two schemas that this module cannot put together."""


def merge(left: object, right: object, annotations: Collection[str]) -> dict[str, Any]:
    """A schema that allows what both allow (``allOf``). Raises MergeError."""
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        whole = {id(s): s for s in (left, right) if isinstance(s, Mapping)}
        if False in (left, right) or not whole:
            raise MergeError("these schemas cannot be put together")
        return dict(next(iter(whole.values())))
    for a, b in ((left, right), (right, left)):
        closed = a.get("additionalProperties") is False
        if closed and not b.get("properties", {}).keys() <= a.get("properties", {}).keys():
            raise MergeError("additionalProperties of one excludes properties of the other")
    result: dict[str, Any] = {k: v for k, v in left.items() if k not in annotations}
    for keyword, value in right.items():
        if keyword in annotations:
            continue
        mine: Any = result.get(keyword, value)
        if mine == value:
            result[keyword] = value
        elif keyword == "properties":
            both = {k: merge(mine[k], value[k], annotations) for k in mine.keys() & value.keys()}
            result[keyword] = {**mine, **value, **both}
        elif keyword in _MERGERS:
            result[keyword] = _MERGERS[keyword](mine, value)
        else:
            raise MergeError(f"two different {keyword} cannot be put together")
    return result


def _common(left: Any, right: Any) -> list[Any]:
    one = left if isinstance(left, list) else [left]
    other = right if isinstance(right, list) else [right]
    found = [item for item in one if item in other]
    if {("number", "integer"), ("integer", "number")} & set(
        product(map(str, one), map(str, other))
    ):
        found.append("integer")
    if not found:
        raise MergeError("nothing satisfies both schemas")
    return found


_MERGERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "type": _common,
    "enum": _common,
    "required": lambda a, b: [*a, *(key for key in b if key not in a)],
    "additionalProperties": lambda a, b: False if False in (a, b) else a if b is True else b,
    "minimum": max,
    "exclusiveMinimum": max,
    "minLength": max,
    "minItems": max,
    "maximum": min,
    "exclusiveMaximum": min,
    "maxLength": min,
    "maxItems": min,
}


def disjoint(left: object, right: object) -> bool:
    """Whether no value can satisfy both; False where that cannot be seen.

    Seen are different types, different constants, and a property that both require and that is
    disjoint itself.
    """
    if not isinstance(left, Mapping) or not isinstance(right, Mapping):
        return False in (left, right)
    values = [_values(schema) for schema in (left, right)]
    if values[0] is not None and values[1] is not None:
        return not any(value in values[1] for value in values[0])
    types = [_types(schema) for schema in (left, right)]
    if types[0] and types[1] and not types[0] & types[1]:
        return True
    if types != [{"object"}, {"object"}]:
        return False
    both = set(left.get("required", ())) & set(right.get("required", ()))
    return any(
        disjoint(left.get("properties", {}).get(key), right.get("properties", {}).get(key))
        for key in both
    )


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    values = schema.get("enum")
    return values if isinstance(values, list) else None


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The types a schema allows; empty when it does not say. An integer is a number."""
    given = schema.get("type", [])
    types = {given} if isinstance(given, str) else set(given)
    if not types and isinstance(schema.get("properties"), Mapping) and "required" in schema:
        return set()
    return types | ({"integer"} if "number" in types else set())
