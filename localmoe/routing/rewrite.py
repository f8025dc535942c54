"""Traces changed after they were recorded: prompts named, texts of tokens added, format changed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.routing.recorder import TraceWriter
from localmoe.routing.records import PREFILL, Trace


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that was run while recording: its domain, and its tokens that were computed, which
    leaves out those that an earlier prompt had left in the KV cache.
    """

    label: str
    prefill: int


def name_prompts(trace: Trace, prompts: Sequence[Prompt]) -> Trace:
    """The trace with one segment per prompt.

    A prompt begins with its prefill; what is decoded belongs to the prompt before. Prefill beyond
    the last prompt stays with the last.
    """
    if not prompts:
        return trace
    read = np.cumsum(trace.phase == PREFILL)  # tokens of prompts up to and with each token
    ends = np.cumsum([prompt.prefill for prompt in prompts])
    segment = np.searchsorted(ends, np.maximum(read, 1), side="left")
    return replace(
        trace,
        segment=np.minimum(segment, len(prompts) - 1).astype(np.int32),
        labels=tuple(prompt.label for prompt in prompts),
    )


def write_trace(path: str | os.PathLike[str], trace: Trace) -> None:
    """``trace`` in localmoe's format. Raises StorageError."""
    with TraceWriter(path, trace.header) as writer:
        if trace.token_texts:
            writer.token_texts(trace.token_texts)
        edges = np.nonzero(np.diff(trace.batch) | np.diff(trace.segment))[0] + 1
        shown = -1
        for start, end in zip([0, *edges], [*edges, len(trace)], strict=True):
            if start == end:
                continue
            segment = int(trace.segment[start])
            if segment != shown and (trace.labels[segment] or segment):
                writer.prompt(trace.labels[segment])
            shown = segment
            step = slice(int(start), int(end))
            skip = [_leading(ids[step]) for ids in trace.layer_ids]
            writer.append(
                int(trace.phase[start]),
                _cut(trace.layer_ids, step, skip),
                _cut(trace.layer_weights, step, skip) if trace.layer_weights else None,
                _cut(trace.layer_logits, step, skip) if trace.layer_logits else None,
                tokens=trace.tokens[step],
            )


def _leading(ids: NDArray[np.int16]) -> int:
    """The number of rows at the beginning that the layer did not compute."""
    computed = (ids >= 0).any(axis=1)
    return int(np.argmax(computed)) if computed.any() else len(ids)


def _cut(arrays: Sequence[NDArray[Any]], step: slice, skip: Sequence[int]) -> list[NDArray[Any]]:
    return [array[step][rows:] for array, rows in zip(arrays, skip, strict=True)]
