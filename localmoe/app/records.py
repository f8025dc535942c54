"""Frozen records as JSON between two processes of this program. Pure."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import types
import typing
from typing import Any


def encoded(record: Any) -> Any:
    """What ``json.dumps`` takes, of a record with records, tuples, enums and plain values in it."""
    return json.loads(json.dumps(dataclasses.asdict(record), default=lambda kind: kind.value))


def decoded(kind: Any, value: Any) -> Any:
    """The value of that type from what ``encoded`` made. Raises one of ``kept.DAMAGED``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = _types(kind)
        fields = {name: decoded(hints[name], item) for name, item in value.items()}
        return kind(**fields)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        (one,) = (part for part in inner if part is not type(None))
        return decoded(one, value)
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(decoded(part, item) for part, item in zip(kinds, value, strict=True))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(value)
    wanted = (int, float) if kind is float else kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{kind} expected")
    return value


_types = functools.cache(typing.get_type_hints)
"""The types of a record's fields; found out once, since that takes longer than all the rest."""
