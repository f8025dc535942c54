"""What a program hands over, checked before it reaches the engine. Pure.

The command line checks texts as they are typed; a program hands over values of any type. Both mean
the same by a value and use the same words.
"""

from __future__ import annotations

import difflib
import json
import numbers
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from localmoe.chat.settings import SETTINGS, Setting
from localmoe.engine.events import Sampling
from localmoe.errors import UsageError
from localmoe.text import shortened

_BY_FIELD = {setting.path: setting for setting in SETTINGS.values()}
MOST_LOGPROBS = 20  # of one place
SHOWN = 60  # characters of a wrong value


def sampling_values(given: Mapping[str, object]) -> dict[str, Any]:
    """Values of ``Sampling`` by name. Raises UsageError; TypeError for a name that is unknown."""
    for name in given:
        if name not in Sampling.__dataclass_fields__:
            near = difflib.get_close_matches(name, Sampling.__dataclass_fields__, n=1, cutoff=0.5)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise TypeError(f"there is no option {name}{meant}")
    return {
        name: logit_bias(value) if name == "logit_bias" else checked(name, value)
        for name, value in given.items()
    }


def top_logprobs(value: object) -> int | None:
    """How many of the likeliest tokens to tell, or None. Raises UsageError."""
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_LOGPROBS:
        raise UsageError(f"top_logprobs is from 0 to {MOST_LOGPROBS}, not {_shown(value)}")
    return value


def logit_bias(value: object) -> tuple[tuple[int, float], ...]:
    """(token, bias) pairs of an object whose keys are tokens' numbers. Raises UsageError."""
    wanted = "numbers from -100 to 100 by the numbers of tokens"
    if not isinstance(value, Mapping):
        raise UsageError(f"logit_bias is {wanted}, not {_shown(value)}", hint='{"1234": -100}')
    found = []
    for key, bias in value.items():
        number = int(key) if isinstance(key, str) and re.fullmatch("[0-9]{1,10}", key) else key
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31:
            raise UsageError(f"logit_bias is {wanted}; no token has the number {_shown(key)}")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not -100 <= bias <= 100:
            raise UsageError(f"logit_bias of {number} is from -100 to 100, not {_shown(bias)}")
        found.append((number, float(bias)))
    return tuple(found)


def known_tokens(biases: Sequence[tuple[int, float]], vocabulary: int) -> None:
    """Raises UsageError for a bias of a token that a vocabulary of so many does not have."""
    for number, _ in biases:
        if number >= vocabulary:
            raise UsageError(
                f"logit_bias: no token has the number {number}; "
                f"the numbers of this model's are 0 to {vocabulary - 1}"
            )


def checked(name: str, value: object) -> Any:
    """The value of an option that is a number. Raises UsageError."""
    setting = _BY_FIELD[name]
    if value is None and setting.choices:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):  # NumPy's are numbers too
        raise _wrong(name, setting, value)
    try:
        return setting.parse(str(value))
    except (ValueError, OverflowError):
        raise _wrong(name, setting, value) from None


def _wrong(name: str, setting: Setting, value: object) -> UsageError:
    wanted = setting.wanted
    for word in setting.choices:  # of a chat's: a program leaves it open
        wanted = wanted.replace(f", or {word}", ", or None")
    return UsageError(f"{name} is {wanted}, not {_shown(value)}")


def text(name: str, value: object) -> str:
    """Raises UsageError for what is no text."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is a text, not {_shown(value)}")
    return value


def texts(name: str, value: object) -> tuple[str, ...]:
    """Raises UsageError for what is no list of texts; a text alone is none either."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"{name} is a list of texts, not {_shown(value)}", hint=f'{name}=["END"]')
    return tuple(text(f"a text of {name}", item) for item in value)


def tokens(value: object) -> list[int]:
    """Raises UsageError for what is no list of whole numbers."""
    if isinstance(value, Sequence) and all(type(item) is int for item in value):
        return list(value)
    raise UsageError(f"tokens is a list of their numbers, not {_shown(value)}")


def function(name: str, value: object) -> None:
    """Raises UsageError for what cannot be called."""
    if not callable(value):
        raise UsageError(f"{name} is a function, not {_shown(value)}")


def model_name(value: object) -> str:
    """A name, or a path as the system or pathlib has it. Raises UsageError."""
    name = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(name, str) or not name.strip():
        raise UsageError(f"name is the name of a model, or a path, not {_shown(value)}")
    return name


def schema(value: object) -> object:
    """A schema as JSON has it: names are texts, lists are lists. Raises UsageError."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"schema is no JSON: {error}") from None


def _shown(value: object) -> str:
    return shortened(repr(value), SHOWN)
