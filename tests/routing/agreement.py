"""The NumPy reference of each gating function beside the engine, on one generated model.

The engine records a trace with logits; its evaluation callback, an independent witness, sees the
same tokens. The reference is held against both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from numpy.typing import NDArray

from localmoe.engine.client import Engine
from localmoe.engine.events import Request, Sampling
from localmoe.facts.model import Model, read_model
from localmoe.planning.memory import EngineSettings
from localmoe.routing import gating
from localmoe.routing.gating import Gating
from localmoe.routing.trace import Trace, read_trace
from tests.archs import ARCHITECTURES
from tests.routing.observe import SINGLE, Step, observe

MOE = [name for name in ARCHITECTURES if name not in ("llama-dense", "qwen3")]
PROMPT = "A mixture of experts has many small networks, and a router that sends each token to few."
HALF = 2**-11  # relative error of a number kept in 16 bits
TIE = 1e-5  # selection scores that are closer may be chosen in either order


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A model, its recorded trace, what the witness saw of the same tokens, and its tensors."""

    model: Model
    trace: Trace
    seen: dict[int, list[Step]]
    tensors: dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of one step: tokens routed, those with other experts (ties aside), worst weight error."""

    tokens: int
    different: int
    worst: float  # relative


def case_of(path: Path, folder: Path) -> Case:
    """Runs the engine twice on the generated file ``path``."""
    trace = recorded(path, folder / "recorded.trace")
    wanted = ("exp_probs_b", "ffn_gate_tid2eid")
    tensors = {
        t.name: np.array(t.data)
        for t in GGUFReader(path).tensors
        if any(word in t.name for word in wanted)
    }
    model = read_model(path)
    own = model.architecture == "gpt-oss"
    seen = observe(path, trace.tokens.tolist(), folder / "seen.npz", own=own)
    return Case(model, trace, seen, tensors)


def recorded(path: Path, out: Path) -> Trace:
    """A prompt, read as one batch, and ``SINGLE`` decoded tokens."""
    settings = EngineSettings(
        context=256,
        batch=256,
        ubatch=256,
        threads=1,
        threads_batch=1,
        record=str(out),
        record_logits=True,
    )
    with Engine(read_model(path), settings, remember=False) as engine:
        list(engine.load())
        asked = Request(
            PROMPT, max_tokens=SINGLE + 1, sampling=Sampling(temperature=0), ignore_end=True
        )
        list(engine.generate(asked))
    return read_trace(out)


def steps_of(trace: Trace, layer: int) -> list[Step]:
    """The recorded steps of a layer, as the witness would tell them."""
    ids, weights, logits = trace.ids(layer), trace.weights(layer), trace.logits(layer)
    assert weights is not None and logits is not None
    steps = []
    for batch in np.unique(trace.batch):
        rows = (trace.batch == batch) & (ids >= 0).all(axis=1)
        steps.append(
            Step(
                trace.tokens[rows].astype(np.int64),
                logits[rows],
                ids[rows].astype(np.int64),
                weights[rows],
            )
        )
    return steps


def agreement(
    way: Gating, step: Step, layer: int, tensors: dict[str, NDArray[Any]], tie: float = TIE
) -> Agreement:
    """Experts and weights that the reference finds from a step's logits, beside the engine's."""
    bias = tensors.get(f"blk.{layer}.exp_probs_b.bias")
    table = tensors.get(f"blk.{layer}.ffn_gate_tid2eid.weight")
    chosen = None if table is None else table[step.tokens].astype(np.int64)
    logits = step.logits.astype(np.float64)
    ids, weights = gating.route(logits, step.ids.shape[1], way, bias=bias, chosen=chosen)
    assert weights.shape == step.weights.shape
    by = gating.selection(logits, way, bias)
    different = 0
    for token in range(len(ids)):
        mine, theirs = set(ids[token].tolist()), set(step.ids[token].tolist())
        if mine != theirs:
            gaps = [abs(by[token, a] - by[token, b]) for a in mine - theirs for b in theirs - mine]
            different += way.by_token or max(gaps) > tie
    given = gating.weights_of(logits, step.ids, way)
    error = np.abs(given - step.weights) / np.maximum(np.abs(step.weights), 1e-6)
    return Agreement(len(ids), different, float(error.max()))
