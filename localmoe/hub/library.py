"""huggingface_hub, imported when it is needed, whatever the environment says.

It reads its variables once, when it is imported, and fails on a number of seconds like ``2.5``.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from types import ModuleType

from localmoe.errors import UsageError
from localmoe.text import clean_line

TIMEOUT = "HF_HUB_DOWNLOAD_TIMEOUT"
_CONSTANTS = "huggingface_hub.constants"
_SECONDS = (TIMEOUT, "HF_HUB_ETAG_TIMEOUT")


def constants() -> ModuleType:
    """``huggingface_hub.constants``, which every other module of it imports first.

    Raises UsageError for a variable that is no number.
    """
    known = sys.modules.get(_CONSTANTS)
    if known is not None:
        return known
    stated = {name: os.environ[name] for name in _SECONDS if name in os.environ}
    whole = {name: str(math.ceil(seconds_in(name) or 10.0)) for name in stated}
    os.environ.update(whole)
    try:
        return importlib.import_module(_CONSTANTS)
    finally:
        os.environ.update(stated)


def seconds_in(name: str) -> float | None:
    """The seconds that a variable states; None where it is not set, or says 0.

    Raises UsageError.
    """
    text = os.environ.get(name, "").strip()
    try:
        seconds = float(text or 0)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UsageError(
            f"{name} is {clean_line(text)!r}, not a number of seconds", hint=f"unset {name}"
        )
    return seconds or None
