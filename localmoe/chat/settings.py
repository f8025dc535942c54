"""The settings of a chat, which can be changed by name while it runs: ``/set temp 0``."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from localmoe.chat.context import Overflow
from localmoe.chat.thinking import ThinkLevel
from localmoe.chat.tools import ToolUse
from localmoe.engine.events import Sampling
from localmoe.errors import UsageError
from localmoe.text import did_you_mean


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings with which a conversation asks its engine."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    think: ThinkLevel = ThinkLevel.AUTO
    plain: bool = False  # leave the chat template out
    stop: tuple[str, ...] = ()  # texts that end an answer
    grammar: str | None = None  # GBNF that every answer follows
    top_logprobs: int | None = None  # how many of the likeliest tokens to tell; None: no figures
    tools: ToolUse | None = None  # that the model may call
    overflow: Overflow = Overflow.ASK  # when the next turn does not fit


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting that a user can change; ``path`` is its field in Settings or in Sampling."""

    path: str
    wanted: str  # what a value looks like, for people
    parse: Callable[[str], object]  # raises ValueError
    choices: tuple[str, ...] = ()


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError
        return value

    return parse


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def _or_none(word: str, parse: Callable[[str], int]) -> Callable[[str], int | None]:
    return lambda text: None if text == word else parse(text)


def _on_off(text: str) -> bool:
    return {"on": True, "off": False}[text]


def _overflow(text: str) -> Overflow:
    return Overflow("summarise" if text == "summarize" else text)


MOST = 2**31 - 1  # llama.cpp counts in 32 bits
LEVELS = tuple(level.value for level in ThinkLevel)
OVERFLOWS = tuple(choice.value for choice in Overflow)
SETTINGS: Mapping[str, Setting] = {
    "temp": Setting("temperature", "a number from 0 (greedy) to 100", _number(0, 100)),
    "top_k": Setting("top_k", f"a whole number from 0 (all) to {MOST:,}", _whole(0, MOST)),
    "top_p": Setting("top_p", "a number from 0 to 1", _number(0, 1)),
    "min_p": Setting("min_p", "a number from 0 to 1", _number(0, 1)),
    "repeat_penalty": Setting(
        "repeat_penalty", "a number from 0.01 to 100, 1 for none", _number(0.01, 100)
    ),
    "repeat_last_n": Setting(
        "repeat_last_n", "a whole number from 0 (none) to 1,048,576", _whole(0, 2**20)
    ),
    "presence_penalty": Setting("presence_penalty", "a number from -2 to 2", _number(-2, 2)),
    "frequency_penalty": Setting("frequency_penalty", "a number from -2 to 2", _number(-2, 2)),
    "seed": Setting(
        "seed",
        "a whole number from 0 to 4,294,967,295, or random",
        _or_none("random", _whole(0, 2**32 - 1)),
        ("random",),
    ),
    "max_tokens": Setting(
        "max_tokens",
        f"a whole number from 1 to {MOST:,}, or none",
        _or_none("none", _whole(1, MOST)),
        ("none",),
    ),
    "think": Setting("think", ", ".join(LEVELS), ThinkLevel, LEVELS),
    "plain": Setting("plain", "on or off", _on_off, ("on", "off")),
    "overflow": Setting("overflow", ", ".join(OVERFLOWS), _overflow, OVERFLOWS),
}


def change(settings: Settings, name: str, value: str) -> Settings:
    """The settings with one value changed. Raises ``UsageError`` for a wrong name or value."""
    setting = find(name)
    try:
        parsed = setting.parse(value.strip())
    except (ValueError, KeyError, OverflowError):
        raise UsageError(f'{name} is {setting.wanted}, not "{value}"') from None
    if setting.path in Sampling.__dataclass_fields__:
        sampling = dataclasses.replace(settings.sampling, **{setting.path: parsed})  # type: ignore[arg-type]
        return dataclasses.replace(settings, sampling=sampling)
    return dataclasses.replace(settings, **{setting.path: parsed})  # type: ignore[arg-type]


def show(settings: Settings, name: str) -> str:
    """The value of one setting, as it could be typed."""
    setting = find(name)
    inside = setting.path in Sampling.__dataclass_fields__
    value = getattr(settings.sampling if inside else settings, setting.path)
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return setting.choices[0]
    return f"{value:g}" if isinstance(value, float) else str(value)


def find(name: str) -> Setting:
    """The setting of that name. Raises ``UsageError`` with the nearest name."""
    if name in SETTINGS:
        return SETTINGS[name]
    near = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
    raise UsageError(
        f'no setting "{name}".{did_you_mean(near)}', hint="settings: " + ", ".join(SETTINGS)
    )
