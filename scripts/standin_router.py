"""Routers of stand-ins that prefer some experts, about as much as those of trained models do.

A router of random weights uses all experts alike, and no cache can help. Trained ones do not: of
Qwen3-30B-A3B an LRU that holds a quarter of the experts hits 79 % of the lookups. Here every
expert gets a popularity, from a distribution with heavy tails. It is written into the router's
weights along the one direction that the hidden states of all tokens share, their mean, which is
measured by running the model; the random rows lose their part along it. Token embeddings that lean
to one side (``leaning``) give the hidden states such a direction, whatever the architecture.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray

from scripts.watch_graph import Floats, Tensor, rows_of, watched
from tests.archs.blocks import Bytes, row_bytes
from tests.archs.recipe import TensorSpec

ROUTER = "ffn_gate_inp.weight"
POPULARITY = 0.78  # of an expert, times a t-distributed number, in deviations of its random logit
FREEDOM = 4  # of the t-distribution
LEAN = 0.3  # of an embedding's mean, in its deviations
SEQUENCES, TOKENS = 8, 128  # that the mean is taken over


def calibrate(path: Path, *, seed: int = 0, popularity: float = POPULARITY) -> None:
    """Rewrite the routers of a model file in place. The same file and seed give the same bytes."""
    rng = np.random.default_rng(seed)
    inputs = router_inputs(path, rng)
    reader = GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name in inputs and tensor.tensor_type == Kind.F32:
            rows: Floats = tensor.data
            rows[:] = preferring(rows, inputs[tensor.name], rng, popularity)
    reader.data.flush()


def preferring(
    rows: Floats, inputs: Floats, rng: np.random.Generator, popularity: float
) -> NDArray[np.floating]:
    """Router rows f[experts, width] with popularities. ``inputs`` f[tokens, width]: its input."""
    mean = inputs.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean))
    direction = mean / length
    free = rows - np.outer(rows @ direction, direction)
    spread = float((inputs @ free.T).std(axis=0).mean())
    liked = rng.standard_t(FREEDOM, len(rows)) * popularity * spread / length
    return free + np.outer(liked, direction)


def router_inputs(path: Path, rng: np.random.Generator) -> dict[str, Floats]:
    """f[tokens, width] that each router is multiplied with, by its name, for random texts."""
    found: dict[str, list[Floats]] = defaultdict(list)

    def is_router(node: Tensor) -> bool:
        return bool(node.src[0]) and node.src[0].contents.name.decode().endswith(ROUTER)

    def keep(node: Tensor) -> None:
        name = node.src[0].contents.name.decode()
        found[name].append(rows_of(node.src[1].contents, np.float32))

    with watched(path, is_router, keep, batch=TOKENS, threads=1) as model:
        for text in _texts(rng, model.vocabulary):
            model.forget()
            model.decode(text, every=True)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def leaning(spec: TensorSpec, rng: np.random.Generator) -> Callable[[Bytes], None]:
    """What shifts the values of embedding rows u8[rows, bytes], block by block to either side.

    In place. Layouts as in ``tests.archs.blocks``; types that no embedding has are left alone.
    """
    _, size = GGML_QUANT_SIZES[spec.kind]
    sides = rng.choice([-LEAN, LEAN], row_bytes(spec.shape[0], spec.kind) // size) * spec.deviation

    def shift(rows: Bytes) -> None:
        blocks = rows.reshape(len(rows), -1, size)
        unit = blocks[:, :, 0:2].copy().view(np.float16).astype(np.float32)
        if spec.kind is Kind.Q4_K:  # value = d · scale · code - dmin · scale; scales around 47.5
            least = unit * 7.5 - sides[:, None] / 47.5
            blocks[:, :, 2:4] = least.astype(np.float16).view(np.uint8)
        elif spec.kind is Kind.Q8_0:
            codes = blocks[:, :, 2:].view(np.int8) * 0.7 + sides[:, None] / unit
            blocks[:, :, 2:] = np.clip(np.rint(codes), -127, 127).astype(np.int8).view(np.uint8)
        elif spec.kind is Kind.F16:
            blocks[:] = (unit + sides[:, None]).astype(np.float16).view(np.uint8)

    return shift


def _texts(rng: np.random.Generator, vocabulary: int) -> Iterator[list[int]]:
    for _ in range(SEQUENCES):
        yield rng.integers(0, vocabulary, TOKENS).tolist()
