"""What a routing profile changes in a plan, on invented models: nothing is loaded."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from localmoe.planning.cache_shares import (
    ENOUGH,
    LayerUse,
    even_shares,
    missed_bytes,
    shares_by_use,
)
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import ExpertsOn, Plan, Verdict, Wishes
from localmoe.routing.profile import Profile
from localmoe.routing.trace import read_trace
from scripts.placement_gain import section
from tests.planning.invented import engine, machine, moe_model
from tests.routing.traces import QWEN3_TRACE

MODEL = moe_model(layers=12, experts=16, used=2, expert_mib=32.0)
FLAT = {0, 5, 6}  # layers that choose all experts alike; the others have four favourites


def profile(tokens: float = 10_000, experts: int = 16) -> Profile:
    def row(layer: int) -> tuple[float, ...]:
        if layer in FLAT:
            return (2 * tokens / experts,) * experts
        rest = 0.1 * 2 * tokens / (experts - 4)
        return (0.9 * 2 * tokens / 4,) * 4 + (rest,) * (experts - 4)

    return Profile("invented", {layer: row(layer) for layer in range(12)}, tokens)


def plan(ram: float, *vram: float, known: Profile | None = None, **wishes: object) -> Plan:
    asked = Wishes(context=8192, **wishes)  # type: ignore[arg-type]
    return make_plan(MODEL, machine(ram, *vram), asked, engine(MODEL), profile=known)


def use(index: int, *chosen: float, nbytes: int = 400, used: int = 1) -> LayerUse:
    return LayerUse(index, nbytes, used, chosen)


@pytest.mark.parametrize("room", range(200, 900, 50))
def test_no_other_shares_miss_less(room: int) -> None:
    """Beside every way to keep whole experts in the room, at least one of each layer."""
    uses = (
        use(0, 0.7, 0.2, 0.1, 0.0),
        use(1, 0.25, 0.25, 0.25, 0.25),
        use(2, 0.4, 0.3, 0.2, 0.1),
    )
    shares = shares_by_use(uses, room)
    kept = [round(4 * shares[layer]) for layer in range(3)]
    if room >= 300:
        assert 100 * sum(kept) <= room
        ways = [way for way in itertools.product(range(1, 5), repeat=3) if 100 * sum(way) <= room]
        least = min(missed_bytes(uses, {i: way[i] / 4 for i in range(3)}) for way in ways)
        assert missed_bytes(uses, shares) == pytest.approx(least)
    else:
        assert shares == even_shares(uses, room), "not even one of each"


def test_everything_has_room_for_everything() -> None:
    uses = (use(0, 0.7, 0.3), use(1, 0.5, 0.5))
    assert shares_by_use(uses, 800) == even_shares(uses, 900) == {0: 1.0, 1: 1.0}
    assert missed_bytes(uses, {0: 1.0, 1: 1.0}) == 0


def test_layers_without_favourites_are_on_the_gpu() -> None:
    """Where the disk is needed, the GPU holds what misses most; without a profile the last ones."""
    naive, known = plan(2.5, 3), plan(2.5, 3, known=profile())
    assert naive.verdict is known.verdict is Verdict.GPU_RAM_DISK

    def on_gpu(result: Plan) -> set[int]:
        return {row.index for row in result.layers if row.experts_gpu == row.expert_bytes}

    assert on_gpu(naive) == {9, 10, 11}
    assert on_gpu(known) == FLAT
    assert known.tiers == naive.tiers, "other layers, as many bytes"


def test_nothing_changes_where_nothing_is_on_the_disk() -> None:
    """Then every layer reads the same bytes per token wherever it is."""
    for box in ((32,), (32, 3), (2, 24)):
        assert plan(*box, known=profile()) == plan(*box)


def test_the_cache_is_shared_out_by_use() -> None:
    """Favourites first; the rows of the plan and the engine's settings say the same."""
    result = plan(4, known=profile())
    shares = dict(result.settings.cache_shares)
    assert result.cache.regime == "private"
    assert "10,000 recorded tokens" in result.cache.why
    favoured = [shares[layer] for layer in range(12) if layer not in FLAT]
    assert min(favoured) >= 4 / 16
    for row in result.layers:
        assert row.experts_ram / row.expert_bytes == pytest.approx(shares[row.index], abs=0.07)
    assert sum(row.experts_disk for row in result.layers) == result.tiers.disk
    kept = sum(share * MODEL.layers[0].expert_bytes for share in shares.values())
    assert kept <= result.settings.cache_bytes * 1.001
    assert plan(4).settings.cache_shares == ()


@pytest.mark.parametrize("other", [profile(tokens=ENOUGH - 1), profile(experts=8)])
def test_a_profile_of_another_model_or_too_short_is_not_used(other: Profile) -> None:
    assert plan(2.5, 3, known=other) == plan(2.5, 3)


def test_layers_wished_in_ram_keep_all_their_experts() -> None:
    """The cache leaves them whole, and gives what is left to those wished on the disk."""
    wish = (ExpertsOn("ram", ((0, 1),)), ExpertsOn("disk", ((2, 3),)))
    result = plan(4, experts_on=wish, cache="private")
    shares = dict(result.settings.cache_shares)
    assert shares[0] == shares[1] == 1.0
    assert shares[2] == shares[3] == 0.0
    assert len({shares[layer] for layer in range(4, 12)}) == 1
    assert [row.experts for row in result.layers[:4]] == ["ram", "ram", "disk", "disk"]


def test_less_cache_than_there_is_room_for() -> None:
    """``--cache-ram`` moves experts to the disk, and the plan says so."""
    whole = MODEL.expert_bytes
    free, bound = plan(32), plan(32, cache_ram=whole // 2)
    assert (free.verdict, bound.verdict) == (Verdict.RAM, Verdict.RAM_DISK)
    assert bound.tiers.disk == whole - whole // 2
    assert free.tiers.ram - bound.tiers.ram >= whole // 2
    assert bound.settings.cache_bytes == whole // 2
    assert "as asked" in bound.reason


def test_the_gain_in_docs_is_what_the_script_writes() -> None:
    """Replayed anew on the real trace, digit by digit."""
    trace = read_trace(QWEN3_TRACE)
    expected = "\n".join(section("Qwen3-30B-A3B", trace.select(trace.decode)))
    assert expected in (Path(__file__).parents[2] / "docs/placement.md").read_text()
