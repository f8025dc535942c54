"""What is typed after an option → its value. Each parser raises ``argparse.ArgumentTypeError``."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, NoReturn

from localmoe.text import MAX_CONTEXT, token_count

GIB = 1 << 30
MAX_INT = 2**31 - 1  # llama.cpp's int32


def each(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A parser whose value is a list of one, for an option that may be repeated."""
    return lambda text: [parse(text)]


def _bad(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f'"{text}" is not {wanted}')


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser for whole numbers from ``low`` to ``high``."""
    bounds = f"a whole number, at least {low}" + (f" and at most {high}" if high < MAX_INT else "")

    def parse_whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise _bad(text, bounds) from None
        if not low <= value <= high:
            raise _bad(text, bounds)
        return value

    return parse_whole


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser for finite numbers from ``low`` to ``high``."""

    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # false for nan too
            raise _bad(text, f"a number from {low:g} to {high:g}")
        return value

    return parse_number


def tokens(text: str) -> int:
    """``8192``, ``8k``."""
    try:
        return token_count(text)
    except ValueError:
        raise _bad(
            text,
            "a number of tokens such as 8192 or 8k, "
            f"at most {MAX_CONTEXT:,} (leave it out for the default)",
        ) from None


def token_limit(text: str) -> int | None:
    """llama.cpp's ``-n -1`` means no limit."""
    return None if text == "-1" else whole(1, MAX_INT)(text)


def layers(text: str) -> int | None:
    """llama.cpp's words: ``auto`` leaves it to the planner, ``all`` and -1 mean every layer."""
    if text == "auto":
        return None
    return -1 if text in ("all", "-1") else whole(0, MAX_INT)(text)


def seed(text: str) -> int | None:
    """llama.cpp's ``--seed -1`` means a fresh one each time."""
    return None if text == "-1" else whole(0, 2**32 - 1)(text)


def gib(text: str) -> int:
    """A number of GiB, in bytes."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1 << 20:
        raise _bad(text, "a number of GiB such as 16 or 7.5")
    return int(value * GIB)


def ram(text: str) -> int:
    """A number of GiB above 0, in bytes."""
    return gib(text) or _nothing(text)


def _nothing(text: str) -> NoReturn:
    raise _bad(text, "a number of GiB above 0, such as 16")


def limits(text: str) -> tuple[float | int, ...]:
    """Shares of the model's size as floats ("0.4x"), bytes as ints ("6.5": GiB)."""
    found: list[float | int] = []
    for word in map(str.strip, text.split(",")):
        number = word.removesuffix("x")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if number != word and 0.01 <= value <= 100:
            found.append(value)
        elif number == word and 1 / GIB <= value <= 1 << 20:
            found.append(int(value * GIB))
        else:
            raise _bad(word, "a share such as 0.4x, or a number of GiB such as 6.5")
    return tuple(found)


def names(text: str) -> tuple[str, ...]:
    """Words between commas, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",")))


_UNITS = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """``90``, ``90s``, ``10m`` or ``1.5h``, in seconds."""
    number, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    try:
        value = float(number) * _UNITS[unit]
    except ValueError:
        value = math.nan
    if not 1 <= value <= 1e9:
        raise _bad(text, "a time such as 90s, 10m or 1h")
    return value


def alias(text: str) -> tuple[str, str]:
    """``NAME=MODEL``."""
    name, equals, model = text.partition("=")
    if not equals or not name.strip() or not model.strip():
        raise _bad(text, "NAME=MODEL, such as gpt-4o=qwen3-30b-a3b")
    return name.strip(), model.strip()


def overflow(text: str) -> str:
    """A server's word for ``stop`` is ``error``."""
    return "stop" if text == "error" else text
