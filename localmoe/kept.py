"""Checks for values read from localmoe's own files: one notion of "damaged" for all of them.

A crash, a full disk, an editor or a flipped bit can leave anything in a file. A damaged file, or
line, is ignored and never an error. So values are checked, not converted: ``int()`` makes a number
of "12", of 12.7 and of True, and an ``OverflowError`` of 1e999.
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

DAMAGED = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    struct.error,
)
"""What reading a document of unexpected content can raise."""


def parse(data: str | bytes) -> Any:
    """A JSON document. Raises one of DAMAGED, for infinite numbers and NaN too."""
    return json.loads(data, parse_float=_finite, parse_constant=_finite)


def whole(value: object, least: int = 0, most: int = 2**63 - 1) -> int:
    """``value`` if it is a whole number in that range. Raises one of DAMAGED."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{_shown(value)} is no whole number")
    if not least <= value <= most:
        raise ValueError(f"{_shown(value)} is out of range")
    return value


def number(value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """``value`` if it is a finite number in that range. Raises one of DAMAGED."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{_shown(value)} is no number")
    found = float(value)
    if not math.isfinite(found) or not least <= found <= most:
        raise ValueError(f"{_shown(value)} is out of range")
    return found


def text(value: object, limit: int = 1 << 30) -> str:
    """``value`` if it is a string, its first ``limit`` characters. Raises one of DAMAGED."""
    if not isinstance(value, str):
        raise TypeError(f"{_shown(value)} is no text")
    return value[:limit]


def _finite(written: str) -> float:
    found = float(written)
    if not math.isfinite(found):
        raise ValueError(f"{written[:40]} is no number")
    return found


def _shown(value: object) -> str:
    return repr(value)[:40]
