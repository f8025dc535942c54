"""The version of the JSON documents that localmoe writes: docs/json.md has their fields."""

from __future__ import annotations

SCHEMA_VERSION = 1
"""Raised when a field changes its meaning, its unit or its type, or goes; new fields keep it."""
