"""Traces made by hand, for tests: what they hold is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localmoe.routing.capacity import counts_of, even_capacities
from localmoe.routing.outlook import SHIPPED
from localmoe.routing.policies import POLICIES
from localmoe.routing.profile import FRACTIONS, Profile
from localmoe.routing.records import DECODE, PREFILL, Trace, TraceHeader, TraceLayer
from localmoe.routing.simulate import simulate
from localmoe.routing.stats import one_hot
from scripts.standin_router import FREEDOM, POPULARITY

QWEN3_TRACE = Path(__file__).parent / "data" / "qwen3-30b-a3b.route.csv.gz"
PROMPT, DECODED = 28, 128  # tokens of that trace


def header(
    layers: int = 2, experts: int = 8, used: int = 2, expert_bytes: int = 100, **more: Any
) -> TraceHeader:
    """Equal layers 0 … ``layers`` - 1."""
    each = tuple(TraceLayer(i, experts, used, expert_bytes) for i in range(layers))
    return TraceHeader("made by hand", "qwen3moe", each, **{"weights": False, **more})


def trace(
    ids: Sequence[NDArray[Any]],
    experts: int = 8,
    *,
    prefill: int = 0,
    segment: Sequence[int] | None = None,
    labels: Sequence[str] = ("",),
    tokens: Sequence[int] | None = None,
    logits: Sequence[NDArray[Any]] | None = None,
    expert_bytes: int = 100,
) -> Trace:
    """A trace of ``ids[layer]`` [n, k]; the first ``prefill`` tokens are one prefill batch."""
    n = len(ids[0])
    phase = np.where(np.arange(n) < prefill, PREFILL, DECODE).astype(np.uint8)
    batch = np.maximum(np.arange(n) - max(prefill - 1, 0), 0).astype(np.int32)
    layers = tuple(
        TraceLayer(i, experts, array.shape[1], expert_bytes) for i, array in enumerate(ids)
    )
    return Trace(
        header=TraceHeader(
            "made by hand", "qwen3moe", layers, weights=False, logits=logits is not None
        ),
        phase=phase,
        batch=batch,
        tokens=np.array(tokens if tokens is not None else [-1] * n, np.int32),
        segment=np.array(segment if segment is not None else [0] * n, np.int32),
        labels=tuple(labels),
        layer_ids=tuple(np.asarray(array, np.int16) for array in ids),
        layer_logits=tuple(np.asarray(a, np.float32) for a in logits) if logits else None,
    )


def random_ids(rng: np.random.Generator, n: int, experts: int, used: int) -> NDArray[np.int16]:
    """[n, used]: distinct experts per token, all equally likely."""
    return np.argsort(rng.random((n, experts)), axis=1)[:, :used].astype(np.int16)


def preferring(experts: int, used: int, *, layers: int = 48, seed: int = 0) -> Trace:
    """A trace as long as the real one, of routers with favourites as stand-ins have them: a token
    takes the experts for which popularity and chance together are greatest.
    """
    rng, tokens = np.random.default_rng(seed), PROMPT + DECODED
    popularity = POPULARITY * rng.standard_t(FREEDOM, (layers, 1, experts))
    logits = popularity + rng.standard_normal((layers, tokens, experts))
    ids = np.argsort(-logits, axis=2)[:, :, :used]
    return trace(list(ids), experts=experts, prefill=PROMPT)


def profile_of(trace: Trace) -> Profile:
    """What the engine should have counted while this was recorded: replayed cache by cache."""
    counts = counts_of(trace)
    policy = POLICIES[SHIPPED]
    curve = [
        (f, simulate(trace, even_capacities(trace, f), policy, SHIPPED).hit_rate) for f in FRACTIONS
    ]
    return Profile(
        model=trace.header.model,
        counts={
            layer.index: tuple(row[: layer.experts])
            for layer, row in zip(trace.header.layers, counts.tolist(), strict=True)
        },
        tokens=float(len(trace)),
        curve=tuple(curve),
        curve_tokens=float(trace.decode.sum()),
        reuse=_reuse(trace),
    )


def _reuse(trace: Trace) -> float:
    """Share of the decoded tokens' experts that the token before used."""
    again = lookups = 0
    for layer in trace.header.layers:
        used = one_hot(trace.ids(layer.index), layer.experts)
        here = np.nonzero(trace.decode)[0]
        here = here[(here > 0) & used[here - 1].any(axis=1)]
        again += int((used[here] & used[here - 1]).sum())
        lookups += int(used[here].sum())
    return again / lookups
