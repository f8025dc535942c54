"""How long what a schema leaves open may become, so that a call ends within a limit of tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping

from localmoe.chat.tools import ToolUse
from localmoe.engine.grammar import Bounds

MOST_BOUNDED = 4096  # with a limit of so many tokens at most, open texts and lists are bounded
LISTED = 4  # items of a list that a schema leaves open, within bounds
LEAST_TEXT, MOST_TEXT = 4, 1000  # characters of a text that a schema leaves open, within bounds
MOST_BOUNDED_CALLS = 2


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
