"""Where sampling values come from: the model file's own, else plain ones, else the user's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from localmoe.engine.events import Sampling
from localmoe.facts.model import Value

_LIMITS = {  # GGUF key → (field, lowest, highest); llama.cpp's names, src/llama-arch.cpp
    "general.sampling.temp": ("temperature", 0.0, 100.0),
    "general.sampling.top_k": ("top_k", 0, 2**31 - 1),
    "general.sampling.top_p": ("top_p", 0.0, 1.0),
    "general.sampling.min_p": ("min_p", 0.0, 1.0),
    "general.sampling.penalty_repeat": ("repeat_penalty", 0.01, 100.0),
    "general.sampling.penalty_last_n": ("repeat_last_n", 0, 2**20),
}


def default_sampling(metadata: Mapping[str, Value]) -> Sampling:
    """The defaults, replaced by ``general.sampling.*`` of the file where its values are valid."""
    found: dict[str, float | int] = {}
    for key, (field, low, high) in _LIMITS.items():
        value = metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if math.isfinite(value) and low <= value <= high:
            found[field] = int(value) if field in ("top_k", "repeat_last_n") else float(value)
    return replace(Sampling(), **found)  # type: ignore[arg-type]
