"""Which dialect is spoken at which path, as far as errors go."""

from __future__ import annotations

from localmoe.server.problems import for_anthropic, for_openai
from localmoe.server.replies import Problems

ANTHROPIC = "/v1/messages"


def problems_at(path: str) -> Problems:
    """How an error is worded for clients of ``path``."""
    return for_anthropic if path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/") else for_openai
