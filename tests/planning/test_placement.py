"""The planner on invented machines: nothing is loaded, every figure is known."""

from __future__ import annotations

import dataclasses
import re

import pytest

from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Model
from localmoe.planning.budget import ram_reserve
from localmoe.planning.memory import CPU, EngineSettings, MemoryReport
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Verdict, Wishes
from tests.planning.invented import GIB, MIB, engine, machine, moe_model


def plan(model: Model, ram: float, *vram: float, promised: int = 0, **wishes: object) -> Plan:
    return make_plan(
        model,
        machine(ram, *vram),
        Wishes(**wishes),  # type: ignore[arg-type]
        engine(model),
        promised,
    )


def host_bytes(result: Plan) -> int:
    return result.memory.on(CPU).total


def test_everything_on_the_gpu() -> None:
    """A GPU larger than the model takes every layer; only the embedding stays in RAM."""
    result = plan(moe_model(), 16, 24)
    assert result.verdict is Verdict.GPU
    assert {(p.dense, p.experts) for p in result.layers} == {("gpu", "gpu")}
    assert result.settings.gpu_layers == -1
    assert result.settings.overrides == ()
    assert result.tiers.disk == 0


def test_repacking_is_for_what_is_all_in_ram() -> None:
    """As wished, unmapped, where everything fits; else the usual plan, which says so."""
    model = moe_model()
    repacked = plan(model, 64, repack="on")
    assert (repacked.settings.repack, repacked.settings.load_mode) == (True, "none")
    assert repacked.memory == plan(model, 64).memory
    assert repacked.warnings == ()
    for memory in ((8,), (16, 6)):
        other, usual = plan(model, *memory, repack="on"), plan(model, *memory)
        assert dataclasses.replace(other, warnings=()) == usual
        assert "left aside" in other.warnings[0]


def test_dense_on_the_gpu_and_some_experts_in_ram() -> None:
    """A smaller GPU keeps all dense weights and as many layers' experts as fit."""
    model = moe_model()
    result = plan(model, 16, 6)
    assert result.verdict is Verdict.GPU_RAM
    assert {p.dense for p in result.layers} == {"gpu"}
    on_gpu = sum(p.experts == "gpu" for p in result.layers)
    assert 0 < on_gpu < len(result.layers)
    gpu = next(d for d in result.memory.devices if d.device == "GPU0")
    assert gpu.total <= result.vram_budget
    one_layer = model.layers[0].expert_bytes
    assert gpu.total + one_layer > result.vram_budget, "one more layer would have fitted"


def test_dense_does_not_fit_on_the_gpu() -> None:
    """A GPU too small for all dense weights takes the last layers' dense weights."""
    result = plan(moe_model(dense_mib=200), 32, 3, context=8192)
    assert result.verdict is Verdict.GPU_RAM
    places = [p.dense for p in result.layers]
    assert places == sorted(places, reverse=True), "host layers come first"
    assert 0 < places.count("gpu") < len(places)
    assert {p.experts for p in result.layers} == {"ram"}


def test_everything_in_ram() -> None:
    """Without a GPU and with enough RAM, nothing is read from disk."""
    result = plan(moe_model(), 32)
    assert result.verdict is Verdict.RAM
    assert result.settings.devices == ()
    assert {(p.dense, p.experts) for p in result.layers} == {("ram", "ram")}
    assert result.cache.regime == "resident"


def test_experts_partly_on_disk() -> None:
    """Dense weights, KV and buffers stay in RAM; the experts that are left over go to disk."""
    model = moe_model()
    result = plan(model, 6)
    assert result.verdict is Verdict.RAM_DISK
    assert result.tiers.ram + result.tiers.disk == host_bytes(result)
    assert result.tiers.ram <= result.ram_budget
    assert {p.dense for p in result.layers} == {"ram"}
    assert all(0 < p.experts_ram < p.expert_bytes for p in result.layers), "each keeps its part"
    assert result.cache.regime in ("page", "private")
    assert any("nothing needs the disk" in line or "more RAM" in line for line in result.advice)


def test_three_tiers() -> None:
    """GPU, RAM and disk at once."""
    result = plan(moe_model(layers=48), 6, 6)
    assert result.verdict is Verdict.GPU_RAM_DISK
    assert {p.experts for p in result.layers} == {"gpu", "disk"}
    assert all(p.experts_ram for p in result.layers if p.experts == "disk")


def test_does_not_fit() -> None:
    """Less RAM than KV cache and buffers take: no, with the numbers and what would change it."""
    result = plan(moe_model(dense_mib=100), 3, context=65536)
    assert result.verdict is Verdict.NO
    assert result.max_context == 0
    assert "KV cache and buffers take" in result.reason and "GiB" in result.reason
    assert result.advice


@pytest.mark.parametrize("experts", [0, 128])
def test_weights_larger_than_memory_are_read_again(experts: int) -> None:
    """Less RAM than what every token needs, and enough for KV cache and buffers: it runs from the
    mapped file, as plain llama.cpp does, and is called too slow; nothing is promised twice."""
    model = moe_model(experts=experts, dense_mib=100)
    result = plan(model, 3)
    assert result.verdict is Verdict.TOO_SLOW
    assert 0 < result.paged == result.tiers.disk - sum(row.experts_disk for row in result.layers)
    assert result.tiers.ram + result.tiers.disk == host_bytes(result)
    assert result.tiers.ram == result.ram_budget
    assert not result.settings.read_ahead and result.settings.cache_bytes == 0
    assert result.cache.regime == ("page" if experts else "off")
    assert "again and again" in result.reason
    assert any("RAM" in line for line in result.advice)
    roomier = plan(model, 3.05)
    assert 0 < roomier.paged < result.paged
    assert plan(model, 16).paged == 0


def test_less_than_one_tokens_experts_is_too_slow() -> None:
    """RAM for the dense part but not for the experts of one token runs, and is called too slow: the
    figures, what would help, a context that it was planned with. With less it is refused."""
    model = moe_model(experts=8, used=8, expert_mib=60)
    result = plan(model, 4)
    assert result.verdict is Verdict.TOO_SLOW
    assert result.verdict.runs and not result.verdict.fits
    assert "one token" in result.reason
    assert result.advice
    assert result.cache.regime in ("private", "page")
    assert result.max_context == result.settings.context
    assert 0 <= result.settings.cache_bytes <= result.ram_budget
    assert plan(model, 0.6).verdict is Verdict.NO


def test_two_gpus_are_both_used() -> None:
    """Two cards of 8 GiB take about as many layers' experts as one of 16 GiB."""
    model = moe_model(layers=48)
    one, two = plan(model, 32, 16), plan(model, 32, 8, 8)
    on_gpu = [sum(p.experts == "gpu" for p in result.layers) for result in (one, two)]
    assert on_gpu[1] >= on_gpu[0] - 3
    for entry in two.memory.devices:
        if entry.device != CPU:
            assert entry.total >= 0.85 * 7.75 * GIB


def test_two_hypothetical_gpus_are_both_used() -> None:
    """The same where both are outside the engine build and the figures are estimated."""
    model = moe_model(layers=48)
    cards = tuple(Gpu("card", 8 * GIB, 8 * GIB, False, f"GPU{i}", "cuda") for i in range(2))
    box = dataclasses.replace(machine(32), gpus=cards)
    result = make_plan(model, box, Wishes(), engine(model))
    assert result.verdict is Verdict.GPU_RAM
    assert min(result.memory.on(f"GPU{i}").total for i in range(2)) >= 0.85 * 7.75 * GIB


def test_a_wish_that_does_not_fit_is_a_no_with_its_numbers() -> None:
    """-ngl all on a card that cannot hold it is refused, not bent."""
    result = plan(moe_model(), 32, 4, gpu_layers=-1)
    assert result.verdict is Verdict.NO
    assert "GPU0" in result.reason


def test_a_no_counts_the_gpu() -> None:
    """What is missing is what RAM lacks beside the GPU, not what it would lack without one."""
    model = moe_model(dense_mib=200)
    with_card, without = plan(model, 1.2, 6), plan(model, 1.2)
    assert not with_card.verdict.fits and not without.verdict.fits
    assert with_card.memory.on(CPU).total < without.memory.on(CPU).total


@pytest.mark.parametrize("ram", [4, 6, 8, 12, 16, 32])
@pytest.mark.parametrize("vram", [(), (2,), (6,), (12,), (6, 6)])
def test_budgets_are_kept(ram: float, vram: tuple[float, ...]) -> None:
    """Whatever fits stays within RAM minus the reserve and within each GPU minus its margin."""
    model = moe_model()
    result = plan(model, ram, *vram)
    if not result.verdict.fits:
        return
    assert result.tiers.ram <= ram * GIB - ram_reserve(machine(ram))
    for entry in result.memory.devices:
        if entry.device != CPU:
            assert entry.total <= vram[int(entry.device[-1])] * GIB - 256 * MIB


def test_promised_memory_is_not_planned_twice() -> None:
    """What another localmoe process will still take is not available."""
    alone = plan(moe_model(), 16)
    second = plan(moe_model(), 16, promised=10 * GIB)
    assert alone.verdict is Verdict.RAM
    assert second.verdict is Verdict.RAM_DISK
    assert second.ram_budget == alone.ram_budget - 10 * GIB


def test_a_wish_for_ram_is_used_to_the_full() -> None:
    """--ram 24 plans with 24 GiB, without a reserve of ours, where the machine has that much."""
    model = moe_model()
    wish = Wishes(ram=24 * GIB)
    result = make_plan(model, machine(32), wish, engine(model))
    assert result.verdict is Verdict.RAM
    assert result.ram_reserve == 0
    assert 23 * GIB < result.ram_budget < 24 * GIB
    small = make_plan(model, machine(2), wish, engine(model))
    assert small.ram_budget < 2 * GIB, "never more than is available"


def test_default_context_is_the_largest_that_moves_nothing() -> None:
    """32k where there is room; less where its KV cache would push experts to a slower tier."""
    model = moe_model(expert_mib=1.5)
    assert plan(model, 32).settings.context == 32768
    tight = engine(model)(EngineSettings(context=16384)).total / GIB + 0.5 + 0.3
    result = plan(model, tight)
    assert result.verdict is Verdict.RAM
    assert result.settings.context in (8192, 16384)


def test_short_models_get_their_own_context() -> None:
    """A model trained on 4k is not given 32k."""
    assert plan(moe_model(context=4096), 32).settings.context == 4096


def test_max_context_is_the_edge() -> None:
    """The model runs at max_context, from whatever memory, and does not run 1,024 tokens later."""
    model = moe_model(context=1_000_000)
    for gpus in ((), (6,), (24,), (4, 4)):
        result = plan(model, 16, *gpus, context=8192)
        edge = result.max_context
        assert edge > 8192
        assert plan(model, 16, *gpus, context=edge).verdict.fits
        assert not plan(model, 16, *gpus, context=edge + 1024).verdict.fits


@pytest.mark.parametrize(("trained", "largest"), [(512, 512), (1000, 768), (4096, 4096)])
def test_the_largest_context_is_one_that_works(trained: int, largest: int) -> None:
    """Never more than the model was trained for, not even where more was asked for and fits."""
    model = moe_model(context=trained)
    assert plan(model, 32).settings.context == largest
    assert plan(model, 32).max_context == largest
    asked = plan(model, 32, context=24576)
    assert (asked.settings.context, asked.max_context) == (24576, largest)
    assert [f"trained for {trained:,} tokens" in line for line in asked.warnings] == [True]
    tight = plan(model, 1, context=24576)
    hinted = [int(n) for line in tight.advice for n in re.findall(r"--ctx (\d+)", line)]
    assert all(n <= trained for n in hinted)


@pytest.mark.parametrize(
    ("wished", "made"), [(1, 256), (64, 256), (256, 256), (300, 512), (8192, 8192)]
)
def test_a_context_is_planned_as_the_engine_will_make_it(wished: int, made: int) -> None:
    """Multiples of 256, and who asked for another number is told."""
    result = plan(moe_model(), 32, context=wished)
    assert result.settings.context == made
    assert result.settings.batch <= made
    told = f"--ctx {wished}: the engine counts in steps of 256 tokens, so it is {made}"
    assert result.warnings == ((told,) if wished != made else ())


def test_a_context_that_nobody_asked_for_shrinks_until_the_model_fits() -> None:
    """Whatever memory allows the model at 256 tokens of context allows it without --ctx; and more
    memory never means less context or a smaller batch.
    """
    model = moe_model(parts=3)
    sizes = []
    for ram in (step / 32 for step in range(32, 160)):
        automatic = plan(model, ram)
        assert automatic.verdict.fits == plan(model, ram, context=256).verdict.fits
        assert automatic.verdict.runs or not any("--ctx" in line for line in automatic.advice)
        if automatic.verdict.fits:
            sizes.append((automatic.settings.context, automatic.settings.ubatch))
    assert sizes[0][0] <= 512 and sizes[-1][0] >= 8192
    assert [context for context, _ in sizes] == sorted(context for context, _ in sizes)
    batches = [batch for context, batch in sizes if context >= 8192]
    assert batches == sorted(batches) and batches[0] >= 512


def test_batches_shrink_until_their_buffers_fit() -> None:
    """Where a 512-token batch's buffers do not fit, a smaller batch is planned."""
    model = moe_model(layers=4, experts=16, used=2, expert_mib=1)
    fixed = engine(model)(EngineSettings(context=8192, ubatch=64)).total - model.expert_bytes
    ram = (fixed + 120 * MIB) / GIB + 0.5 + 160 / 1024
    result = plan(model, ram, context=8192)
    assert result.verdict.fits
    assert result.settings.ubatch < 512


def test_wishes_for_placement_are_executed() -> None:
    """-ngl and --n-cpu-moe are taken as they are when they fit."""
    result = plan(moe_model(), 32, 24, n_cpu_moe=5)
    assert [p.experts for p in result.layers][:6] == ["ram"] * 5 + ["gpu"]
    result = plan(moe_model(), 32, 24, gpu_layers=3)
    assert [p.dense for p in result.layers].count("gpu") == 2, "the output counts as one layer"
    assert plan(moe_model(), 32, 24, gpu_layers=0).settings.devices == ()


def test_a_gpu_outside_the_engine_is_estimated_and_says_so() -> None:
    """The engine measures the host only; the split by the header is marked inexact."""
    model = moe_model()
    asked: list[EngineSettings] = []
    measure = engine(model)

    def host_only(settings: EngineSettings) -> MemoryReport:
        assert settings.devices == (), "the engine was asked for a device it does not have"
        asked.append(settings)
        return measure(settings)

    card = Gpu("absent card", 12 * GIB, 12 * GIB, False, "GPU0", "cuda")
    box = dataclasses.replace(machine(16), gpus=(card,))
    result = make_plan(model, box, Wishes(), host_only)
    assert result.verdict is Verdict.GPU
    assert not result.memory.exact
    assert asked
    on_gpu = sum(t.nbytes for t in model.tensors) - 200 * MIB
    assert result.memory.on("GPU0").weights == on_gpu


def test_unified_memory_is_counted_once() -> None:
    """A GPU without memory of its own takes from RAM: both together stay within the RAM budget."""
    model = moe_model()
    card = Gpu("integrated", 16 * GIB, 16 * GIB, True, "GPU0", "metal", unified=True)
    box = dataclasses.replace(machine(16), gpus=(card,))
    result = make_plan(model, box, Wishes(), engine(model))
    assert result.verdict is Verdict.GPU
    assert result.memory.total <= result.ram_budget
    small = dataclasses.replace(machine(8), gpus=(card,))
    result = make_plan(model, small, Wishes(), engine(model))
    if result.verdict.fits:
        assert result.memory.total - result.tiers.disk <= result.ram_budget


def test_the_plan_is_deterministic() -> None:
    """Same facts, same plan."""
    assert plan(moe_model(), 7, 4) == plan(moe_model(), 7, 4)


def test_what_would_keep_the_disk_out_can_be_done() -> None:
    """Programs are to be closed only where some hold so much; what --ram forbids is named first."""
    model = moe_model()

    def advice(box: Machine, **wishes: object) -> str:
        return make_plan(model, box, Wishes(**wishes), engine(model)).advice[0]  # type: ignore[arg-type]

    assert advice(machine(9, total_gib=16)).startswith("close programs that use ")
    assert advice(machine(9, total_gib=9)).endswith("more RAM nothing would need the disk")
    line = advice(machine(32), ram=9 * GIB)
    assert "nothing would need the disk: so much is free" in line
    enough = float(line.split()[2])
    result = make_plan(model, machine(32), Wishes(ram=int(enough * GIB)), engine(model))
    assert result.verdict is Verdict.RAM


def test_a_memory_group_needs_a_smaller_reserve() -> None:
    """Nothing else runs in a container but what its figures count already; of the machine itself
    other programs get their part."""
    whole = machine(4)
    group = dataclasses.replace(whole, ram_limited_by="cgroup v2")
    assert ram_reserve(whole) == GIB // 2
    assert ram_reserve(group) == GIB // 8
    assert ram_reserve(dataclasses.replace(group, ram_total=GIB)) == 64 * MIB


def test_the_cache_may_grow_unless_a_bound_is_named() -> None:
    """What stays free while it runs is used, but never more than ``--ram`` or ``--cache-ram``."""
    model = moe_model()
    free = plan(model, 6)
    assert free.settings.cache == "private"
    assert free.settings.cache_most > free.settings.cache_bytes
    for wish in (Wishes(ram=5 * GIB), Wishes(cache_ram=2 * GIB)):
        bound = make_plan(model, machine(6), wish, engine(model))
        assert (bound.settings.cache, bound.settings.cache_most) == ("private", 0)


def test_ram_for_other_conversations_is_set_aside() -> None:
    """Experts get what is left beside it, the engine its size, and whoever plans next its bytes."""
    model = moe_model()
    without, beside = plan(model, 6), plan(model, 6, prompt_cache=GIB)
    assert beside.ram_budget == without.ram_budget - GIB
    assert beside.settings.cache_bytes < without.settings.cache_bytes
    assert beside.settings.prompt_cache == GIB
    assert beside.promised_ram == beside.tiers.ram + GIB


def test_an_eighth_of_the_ram_for_other_conversations_if_the_model_runs_with_it() -> None:
    """Left to the planner it is an eighth; a model that then does not fit is planned without."""
    model = moe_model()
    some = plan(model, 6, prompt_cache=None)
    assert some.settings.prompt_cache == 6 * GIB // 8
    assert some.verdict.fits
    least = next(mib for mib in range(256, 8192, 64) if plan(model, mib / 1024).verdict.fits)
    assert plan(model, least / 1024, prompt_cache=None).settings.prompt_cache == 0
    assert not plan(model, least / 1024, prompt_cache=GIB).verdict.fits
