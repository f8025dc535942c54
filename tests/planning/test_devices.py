"""Several devices, parts of layers, and what people wish, on invented machines."""

from __future__ import annotations

import dataclasses

import pytest

from localmoe.errors import UsageError
from localmoe.facts.hardware import Gpu, Machine
from localmoe.facts.model import Model
from localmoe.planning.memory import CPU, EngineSettings
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import ExpertsOn, Plan, Verdict, Wishes
from tests.planning.invented import GIB, MIB, engine, machine, moe_model


def plan(model: Model, box: Machine, **wishes: object) -> Plan:
    return make_plan(model, box, Wishes(**wishes), engine(model))  # type: ignore[arg-type]


def on_gpu(result: Plan, device: str) -> int:
    return result.memory.on(device).total


def test_a_layer_is_split_by_its_tensors() -> None:
    """What a whole layer leaves free takes single tensors of the next one, on each device."""
    model = moe_model(layers=24, parts=3)
    result = plan(model, machine(32, 5.3, 3.9), context=8192)
    one_layer = model.layers[0].expert_bytes
    for device in ("GPU0", "GPU1"):
        rows = [row for row in result.layers if row.device == device]
        split = [row for row in rows if 0 < row.experts_gpu < row.expert_bytes]
        assert len(split) == 1, "one layer at most is split"
        assert split[0].experts_gpu in (one_layer // 3, 2 * one_layer // 3)
        assert split[0].experts == "ram"
        room = {"GPU0": 5.3, "GPU1": 3.9}[device] * GIB - 256 * MIB
        assert room - one_layer // 3 < on_gpu(result, device) <= room


def test_rows_add_up() -> None:
    """Bytes per tier of all rows are the plan's, down to the layer that RAM keeps in part."""
    model = moe_model(layers=48, parts=3)
    result = plan(model, machine(6, 6), context=8192)
    assert result.verdict is Verdict.GPU_RAM_DISK
    assert sum(row.experts_disk for row in result.layers) == result.tiers.disk
    for row in result.layers:
        assert row.experts_gpu + row.experts_ram + row.experts_disk == row.expert_bytes
    assert sum(row.experts_gpu for row in result.layers) < on_gpu(result, "GPU0")


@pytest.mark.parametrize("cards", [(12, 2), (2, 12), (3, 3, 3, 3), (20, 8, 6)])
def test_unequal_cards_are_all_filled(cards: tuple[int, ...]) -> None:
    """The bytes on several cards are within one tensor per card of what they can give."""
    model = moe_model(layers=96, parts=3)
    result = plan(model, machine(64, *cards), context=8192)
    assert result.verdict is Verdict.GPU_RAM
    tensor = model.layers[0].expert_bytes // 3
    for index, size in enumerate(cards):
        room = size * GIB - max(size * GIB // 32, 256 * MIB)
        assert room - tensor < on_gpu(result, f"GPU{index}") <= room


def test_what_fits_in_all_cards_together_is_dealt_so_that_it_does() -> None:
    """Proportional shares would overfill a card; layers are dealt anew before experts leave."""
    model = moe_model(layers=24, embedding_mib=1500)  # the output matrix weighs on one card
    even = EngineSettings(8192, devices=("GPU0", "GPU1"), gpu_layers=-1)
    assert engine(model)(even).on("GPU1").total > 6.2 * GIB
    result = plan(model, machine(32, 6.45, 6.45), context=8192)
    assert result.verdict is Verdict.GPU
    assert result.settings.overrides == ()


def test_a_card_too_small_for_its_share_is_left_out() -> None:
    """A card that cannot hold the buffers of one layer does not drag the others down."""
    model = moe_model(dense_mib=60)
    result = plan(model, machine(32, 16, 0.6), context=8192)
    assert result.settings.devices == ("GPU0",)
    assert {row.dense for row in result.layers} == {"gpu"}


def gpu(device: str, gib: float, **more: object) -> Gpu:
    return Gpu(device, int(gib * GIB), int(gib * GIB), True, device, "x", **more)  # type: ignore[arg-type]


def test_an_integrated_gpu_is_used_only_where_there_is_no_other() -> None:
    """As llama.cpp chooses; a worker's device does not count as another."""
    integrated, card = gpu("IGPU0", 12, unified=True), gpu("GPU0", 8)
    worker = gpu("RPC0", 8, remote="10.0.0.2:50052")
    model = moe_model()

    def devices(*gpus: Gpu) -> tuple[str, ...]:
        return plan(model, dataclasses.replace(machine(24), gpus=gpus)).settings.devices

    assert devices(integrated) == ("IGPU0",)
    assert devices(integrated, card) == ("GPU0",)
    assert devices(integrated, worker) == ("RPC0", "IGPU0")
    assert devices(card, worker) == ("RPC0", "GPU0"), "the last device computes the output"


def test_workers_are_part_of_the_settings() -> None:
    """The engine is told where the devices are that the plan uses; without them, nothing."""
    worker = gpu("RPC0", 6, remote="10.0.0.2:50052")
    box = dataclasses.replace(machine(8), gpus=(worker,))
    assert plan(moe_model(), box).settings.remotes == ("10.0.0.2:50052",)
    assert plan(moe_model(), box, gpu_layers=0).settings.remotes == ()


def test_a_worker_that_is_not_needed_is_told() -> None:
    """Where this machine's memory is enough, the advice says so."""
    worker = gpu("RPC0", 6, remote="10.0.0.2:50052")
    enough = dataclasses.replace(machine(24), gpus=(worker,))
    assert any("without --remote" in line for line in plan(moe_model(), enough).advice)
    short = dataclasses.replace(machine(8), gpus=(worker,))
    assert not any("without --remote" in line for line in plan(moe_model(), short).advice)


def test_experts_on_is_obeyed_layer_by_layer() -> None:
    """Named layers live where they were wished; the planner decides about the others."""
    wishes = (
        ExpertsOn("ram"),
        ExpertsOn("gpu", ((20, 23),)),
        ExpertsOn("disk", ((0, 3), (10, 10))),
    )
    result = plan(moe_model(), machine(32, 8), experts_on=wishes)
    tiers = {row.index: row.experts for row in result.layers}
    assert {tiers[i] for i in range(20, 24)} == {"gpu"}
    assert {tiers[i] for i in (0, 1, 2, 3, 10)} == {"disk"}
    assert {tiers[i] for i in (4, 9, 11, 19)} == {"ram"}
    assert result.tiers.disk == 5 * moe_model().layers[0].expert_bytes
    assert "as asked" in result.reason and not result.settings.read_ahead


def test_experts_on_disk_leaves_ram_free() -> None:
    """Experts that shall be read from the disk take only the RAM of their cache."""
    wish = {"experts_on": (ExpertsOn("disk"),), "cache_ram": 2 * GIB}
    free, asked = plan(moe_model(), machine(16)), plan(moe_model(), machine(16), **wish)
    assert (free.verdict, asked.verdict) == (Verdict.RAM, Verdict.RAM_DISK)
    assert (asked.cache.regime, asked.cache.budget) == ("private", 2 * GIB)
    saved = free.memory.compute - asked.memory.compute  # a small cache wants small batches
    assert free.tiers.ram - asked.tiers.ram == moe_model().expert_bytes - 2 * GIB + saved


@pytest.mark.parametrize(
    ("box", "wishes", "reason", "advice"),
    [
        (machine(32, 4), {"gpu_layers": -1}, "on GPU0 it would take 10.0 GiB", "--gpu-layers "),
        (machine(32, 4), {"gpu_layers": -1}, "the device can give 3.8 GiB", "--n-cpu-moe "),
        (machine(32, 4), {"n_cpu_moe": 2}, "on GPU0 it would take", "it fits with --n-cpu-moe"),
        (machine(32), {"experts_on": (ExpertsOn("gpu"),)}, "no GPU to use", "without --experts-on"),
        (machine(32, 4), {"experts_on": (ExpertsOn("gpu"),)}, "can give 3.8 GiB", "--experts-on"),
        (machine(6), {"experts_on": (ExpertsOn("ram"),)}, "9.0 GiB of experts are to be", "fits"),
        (machine(32, 4), {"overrides": (("exps", "GPU0"),)}, "on GPU0 it", "without --override"),
    ],
)
def test_an_impossible_wish_gets_its_numbers(
    box: Machine, wishes: dict[str, object], reason: str, advice: str
) -> None:
    """Refused with the bytes that make it so, and with how much of it could be had."""
    result = plan(moe_model(), box, context=8192, **wishes)
    assert result.verdict is Verdict.NO
    assert reason in result.reason
    assert any(advice in line for line in result.advice), result.advice


def test_what_would_fit_of_a_wish_is_true() -> None:
    """The advised number of layers fits, and one more does not."""
    model, box = moe_model(), machine(32, 4)
    (line, *_) = plan(model, box, context=8192, gpu_layers=-1).advice
    most = int(line.split()[-1])
    assert plan(model, box, context=8192, gpu_layers=most).verdict.fits
    assert not plan(model, box, context=8192, gpu_layers=most + 1).verdict.fits
    line = next(a for a in plan(model, box, context=8192, n_cpu_moe=0).advice if "moe" in a)
    least = int(line.split()[-1])
    assert plan(model, box, context=8192, n_cpu_moe=least).verdict.fits
    assert not plan(model, box, context=8192, n_cpu_moe=least - 1).verdict.fits


def test_overrides_come_before_every_rule() -> None:
    """A tensor that the user sends somewhere is there, whatever the planner would do."""
    model = moe_model()
    result = plan(model, machine(32, 24), overrides=((r"blk\.3\..*exps", "cpu"),))
    assert result.settings.overrides[0] == (r"blk\.3\..*exps", CPU)
    assert [row.index for row in result.layers if row.experts == "ram"] == [3]


def test_wishes_for_what_is_not_there() -> None:
    """An unknown device or layer is a usage error that names what there is."""
    with pytest.raises(UsageError) as caught:
        plan(moe_model(), machine(16, 8), overrides=(("exps", "CUDA7"),))
    assert caught.value.hint == "the devices here are GPU0, CPU"
    with pytest.raises(UsageError) as caught:
        plan(moe_model(), machine(16), experts_on=(ExpertsOn("ram", ((90, 99),)),))
    assert caught.value.hint == "layers with experts: 0 to 23"


def test_more_experts_than_there_are() -> None:
    """Refused with their number: llama.cpp would end the process and the file be blamed."""
    model = moe_model(experts=16, used=2)
    with pytest.raises(UsageError, match="16 experts"):
        make_plan(model, machine(32), Wishes(experts=17), engine(model))
    assert make_plan(model, machine(32), Wishes(experts=16), engine(model)).verdict.fits


def test_gpu_layers_without_a_gpu_changes_nothing_and_says_so() -> None:
    """People type -ngl 99 by habit; it is no reason to refuse."""
    result = plan(moe_model(), machine(32), gpu_layers=99)
    assert result.verdict is Verdict.RAM
    assert any("--gpu-layers changes nothing" in line for line in result.advice)


def test_a_context_that_keeps_the_disk_out_is_told() -> None:
    """Where a smaller context or KV type would do, it is named, and it is true."""
    model = moe_model(expert_mib=1.5)
    box = machine(7.6)
    result = plan(model, box, context=32768)
    assert result.verdict is Verdict.RAM_DISK
    line = next(a for a in result.advice if "--ctx" in a)
    assert plan(model, box, context=int(line.split()[-1])).verdict is Verdict.RAM
