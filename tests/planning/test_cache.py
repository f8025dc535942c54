"""The pure half of the expert cache: which tensors, how much memory, which regime and batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.model import Model, Role, read_model
from localmoe.planning.cache import (
    OTHER_MAPPINGS,
    PAGE,
    budget_under_pressure,
    dense_ranges,
    left_over,
    mapped_bytes,
    needed_budget,
    routed_tensors,
    slot_bytes,
)
from localmoe.planning.cache_plan import plan_cache
from localmoe.planning.memory import EngineSettings, RoutedTensor
from localmoe.planning.prefill import choose_batches
from tests.archs import ARCHITECTURES

SETTINGS = EngineSettings(context=512)
MIB = 1 << 20


@pytest.fixture
def model(arch_file: Callable[[str], Path]) -> Model:
    return read_model(arch_file("qwen3moe"))


def moe_layers(model: Model) -> list[int]:
    return [layer.index for layer in model.layers if layer.expert_count]


def host_experts(model: Model) -> dict[int, int]:
    return {layer.index: layer.expert_bytes for layer in model.layers if layer.expert_bytes}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_expert_is_found_in_the_header(
    architecture: str, arch_file: Callable[..., Path]
) -> None:
    """All routed weights, split or fused, in one file or several, and nothing else."""
    for path in (arch_file(architecture), arch_file(architecture, split=3)):
        model = read_model(path)
        weights = {
            (t.name, t.part, t.offset, t.nbytes)
            for t in model.tensors
            if t.role is Role.ROUTED_EXPERT and t.loaded and t.name.endswith("exps.weight")
        }
        found = routed_tensors(model)
        assert {(t.name, t.part, t.offset, t.nbytes) for t in found} == weights
        assert bool(found) == bool(moe_layers(model))
        assert [t.group for t in found] == sorted(t.group for t in found)
        for tensor in found:
            assert tensor.experts == model.layers[tensor.group].expert_count
            assert tensor.nbytes % tensor.experts == 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_dense_ranges_leave_the_experts_out(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """Every dense weight that each token reads, and no expert larger than a gap read over."""
    model = read_model(arch_file(architecture))
    ranges = dense_ranges(model)
    assert list(ranges) == sorted(ranges)
    tied = all(tensor.name != "output.weight" for tensor in model.tensors)
    for tensor in model.tensors:
        inside = any(
            part == tensor.part and start <= tensor.offset and tensor.offset + tensor.nbytes <= end
            for part, start, end in ranges
        )
        looked_up = tensor.name in ("token_embd.weight", "per_layer_token_embd.weight")
        if tensor.loaded and tensor.role is not Role.ROUTED_EXPERT and not looked_up:
            assert inside
        if tensor.name == "token_embd.weight" and tied:
            assert inside
        if tensor.role is Role.ROUTED_EXPERT and tensor.nbytes > 64 * 1024:
            assert not inside


def test_a_slot_holds_an_expert_of_any_shape() -> None:
    """Whole pages, at least the weights, and at most some pages per tensor more."""
    rng = random.Random(4)
    for _ in range(500):
        experts = rng.randrange(1, 65)
        tensors = [
            RoutedTensor(
                str(i),
                0,
                0,
                rng.randrange(1 << 30) * 32,
                32 * rng.randrange(1, rng.choice((40, 4000, 40000))) * experts,
                experts,
            )
            for i in range(rng.randrange(1, 4))
        ]
        size, bytes_ = slot_bytes(tensors), sum(t.nbytes // t.experts for t in tensors)
        assert size % PAGE == 0
        assert bytes_ <= size <= bytes_ + PAGE * (3 * len(tensors) + 3)


def test_more_experts_per_token_need_more_memory(model: Model) -> None:
    """``--experts`` counts in the least budget."""
    layers = moe_layers(model)
    assert needed_budget(model, layers, 1, 8) == 2 * needed_budget(model, layers, 1)
    assert needed_budget(model, layers, 1, 99) == needed_budget(model, layers, 99)


@pytest.mark.parametrize(
    ("wish", "share", "regime"),
    [
        ("auto", 1.0, "resident"),
        ("auto", 0.5, "private"),
        ("auto", 0.01, "page"),
        ("private", 2.0, "private"),
        ("private", 0.01, "page"),
        ("page", 0.5, "page"),
        ("off", 0.5, "off"),
        ("off", 1.0, "resident"),
    ],
)
def test_the_regime_follows_from_wish_and_room(
    wish: str, share: float, regime: str, model: Model
) -> None:
    """Resident where all fits; private from the least budget on; a wish is obeyed if it can be."""
    host = host_experts(model)
    room = int(sum(host.values()) * share)
    settings, plan = plan_cache(model, SETTINGS, host, room, wish)
    assert plan.regime == regime
    assert plan.why
    assert settings.cache == (regime if regime in ("page", "private") else "off")
    assert settings.cache_bytes <= room
    assert settings.read_ahead == (share >= 1.0 and wish != "private")
    if regime == "private":
        assert (
            settings.ubatch
            == settings.batch
            == choose_batches(model, list(host), settings.cache_bytes, SETTINGS).tokens
        )
        assert not settings.repack


def test_a_bound_by_the_user_is_kept(model: Model) -> None:
    """``--cache-ram`` bounds the private memory even where there is more."""
    host = host_experts(model)
    wished = sum(host.values()) // 2
    settings, plan = plan_cache(model, SETTINGS, host, 1 << 40, "auto", wished)
    assert (settings.cache, settings.cache_bytes, plan.budget) == ("private", wished, wished)


def test_pressure_shrinks_and_grows_the_budget() -> None:
    """It gives up what is missing, never what it needs to run, and comes back slowly."""
    assert budget_under_pressure(800, 1000, 50, 100, 200) == 650
    assert budget_under_pressure(800, 1000, 0, 1000, 200) == 200
    assert budget_under_pressure(150, 1000, 0, 1000, 200) == 150, "it does not grow when short"
    assert budget_under_pressure(800, 1000, 100, 100, 200) == 800
    assert budget_under_pressure(800, 1000, 400, 100, 200) == 800
    assert budget_under_pressure(800, 1000, 500, 100, 200) == 850
    assert budget_under_pressure(800, 1000, 5000, 100, 200) == 1000


def test_what_was_pushed_out_is_not_left_over() -> None:
    """The system calls 900 bytes free: weights of 300 were in memory once and 200 are, 50 bytes of
    our own memory are swapped. More than that was never free."""
    assert left_over(900, 0, 300, 200, 50) == 750
    assert left_over(900, 0, 300, 300, 0) == 900
    assert left_over(900, 0, 200, 300, 0) == 900, "more of the mapping than ever before"
    assert left_over(900, 400, 300, 300, 0) == 500, "the budget's unfilled part is as good as taken"
    assert left_over(50, 0, 500, 200, 50) == -300
    assert budget_under_pressure(800, 1000, -300, 100, 200) == 300, "what is missing to 200"


def test_mappings_bound_the_private_memory(model: Model) -> None:
    """An expert in memory takes up to two mappings; the plan stays below the limit and names it."""
    host = host_experts(model)
    layers, room = moe_layers(model), sum(host.values()) // 2
    plain, _ = plan_cache(model, SETTINGS, host, room, "auto")
    enough = OTHER_MAPPINGS + 2 * sum(model.layers[i].expert_count for i in layers)
    assert plan_cache(model, SETTINGS, host, room, "auto", mappings=enough)[0] == plain
    few = OTHER_MAPPINGS + 2 * 20
    settings, plan = plan_cache(model, SETTINGS, host, room, "auto", mappings=few)
    assert settings.cache_bytes == mapped_bytes(model, layers, few) < room
    assert "max_map_count" in plan.why
    settings, plan = plan_cache(model, SETTINGS, host, room, "auto", mappings=OTHER_MAPPINGS)
    assert (settings.cache, plan.regime) == ("page", "page")
    assert "max_map_count" in plan.why


def test_a_wish_for_more_than_there_is_is_answered(model: Model) -> None:
    """``--cache-ram`` with less memory left than that: the plan says how much was asked for."""
    host = host_experts(model)
    room = sum(host.values()) // 2
    _, plan = plan_cache(model, SETTINGS, host, room, "auto", sum(host.values()))
    assert "were asked for" in plan.why
    _, plan = plan_cache(model, SETTINGS, host, room, "auto", room)
    assert "were asked for" not in plan.why
