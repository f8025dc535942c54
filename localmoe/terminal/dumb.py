"""Terminals that can only write one line after the other."""

from __future__ import annotations

import os


def is_dumb() -> bool:
    """Whether a terminal cannot move its cursor, as far as ``TERM`` tells."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")
