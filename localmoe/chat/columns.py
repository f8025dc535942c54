"""Text for a window of any width: parts on as few lines as hold them, two columns. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

LEAST_RIGHT = 24  # characters that the right column must have, or it goes below the left one
GAP = 2  # blanks between the columns, and before what stands below
BETWEEN = " · "

T = TypeVar("T")


def flow(
    parts: Iterable[T], size: Callable[[T], int], width: int, gap: int = len(BETWEEN)
) -> list[list[T]]:
    """The parts in order, each on the line before it while that stays within ``width`` cells."""
    lines: list[list[T]] = []
    room = 0
    for part in parts:
        cells = size(part)
        if lines and gap + cells <= room:
            lines[-1].append(part)
            room -= gap + cells
        else:
            lines.append([part])
            room = width - cells
    return lines


def flowed(phrases: Iterable[str], width: int) -> str:
    """Phrases with ``·`` between those on one line; one that is too long is wrapped."""
    lines = (BETWEEN.join(line) for line in flow(phrases, len, width))
    return "\n".join(part for line in lines for part in _wrapped(line, width))


def two_columns(rows: Sequence[tuple[str, str]], width: int) -> str:
    """``left  right``, the right one wrapped beside the left one, or below it in narrow windows."""
    longest = max((len(left) for left, _ in rows), default=0)
    room = width - longest - GAP
    lines: list[str] = []
    for left, right in rows:
        if room >= LEAST_RIGHT:
            first, *rest = _wrapped(right, room)
            lines.append(f"{left:<{longest + GAP}}{first}".rstrip())
            lines += (" " * (longest + GAP) + line for line in rest)
        else:
            lines += _wrapped(left, width)
            lines += (" " * GAP + line for line in _wrapped(right, width - GAP) if line)
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(1, width), break_on_hyphens=False) or [""]
