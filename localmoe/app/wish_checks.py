"""The wishes of a program, checked before anything is planned with them. Pure.

The command line checks them as they are typed; both accept the same.
"""

from __future__ import annotations

import dataclasses
import math
import re

from localmoe.errors import UsageError
from localmoe.planning.plan import ExpertsOn, Wishes
from localmoe.text import MAX_CONTEXT, shortened

TIERS = ("gpu", "ram", "disk")
KV_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
CACHES = ("auto", "off", "page", "private")
REPACKING = ("off", "on")
MOST = 2**31 - 1  # of a number that llama.cpp takes
MOST_BYTES = 1 << 50
# Field → the least and the most that it may be, and what that is; None is always allowed.
NUMBERS = {
    "context": (1, MAX_CONTEXT, "a number of tokens"),
    "threads": (1, 4096, "a number of threads"),
    "gpu_layers": (-1, MOST, "a number of layers, -1 for all"),
    "n_cpu_moe": (0, MOST, "a number of layers"),
    "ram": (1, MOST_BYTES, "a number of bytes"),
    "vram": (0, MOST_BYTES, "a number of bytes"),
    "batch": (1, MOST, "a number of tokens"),
    "cache_ram": (1, MOST_BYTES, "a number of bytes"),
    "experts": (1, 4096, "a number of experts"),
}
CHOICES = {"type_k": KV_TYPES, "type_v": KV_TYPES, "cache": CACHES, "repack": REPACKING}


def checked(wishes: object, context: object = None) -> Wishes:
    """Wishes as they are, with ``context`` in them if it is given. Raises UsageError."""
    if not isinstance(wishes, Wishes):
        raise _wrong("wishes", "of type Wishes", wishes)
    if context is not None:
        _check_number("context", context)
        wishes = dataclasses.replace(wishes, context=context)  # type: ignore[arg-type]
    for name in NUMBERS:
        _check_number(name, getattr(wishes, name))
    for name, choices in CHOICES.items():
        if getattr(wishes, name) not in choices:
            raise _wrong(name, f"one of {', '.join(choices)}", getattr(wishes, name))
    share = wishes.prefer_cached
    if share is not None and not (_is_number(share) and 0 <= share <= 1):
        raise _wrong("prefer_cached", "a number from 0 to 1", share)
    if not isinstance(wishes.experts_on, tuple) or not all(map(_is_place, wishes.experts_on)):
        raise _wrong("experts_on", 'a tuple such as (ExpertsOn("ram"),)', wishes.experts_on)
    if not isinstance(wishes.overrides, tuple) or not all(map(_is_override, wishes.overrides)):
        wanted = 'a tuple of (pattern, device) such as (("exps", "CPU"),)'
        raise _wrong("overrides", wanted, wishes.overrides)
    return wishes


def _check_number(name: str, value: object) -> None:
    low, high, wanted = NUMBERS[name]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and low <= value <= high):  # type: ignore[operator]
        raise _wrong(name, f"{wanted}, from {low:,} to {high:,}", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_place(value: object) -> bool:
    return isinstance(value, ExpertsOn) and value.tier in TIERS


def _is_override(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    pattern, device = value
    if not isinstance(pattern, str) or not isinstance(device, str):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def _wrong(name: str, wanted: str, value: object) -> UsageError:
    return UsageError(f"{name} is {wanted}, not {shortened(repr(value), 60)}")
