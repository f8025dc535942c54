"""The forecast of speed on invented machines, where the right answer can be worked out by hand."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.facts.bandwidth import DiskRate, value_at
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model, read_model
from localmoe.planning import clock
from localmoe.planning.experience import Correction, correction
from localmoe.planning.llama_args import llama_args
from localmoe.planning.memory import EngineSettings
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Wishes
from localmoe.planning.speed import Forecast, Range, forecast, in_memory_speed, tuned
from localmoe.planning.work import Attending, work_of
from localmoe.routing.overlap import together
from localmoe.routing.profile import Profile, expected_hit_rate
from tests.archs import ARCHITECTURES
from tests.planning.catalog import published
from tests.planning.invented import GIB, MIB, engine, machine, moe_model
from tests.planning.rates import RATES, VECTOR

MODEL = moe_model()  # 24 layers × 128 experts × 3 MiB, 8 used; 16 MiB dense each; output 200 MiB
ACTIVE = 24 * (16 + 8 * 3) * MIB + 200 * MIB


def planned(model: Model, host: Machine, **wishes: object) -> Plan:
    plan = make_plan(model, host, Wishes(context=4096, **wishes), engine(model))  # type: ignore[arg-type]
    assert plan.verdict.fits
    return plan


def resident() -> Plan:
    return planned(MODEL, machine(64))


def test_decoding_takes_the_active_bytes_over_the_kernels_speed() -> None:
    """1,160 MiB a token at 10 GB/s are 0.122 s; operations, choosing and the twelfth that experts
    take longer than bare kernels add some milliseconds."""
    told = forecast(MODEL, resident(), RATES)
    routed = 24 * 8 * 3 * MIB
    bare = (ACTIVE - routed + routed * clock.EXPERTS) / VECTOR
    assert 1 / told.decode.expected == pytest.approx(bare, rel=0.06)
    assert 1 / told.decode.expected > bare
    assert told.limit == "compute"


def test_memory_is_the_limit_where_the_kernels_keep_up_with_it() -> None:
    """With memory no faster than the kernels, "ram" is what is told."""
    slow = dataclasses.replace(RATES, ram=((1.0, 11e9), (8.0, 11e9)))
    assert forecast(MODEL, resident(), slow).limit == "ram"


def test_fewer_threads_are_slower() -> None:
    """One thread has a fifth of the speed here."""
    one = planned(MODEL, machine(64), threads=1)
    both = forecast(MODEL, one, RATES), forecast(MODEL, resident(), RATES)
    assert both[0].decode.expected == pytest.approx(both[1].decode.expected / 5, rel=0.1)


def test_what_the_cache_misses_is_read_from_the_disk() -> None:
    """The missed share of 576 MiB, at the speed of reads of 3 MiB, times what the regime costs."""
    plan = planned(MODEL, machine(6.5))
    assert plan.cache.regime == "private"
    curve = ((0.1, 0.5), (0.9, 0.5))  # half of the lookups hit, whatever the room
    half = Profile("invented", {}, 1e9, curve, 1e12)
    told = forecast(MODEL, plan, RATES, profile=half)
    size = 24 * 8 * 3 * MIB / 2
    speed = value_at(RATES.disk[0].reads, 3 * MIB)
    in_memory = forecast(MODEL, resident(), RATES)
    reading = size / speed * clock.MISS["private"]
    computing = 1 / in_memory.decode.expected
    hidden = clock.HIDDEN["private"] * min(computing, reading)
    assert 1 / told.decode.expected == pytest.approx(computing + reading - hidden, rel=1e-6)
    assert told.limit == "disk" and "50%" in told.why
    nearly = Profile("invented", {}, 1e9, ((0.1, 0.999), (0.9, 0.999)), 1e12)
    assert forecast(MODEL, plan, RATES, profile=nearly).limit == "compute"


def test_a_faster_disk_helps_only_where_it_is_read() -> None:
    """Ten times a slow disk: more tokens with experts on it, no more with everything in memory."""
    slow = dataclasses.replace(RATES, disk=(DiskRate("1", ((1.0, 0.5e9),), 0.5e9),))
    quick = dataclasses.replace(RATES, disk=(DiskRate("1", ((1.0, 5e9),), 5e9),))
    plan = planned(MODEL, machine(4))
    assert (
        forecast(MODEL, plan, quick).decode.expected
        > 1.5 * forecast(MODEL, plan, slow).decode.expected
    )
    same = forecast(MODEL, resident(), quick), forecast(MODEL, resident(), slow)
    assert same[0].decode == same[1].decode
    assert same[0].first_token.expected < same[1].first_token.expected  # it is loaded from there


def test_a_gpu_takes_what_is_on_it() -> None:
    """Everything on a GPU of 400 GB/s: its limit, and several times the processor's speed."""
    told = forecast(MODEL, planned(MODEL, machine(64, 24)), RATES)
    assert told.limit == "gpu"
    assert told.decode.expected > 10 * forecast(MODEL, resident(), RATES).decode.expected
    split = forecast(MODEL, planned(MODEL, machine(64, 4)), RATES)
    assert (
        forecast(MODEL, resident(), RATES).decode.expected
        < split.decode.expected
        < told.decode.expected
    )


def test_a_gpu_that_nobody_measured_makes_the_range_wide() -> None:
    """The same plan without the GPU's rates: still an answer, marked, at least twice as wide."""
    plan = planned(MODEL, machine(64, 24))
    known, assumed = (
        forecast(MODEL, plan, rates) for rates in (RATES, dataclasses.replace(RATES, devices=()))
    )
    assert "its speed assumed" in assumed.why and "assumed" not in known.why
    wide = assumed.decode.high / assumed.decode.low
    assert wide > 1.5 * known.decode.high / known.decode.low


def test_a_longer_prompt_takes_longer_and_slows_decoding_through_its_cache() -> None:
    """Every token attends to all before it."""
    model = dataclasses.replace(
        MODEL,
        metadata={
            "qwen3moe.attention.head_count": 32,
            "qwen3moe.attention.key_length": 128,
            "qwen3moe.attention.value_length": 128,
        },
    )
    plan = planned(model, machine(64))
    short, long = (forecast(model, plan, RATES, prompt_tokens=n) for n in (128, 2048))
    each = 32 * 256 / 20e9 + 32 * clock.ROW_S / 8
    attending = 24 * (2048 - 128) * each
    assert 1 / long.decode.expected - 1 / short.decode.expected == pytest.approx(attending)
    assert long.first_token.expected > short.first_token.expected
    assert long.prompt_tokens == 2048
    assert forecast(model, plan, RATES, prompt_tokens=10**9).prompt_tokens == 4096


def test_prefill_multiplies_for_each_token_and_reads_each_weight_once() -> None:
    """512 tokens: experts at 200 G/s and the rest at 400 G/s, all read at 10 GB/s, but for the last
    layer's experts, of which one token is wanted. In small batches it takes longer."""
    told = forecast(MODEL, resident(), RATES, prompt_tokens=512)
    experts, dense = 23 * 8 * 3 * MIB, 24 * 16 * MIB
    multiplying = 512 * (experts / 200e9 + dense / 400e9)
    reading = (23 * 128 * 3 * MIB + dense) / VECTOR
    expected = (multiplying + reading) * clock.PREFILL
    assert 512 / told.prefill.expected == pytest.approx(expected, rel=0.1)
    plan = resident()
    small = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, ubatch=16))
    assert forecast(MODEL, small, RATES).prefill.expected < told.prefill.expected


def test_a_prompt_reads_the_missing_experts_once_per_batch() -> None:
    """With everything in memory none; else what is not kept beside the two layers that pass, per
    batch: half as many bytes per token in batches of twice the size, a little less where a batch
    does not choose all experts."""
    assert forecast(MODEL, resident(), RATES).prompt_bytes == 0
    plan = planned(MODEL, machine(4))
    missing = MODEL.expert_bytes - (plan.cache.budget - 2 * 128 * 3 * MIB)

    def told(batch: int) -> float:
        settings = dataclasses.replace(plan.settings, batch=batch, ubatch=batch, cache_lent=0)
        sized = dataclasses.replace(plan, settings=settings)
        return forecast(MODEL, sized, RATES, prompt_tokens=2048).prompt_bytes

    assert told(1024) == pytest.approx(missing * 2 / 2048, rel=0.1)
    assert told(512) / told(1024) == pytest.approx(2, rel=0.1)


def test_a_cold_start_reads_the_model_first() -> None:
    """9.4 GiB through the page cache at 1 GB/s come before the prompt."""
    told = forecast(MODEL, resident(), RATES)
    assert (
        told.first_token.expected > clock.LOADING * MODEL.size / 1e9 + 512 / told.prefill.expected
    )
    part = forecast(MODEL, planned(MODEL, machine(4)), RATES)
    assert part.first_token.expected < told.first_token.expected


def test_the_first_token_of_a_loaded_model_is_stated_apart() -> None:
    """The prompt alone, with the experts of the plan in memory; from cold, loading and reads come
    on top, but part of the reads is done while the prompt is computed.
    """
    for ram in (5, 64):
        told = forecast(MODEL, planned(MODEL, machine(ram)), RATES)
        loaded, cold = told.loaded_first_token.expected, told.first_token.expected
        assert loaded == pytest.approx(512 / told.prefill.expected)
        timed = clock.Clock(MODEL, planned(MODEL, machine(ram)), RATES, None)
        start = timed.start().expected
        assert cold > loaded + start if ram == 5 else cold == pytest.approx(loaded + start)
        everything = MODEL.expert_bytes / value_at(RATES.disk[0].reads, 3 * MIB)
        assert cold < start + loaded + everything * clock.BATCH_MISS["private"]


def test_the_sentence_adds_up() -> None:
    """The milliseconds of the parts are those of a token, and tok/s follow from them; bytes and
    rates give the milliseconds.
    """
    for box in (machine(64), machine(5), machine(64, 4), machine(4, 2), machine(64, 24)):
        told = forecast(MODEL, planned(MODEL, box), RATES)
        whole, *parts = (float(n.replace(",", "")) for n in re.findall(r"([\d.,]+) ms", told.why))
        assert sum(parts) == pytest.approx(whole, abs=0.6 * len(parts))
        assert 1000 / told.decode.expected == pytest.approx(whole, rel=0.01, abs=0.6)
        for ms, size, unit, speed in re.findall(
            r"([\d.]+) ms for ([\d.,]+) ([MG]iB) of weights at ([\d.]+) GB/s", told.why
        ):
            nbytes = float(size.replace(",", "")) * (GIB if unit == "GiB" else MIB)
            assert nbytes / float(speed) / 1e6 == pytest.approx(float(ms), rel=0.06, abs=0.6)


def test_a_simulation_and_a_forecast_have_one_formula() -> None:
    """With the hit rate of the forecast, both figures of ``in_memory_speed`` give its tok/s."""
    rate, read = in_memory_speed(MODEL, RATES, 8)
    assert rate == pytest.approx(forecast(MODEL, resident(), RATES).decode.expected)
    for ram in (4, 5, 6.5, 8):
        plan = planned(MODEL, machine(ram))
        told = forecast(MODEL, plan, RATES)
        hits = expected_hit_rate(None, plan.cache.budget / MODEL.expert_bytes, used_share=8 / 128)
        missed = (1 - hits) * 24 * 8 * 3 * MIB
        seconds = together(1 / rate, missed / read, clock.HIDDEN["private"])
        assert 1 / seconds == pytest.approx(told.decode.expected)


def test_a_bus_too_slow_for_experts_is_not_used() -> None:
    """Where copying a batch's experts to the GPU takes longer than the processor's work on them,
    the tuned plan leaves them; else it copies. More threads are not taken where they are slower.
    """
    plan = planned(MODEL, machine(64, 4))
    (gpu,) = RATES.devices
    slow = dataclasses.replace(RATES, devices=(dataclasses.replace(gpu, to_device=5e8),))
    assert tuned(MODEL, plan, RATES).settings.op_offload
    assert not tuned(MODEL, plan, slow).settings.op_offload
    assert "--no-op-offload" in llama_args(tuned(MODEL, plan, slow).settings)
    waiting = dataclasses.replace(RATES, node_s=((1.0, 1e-6), (8.0, 1e-3)))
    assert tuned(MODEL, resident(), waiting).settings.threads < 8
    assert tuned(MODEL, resident(), waiting, keep_threads=True) == resident()
    assert tuned(MODEL, resident(), RATES) == resident()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_a_forecast(
    architecture: str, arch_file: Callable[..., Path]
) -> None:
    """Positive, finite, in order, and its matrices are the file's, but for what is looked up."""
    model = read_model(arch_file(architecture))
    plan = make_plan(model, machine(64), Wishes(context=512), engine(model))
    told = forecast(model, plan, RATES)
    for figures in (told.decode, told.prefill, told.first_token):
        assert 0 < figures.low <= figures.expected <= figures.high < math.inf
    work = work_of(model, plan.settings)
    counted = sum(m.weights * m.share for m in work.matrices)
    assert counted == pytest.approx(model.active_parameters, rel=0.1)
    assert work.attending or any(work.state.values())


@pytest.mark.parametrize("window", [0, 128])
def test_a_prompts_attention_goes_on_to_the_edges_of_tiles(window: int) -> None:
    """The mean over 1,024 queries after 1,024 others, counted tile by tile: all of a tile is
    computed as soon as one query of it looks at one token of it.
    """
    tile, before, tokens = 64, 1024, 1024
    counted = 0
    for first in range(before, before + tokens, tile):
        oldest = max(0, first - window + 1) if window else 0
        counted += tile * (first // tile + 1 - oldest // tile) * tile
    layer = Attending("CPU", heads=1, widths=1, cached=1, window=window)
    told = layer.sees(before + (tokens - 1) / 2, tile)
    assert told == pytest.approx(counted / tokens, rel=0.01)
    assert told > layer.sees(before + (tokens - 1) / 2)


def test_weighing_an_experts_values_takes_a_prompt_its_time() -> None:
    """Eight experts' outputs in each layer but the last, which goes on with one token."""
    model = published("qwen3-30b-a3b")
    work = work_of(model, EngineSettings(context=512))
    assert work.weighed == {"CPU": 47 * 8 * 2048}
    whole = work_of(published("gpt-oss-20b"), EngineSettings(context=512))
    assert whole.weighed == {"CPU": 24 * 4 * 2880}


def test_one_run_moves_the_forecast_and_narrows_its_range() -> None:
    """Measured 1.2 times slower: so is the forecast; the range is narrower and contains it."""
    before = forecast(MODEL, resident(), RATES)
    after = forecast(MODEL, resident(), RATES, decode=correction([1.2], []))
    assert after.decode.expected == pytest.approx(before.decode.expected / 1.2)
    assert width(after) < width(before)
    assert after.prefill == before.prefill


def width(told: Forecast) -> float:
    return told.decode.high / told.decode.low


def test_what_runs_teach() -> None:
    """Nothing from nothing; the median of the same model; others move by a part of their median.

    One disturbed run changes nothing, and scatter keeps the range wide.
    """
    assert correction([], []) is None
    same = correction([1.1, 1.0, 0.9], [3.0])
    assert same is not None and same.factor == 1.0 and same.spread == pytest.approx(1.14, abs=0.01)
    assert correction([1.0, 900.0], []) == correction([1.0], [])
    moved = correction([], [1.5] * 3)
    assert moved is not None and 1 < moved.factor < 1.5 and moved.spread is None
    more = correction([], [1.5] * 20)
    assert more is not None and moved.factor < more.factor < 1.5
    wild = correction([0.7, 1.4, 1.0], [])
    assert wild is not None and wild.spread is not None and wild.spread >= 1.4


def test_a_range_is_never_wider_for_having_run() -> None:
    """However much the runs scatter."""
    before = forecast(MODEL, resident(), RATES)
    after = forecast(MODEL, resident(), RATES, decode=Correction(1.0, 50.0))
    assert after.decode == Range(before.decode.low, before.decode.expected, before.decode.high)


def test_the_size_of_memory_is_what_decides_between_disk_and_not() -> None:
    """More RAM never makes the forecast slower."""
    speeds = [
        forecast(MODEL, planned(MODEL, machine(gib)), RATES).decode.expected
        for gib in (4, 6, 8, 10, 12, 64)
    ]
    assert speeds == sorted(speeds)
    assert MODEL.size > 9 * GIB


def test_a_long_context_comes_from_memory_for_every_tile_of_a_prompt() -> None:
    """Keys and values of 4,096 tokens of one layer fill the processor's caches, 8 MiB; of four
    times as many, three quarters are read anew for each head of a tile's queries."""
    work = work_of(published("qwen3-30b-a3b"), EngineSettings(context=512))
    assert work.far_rows("CPU", 4096, clock.NEAR_LAYER) == 0
    far = work.far_rows("CPU", 16384, clock.NEAR_LAYER)
    assert far == pytest.approx(48 * 2 * 32 * 16384 * 3 / 4)


def test_a_router_sorts_its_experts() -> None:
    """128 experts in seven steps each, in every layer."""
    work = work_of(published("qwen3-30b-a3b"), EngineSettings(context=512))
    assert work.sorting == {"CPU": pytest.approx(48 * 128 * 7)}


def test_rows_of_an_embedding_are_not_read_again() -> None:
    """Where RAM lacks less than the embedding takes, no weight is read again; where it lacks more,
    all are. The rest of the embedding's place has experts."""
    model, told = moe_model(dense_mib=100), []
    for ram in range(350, 400, 5):
        wishes = Wishes(context=4096, batch=512)
        plan = make_plan(model, machine(ram / 100), wishes, engine(model))
        if plan.paged:
            found = forecast(model, plan, RATES)
            told.append("of weights again" in found.why)
            assert told[-1] == (plan.paged > 200 * MIB)
            assert told[-1] == ("(0% of the experts" in found.why)
    assert set(told) == {True, False}
