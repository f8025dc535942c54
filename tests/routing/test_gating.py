"""The NumPy reference of each gating function agrees with the engine, in every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from numpy.typing import NDArray

from localmoe.facts.model import Model, read_model
from localmoe.routing import gating
from localmoe.routing.gating import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS, Gating
from tests.archs import ARCHITECTURES
from tests.routing.observe import Step, observe

DENSE = ("llama-dense", "qwen3")
MOE = [name for name in ARCHITECTURES if name not in DENSE]
TOKENS = [int(t) for t in np.random.default_rng(0).integers(5, 500, 40)]
TIE = 1e-5  # selection scores that are closer may be chosen in either order

EXPECTED = {
    "qwen3moe": "softmax, then top-k, renormalized",
    "gpt-oss": "top-k, then softmax of the chosen",
    "olmoe": "softmax, then top-k",
    "deepseek2": "sigmoid, then top-k, selection bias, renormalized, times 1.5",
    "bailingmoe2": "sigmoid, then top-k, selection bias, within 2 of 4 groups, renormalized, "
    "times 1.5",
    "llama4": "top-k of the logits, then sigmoid, applied before the experts",
    "ernie4_5-moe": "softmax, then top-k, selection bias, renormalized",
}


def watched_model(
    arch_file: Callable[..., Path], tmp: Path, name: str
) -> tuple[Model, dict[int, list[Step]], dict[str, NDArray[Any]]]:
    """The model, what its routers did, and the tensors that the reference needs."""
    path = arch_file(name)
    wanted = ("exp_probs_b", "ffn_gate_tid2eid")
    tensors = {
        t.name: np.array(t.data)
        for t in GGUFReader(path).tensors
        if any(word in t.name for word in wanted)
    }
    own = name == "gpt-oss"
    return read_model(path), observe(path, TOKENS, tmp / f"{name}.npz", own=own), tensors


def disagreement(
    way: Gating, step: Step, layer: int, tensors: dict[str, NDArray[Any]]
) -> tuple[int, float]:
    """Tokens whose experts differ beyond a tie, and the largest relative error of a weight."""
    bias = tensors.get(f"blk.{layer}.exp_probs_b.bias")
    table = tensors.get(f"blk.{layer}.ffn_gate_tid2eid.weight")
    chosen = None if table is None else table[step.tokens].astype(np.int64)
    k = step.ids.shape[1]
    ids, weights = gating.route(step.logits, k, way, bias=bias, chosen=chosen)
    different, worst = 0, 0.0
    by = gating.selection(step.logits.astype(np.float64), way, bias)
    given = gating.weights_of(step.logits.astype(np.float64), step.ids, way)
    for token in range(len(ids)):
        mine, theirs = set(ids[token].tolist()), set(step.ids[token].tolist())
        if mine != theirs:
            gap = [abs(by[token, a] - by[token, b]) for a in mine - theirs for b in theirs - mine]
            different += way.by_token or max(gap) > TIE
    error = np.abs(given - step.weights) / np.maximum(np.abs(step.weights), 1e-6)
    worst = float(error.max())
    assert weights.shape == step.weights.shape
    return different, worst


@pytest.mark.parametrize("name", MOE)
def test_the_reference_agrees_with_the_engine(
    arch_file: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """From the router's logits NumPy finds the same experts and the same weights (to 1e-4)."""
    model, layers, tensors = watched_model(arch_file, tmp_path, name)
    expected = [e.index for e in model.layers if e.expert_count and e.loaded]
    assert sorted(layers) == expected
    checked = 0
    for layer, steps in layers.items():
        way = gating.gating_of(model, layer)
        assert way is not None
        for step in steps:
            different, worst = disagreement(way, step, layer, tensors)
            assert different == 0, f"layer {layer}: {way.describe()}"
            assert worst < 1e-4, f"layer {layer}: {way.describe()}"
            checked += len(step.ids)
    assert checked >= len(expected) * 5
    if name in EXPECTED:
        assert gating.describe(model) == EXPECTED[name]


def test_every_way_in_use_is_among_the_models(arch_file: Callable[..., Path]) -> None:
    """The generated architectures exercise all functions and all variations of them."""
    ways = set()
    for name in MOE:
        model = read_model(arch_file(name))
        ways |= {gating.gating_of(model, e.index) for e in model.layers if e.expert_count}
    known = [way for way in ways if way is not None]
    assert {way.function for way in known} == {SOFTMAX, SIGMOID, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS}
    for quality in ("bias", "normalized", "by_logits", "before", "by_token"):
        assert {getattr(way, quality) for way in known} == {True, False}, quality
    assert any(way.groups > 1 for way in known) and any(way.scale != 1 for way in known)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("qwen3moe", {"normalized": False}),
        ("olmoe", {"normalized": True}),
        ("gpt-oss", {"function": SOFTMAX}),
        ("deepseek2", {"function": SOFTMAX}),
        ("deepseek2", {"bias": False}),
        ("deepseek2", {"scale": 1.0}),
        ("bailingmoe2", {"groups": 1, "kept": 1}),
        ("llama4", {"function": SOFTMAX}),
        ("deepseek4", {"function": SIGMOID}),
        ("deepseek4", {"by_token": False, "bias": True}),
    ],
)
def test_a_wrong_reference_would_be_noticed(
    arch_file: Callable[..., Path], tmp_path: Path, name: str, wrong: dict[str, Any]
) -> None:
    """Each variation matters: without it experts or weights differ from the engine's."""
    model, layers, tensors = watched_model(arch_file, tmp_path, name)
    noticed = False
    for layer, steps in layers.items():
        way = gating.gating_of(model, layer)
        assert way is not None
        for step in steps:
            different, worst = disagreement(replace(way, **wrong), step, layer, tensors)
            noticed |= different > 0 or worst > 1e-2
    assert noticed


def test_layers_that_differ_are_told_apart(arch_file: Callable[..., Path]) -> None:
    """deepseek4's first layers look experts up by token, the others choose."""
    text = gating.describe(read_model(arch_file("deepseek4")))
    assert text.startswith("layers 0–0: experts by token id") and "selection bias" in text


def test_an_unknown_architecture_is_not_guessed(arch_file: Callable[..., Path]) -> None:
    """No gating is claimed for an architecture whose graph was not read."""
    model = replace(read_model(arch_file("qwen3moe")), architecture="newmoe")
    assert gating.gating_of(model, 0) is None and gating.describe(model) == ""


def test_group_limited_by_hand() -> None:
    """Four groups of two: the two with the best sums are kept, however high another expert is."""
    logits = np.array([[9.0, -9, 4, 3, 2, 4, 0, 0]])
    way = Gating(SIGMOID, groups=4, kept=2, by_logits=True)
    ids, _ = gating.route(logits, 2, way)
    assert ids.tolist() == [[2, 5]]  # group sums 0, 7, 6, 0: expert 0 is out of reach
    assert gating.route(logits, 2, replace(way, groups=1))[0].tolist() == [[0, 2]]
