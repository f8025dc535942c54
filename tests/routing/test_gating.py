"""The NumPy reference of each gating function agrees with the engine, in every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from localmoe.planning.work import work_of
from localmoe.routing import gating
from localmoe.routing.gating import SIGMOID, SOFTMAX, SOFTMAX_OF_CHOSEN, SQRT_SOFTPLUS, Gating
from tests.routing.agreement import HALF, MOE, Case, agreement, case_of, steps_of

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


@pytest.fixture(scope="module")
def case(
    arch_file: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Case]:
    """What engine and witness did with one architecture; run once."""
    known: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in known:
            known[name] = case_of(arch_file(name), tmp_path_factory.mktemp(name))
        return known[name]

    return make


@pytest.mark.process
@pytest.mark.parametrize("name", MOE)
def test_the_reference_agrees_with_the_engine(case: Callable[[str], Case], name: str) -> None:
    """From the router's logits NumPy finds the same experts and the same weights (to 1e-4)."""
    it = case(name)
    expected = [e.index for e in it.model.layers if e.expert_count and e.loaded]
    assert sorted(it.seen) == expected
    checked = 0
    for layer, steps in it.seen.items():
        way = gating.gating_of(it.model, layer)
        assert way is not None
        for step in steps:
            found = agreement(way, step, layer, it.tensors)
            assert found.different == 0, f"layer {layer}: {way.describe()}"
            assert found.worst < 1e-4, f"layer {layer}: {way.describe()}"
            checked += found.tokens
    assert checked >= len(expected) * 5
    if name in EXPECTED:
        assert gating.describe(it.model) == EXPECTED[name]


@pytest.mark.process
@pytest.mark.parametrize("name", MOE)
def test_the_last_layer_reads_of_a_prompt_what_the_forecast_says(
    case: Callable[[str], Case], name: str
) -> None:
    """One token where its matrices are reckoned for the last one only, else all of them."""
    it = case(name)
    last = max(e.index for e in it.model.layers if e.loaded)
    matrices = work_of(it.model, EngineSettings(context=256)).matrices
    narrowed = any(m.experts and m.last_only for m in matrices)
    if last in it.seen:  # else it is a dense layer or one without experts
        first = it.seen[last][0]
        assert (len(first.ids) == 1) == narrowed
        assert len(it.seen[min(it.seen)][0].ids) > 1


@pytest.mark.process
@pytest.mark.parametrize("name", MOE)
def test_a_trace_holds_what_the_engine_computed(case: Callable[[str], Case], name: str) -> None:
    """Ids, weights and logits of the trace are the witness's, to the rounding of 16 bits; so the
    reference finds experts and weights again from the recorded logits alone."""
    it = case(name)
    assert list(it.trace.layers) == sorted(it.seen)
    for layer, seen in it.seen.items():
        way = gating.gating_of(it.model, layer)
        assert way is not None
        for mine, theirs in zip(steps_of(it.trace, layer), seen, strict=True):
            assert (mine.ids == theirs.ids).all()
            assert np.allclose(mine.logits, theirs.logits, rtol=HALF, atol=1e-7)
            assert np.allclose(mine.weights, theirs.weights, rtol=HALF, atol=1e-7)
            largest = float(np.abs(theirs.logits).max())
            found = agreement(way, mine, layer, it.tensors, tie=4 * largest * HALF)
            assert found.different == 0, f"layer {layer}: {way.describe()}"
            assert found.worst < (4 * largest + 4) * HALF, f"layer {layer}: {way.describe()}"


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


@pytest.mark.process
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
    case: Callable[[str], Case], name: str, wrong: dict[str, Any]
) -> None:
    """Each variation matters: without it experts or weights differ from the engine's."""
    it = case(name)
    noticed = False
    for layer, steps in it.seen.items():
        way = gating.gating_of(it.model, layer)
        assert way is not None
        for step in steps:
            found = agreement(replace(way, **wrong), step, layer, it.tensors)
            noticed |= found.different > 0 or found.worst > 1e-2
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
