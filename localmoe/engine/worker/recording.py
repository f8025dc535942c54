"""Routing in and out of the engine: what it chose is written as a trace, a trace is imposed.

``recording.cpp`` writes the steps, from within the computation: Python tells it of each batch and
does nothing else per token.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from localmoe.engine.worker import binding
from localmoe.engine.worker.expert_cache import ExpertCache
from localmoe.errors import EngineMemoryError, TraceFileError
from localmoe.facts.model import Model
from localmoe.routing.recorder import unwritable
from localmoe.routing.trace import PREFILL, TraceHeader, TraceWriter, read_trace
from localmoe.wording import option


class _Layer(ctypes.Structure):
    _fields_ = (("index", ctypes.c_int32), ("experts", ctypes.c_int32), ("used", ctypes.c_int32))


class Recording:
    """Writes one trace: a step for each decode of the engine, in the file when it is over."""

    def __init__(
        self,
        cache: ExpertCache,
        path: Path,
        model: Model,
        experts_used: int = 0,
        *,
        logits: bool = False,
    ) -> None:
        header = TraceHeader.of_model(model, logits=logits)
        if experts_used:
            layers = tuple(
                dataclasses.replace(layer, used=min(experts_used, layer.experts))
                for layer in header.layers
            )
            header = dataclasses.replace(header, layers=layers)
        self._writer = TraceWriter(path, header)
        self._cache = cache
        assert binding.native is not None  # or there would be no cache
        self._native = binding.native
        self._native.localmoe_recording_open.restype = ctypes.c_void_p
        entries = (_Layer * len(header.layers))(
            *(_Layer(layer.index, layer.experts, layer.used) for layer in header.layers)
        )
        self._handle = ctypes.c_void_p(
            self._native.localmoe_recording_open(
                self._writer.fileno(),
                entries,
                len(entries),
                ctypes.c_bool(logits),
                ctypes.cast(binding.base_library.ggml_op_name, ctypes.c_void_p),
                ctypes.cast(binding.base_library.ggml_fp32_to_fp16_row, ctypes.c_void_p),
            )
        )
        if not self._handle:
            self._writer.close()
            raise EngineMemoryError("there is no memory to record the routing")
        self._begin, self._end = (
            self._native.localmoe_recording_begin,
            self._native.localmoe_recording_end,
        )
        self._begin.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool)
        self._end.argtypes = (ctypes.c_void_p,)
        self._begin.restype = ctypes.c_bool
        cache.record(self._handle)

    def begin(self, tokens: Sequence[int], *, prefill: bool) -> None:
        """Before each decode: the token ids of its batch. What the last one left is dropped.

        Raises EngineMemoryError.
        """
        count = len(tokens)
        if not self._begin(self._handle, (ctypes.c_int32 * count)(*tokens), count, prefill):
            raise EngineMemoryError("there is no memory to record the routing")

    def end(self) -> None:
        """After one that went well: its step is written. Raises StorageError."""
        code = self._end(self._handle)
        if code:
            raise unwritable(self._writer.path, OSError(code, os.strerror(code)))

    def close(self) -> None:
        self._cache.record(None)
        self._native.localmoe_recording_close(self._handle)
        self._writer.close()


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
                hint=f"{option('experts', info.used)} runs the model with as many",
            )
        ids[:, layer.index, : info.used] = chosen
    prompt = trace.phase == PREFILL
    ids = np.concatenate((ids[prompt], ids[~prompt]))
    return ids.tobytes(), int(prompt.sum()), len(ids), len(model.layers), k
