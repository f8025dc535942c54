"""Where the compiled ``native.cpp`` is, if it was built."""

from __future__ import annotations

import importlib.machinery
import os
from pathlib import Path


def native_path() -> Path | None:
    """The library's file; None if there is none, or if LOCALMOE_NO_NATIVE says to do without."""
    if os.environ.get("LOCALMOE_NO_NATIVE"):
        return None
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            return path
    return None
