"""What a known routing costs at least: the best possible cache, and the first token. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from localmoe.facts.model import Model
from localmoe.routing.policies import Accesses, belady, replay
from localmoe.routing.records import ABSENT, Trace


def imposed_part(trace: Trace, prompt: int, steps: int) -> Trace:
    """The tokens of a trace that a run of ``prompt`` and ``steps`` imposes."""
    mask = np.zeros(len(trace), bool)
    mask[np.flatnonzero(~trace.decode)[:prompt]] = True
    mask[np.flatnonzero(trace.decode)[:steps]] = True
    return trace.select(mask)


def expert_sizes(model: Model) -> dict[int, int]:
    """Bytes of one expert, by layer."""
    return {
        layer.index: layer.expert_bytes // layer.expert_count
        for layer in model.layers
        if layer.expert_count and layer.loaded
    }


def least_read(trace: Trace, sizes: Mapping[int, int], budget: int) -> int:
    """Bytes that the decoded tokens miss in the best cache of ``budget`` bytes for all layers.

    Belady's optimum, which knows the future; experts count as equally large, as they nearly are.
    The prompt's experts come first and are not counted.
    """
    layers = [index for index in trace.layers if index in sizes]
    accesses = _in_a_row(trace, layers)
    mean = sum(sizes[index] for index in layers) / max(1, len(layers))
    slots = np.array([budget // max(mean, 1)], np.int64)
    hits = replay(accesses, slots, belady)[:, 0].reshape(len(trace), len(layers), -1)
    looked = accesses.ids[:, 0].reshape(hits.shape) != ABSENT
    missed = (looked & ~hits)[trace.decode].sum(axis=(0, 2))
    return int(missed @ np.array([sizes[index] for index in layers], np.int64))


def _in_a_row(trace: Trace, layers: list[int]) -> Accesses:
    """All layers as one: a step per token and layer, and each expert has a number of its own."""
    width = max(trace.ids(index).shape[1] for index in layers)
    most = max(trace.info(index).experts for index in layers)
    ids: NDArray[np.int64] = np.full((len(trace), len(layers), width), ABSENT, np.int64)
    for at, index in enumerate(layers):
        own = trace.ids(index).astype(np.int64)
        ids[:, at, : own.shape[1]] = np.where(own == ABSENT, ABSENT, own + at * most)
    flat = ids.reshape(len(trace) * len(layers), 1, width)
    return Accesses(flat, np.array([most * len(layers)]))


def first_token_bytes(trace: Trace, model: Model) -> int:
    """What the first token needs from the disk: the dense weights and the prompt's experts."""
    sizes = expert_sizes(model)
    touched = 0
    for index in trace.layers:
        if index in sizes:
            ids = trace.ids(index)[~trace.decode]
            touched += len(np.unique(ids[ids != ABSENT])) * sizes[index]
    return model.dense_bytes + touched
