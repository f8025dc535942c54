"""Routing in and out of the engine: what the cache saw becomes a trace, a trace is imposed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.errors import TraceFileError
from localmoe.facts.model import Model
from localmoe.routing.trace import DECODE, PREFILL, TraceHeader, TraceWriter, read_trace


class Recording:
    """Writes one trace: a step for each decode of the engine."""

    def __init__(self, path: Path, model: Model, experts_used: int = 0) -> None:
        header = TraceHeader.of_model(model)
        if experts_used:
            layers = tuple(
                dataclasses.replace(layer, used=min(experts_used, layer.experts))
                for layer in header.layers
            )
            header = dataclasses.replace(header, layers=layers)
        self._writer = TraceWriter(path, header)
        self._layers = {layer.index: i for i, layer in enumerate(header.layers)}
        self._used = [layer.used for layer in header.layers]

    def add(self, numbers: memoryview, tokens: Sequence[int], *, prefill: bool) -> None:
        """One decode's records (``experts.cpp``: layer, position, n, k, ids, weights)."""
        data = np.frombuffer(numbers, np.int32)
        ids: list[list[NDArray[np.int32]]] = [[] for _ in self._used]
        weights: list[list[NDArray[np.float32]]] = [[] for _ in self._used]
        at = 0
        while at + 4 <= len(data):
            layer, _, n, k = (int(number) for number in data[at : at + 4])
            at += 4
            slot = self._layers.get(layer)
            if slot is not None and k == self._used[slot]:
                ids[slot].append(data[at : at + n * k].reshape(n, k))
                raw = data[at + n * k : at + 2 * n * k]
                weights[slot].append(raw.view(np.float32).reshape(n, k))
            at += 2 * n * k
        if any(ids):
            self._writer.append(
                PREFILL if prefill else DECODE,
                [_joined(parts, k, np.int32) for parts, k in zip(ids, self._used, strict=True)],
                [
                    _joined(parts, k, np.float32)
                    for parts, k in zip(weights, self._used, strict=True)
                ],
                tokens=tokens,
            )

    def close(self) -> None:
        self._writer.close()


def _joined(parts: Sequence[NDArray[Any]], k: int, kind: type[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty((0, k), kind)


def imposed(path: Path, model: Model, experts_used: int = 0) -> tuple[bytes, int, int, int, int]:
    """A trace as int32 ids [steps, layers, k] for ``ExpertCache.impose``; −1 where it says nothing.

    Prefill comes first, whatever the order in the trace.

    Raises TraceFileError for a trace of a model of another shape.
    """
    trace = read_trace(path)
    moe = [layer for layer in model.layers if layer.expert_count and layer.loaded]
    used = {experts_used or layer.expert_used for layer in moe}
    known = set(trace.layers)
    missing = [layer.index for layer in moe if layer.index not in known]
    if missing:
        raise TraceFileError(f"{path.name} has no layer {missing[0]}, which {model.name} has")
    k = max(used)
    ids = np.full((len(trace), len(model.layers), k), -1, np.int32)
    for layer in moe:
        info, chosen = trace.info(layer.index), trace.ids(layer.index)
        if info.experts > layer.expert_count or info.used != (experts_used or layer.expert_used):
            raise TraceFileError(
                f"{path.name} routes {info.used} of {info.experts} experts, {model.name} "
                f"{experts_used or layer.expert_used} of {layer.expert_count}",
                hint=f"--experts {info.used} runs the model with as many",
            )
        ids[:, layer.index, : info.used] = chosen
    prompt = trace.phase == PREFILL
    ids = np.concatenate((ids[prompt], ids[~prompt]))
    return ids.tobytes(), int(prompt.sum()), len(ids), len(model.layers), k
