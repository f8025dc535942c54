"""From what was asked to the runs to make, without making any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localmoe.bench.measurement import Measurement, asked, machine_for, schedule, wishes_for
from localmoe.bench.records import RESIDENT
from localmoe.bench.trials import changed_wishes, chosen_settings
from localmoe.bench.variants import Variant
from localmoe.bench.versus import Program
from localmoe.errors import UsageError
from localmoe.facts.hardware import Machine
from localmoe.facts.model import Model, read_model
from localmoe.planning.budget import ram_reserve
from localmoe.planning.plan import ExpertsOn, Wishes

MUCH = 1 << 40  # bytes
HERE = Machine("linux", "cpu", 2, 2, 1 << 34, 1 << 33, None, (), 1 << 40)
OTHER: dict[str, Any] = {
    "context": 4096, "type_k": "q8_0", "type_v": "q8_0", "threads": 3, "gpu_layers": 2,
    "n_cpu_moe": 1, "ram": 1 << 30, "vram": 1 << 30, "batch": 64,
    "experts_on": (ExpertsOn("ram", ((0, 1),)),), "overrides": (("exps", "CPU"),), "cache": "page",
    "cache_ram": 1 << 30, "experts": 1, "prefer_cached": 0.5, "prompt_cache": 1 << 20,
    "repack": "on",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Model:
    return read_model(arch_file("qwen3moe"))


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Wishes)])
def test_whatever_is_asked_of_the_plan_keeps_runs_apart(name: str) -> None:
    """Every part of a plan's request, new ones included; but the regime, which each run has."""
    changed = Measurement(dataclasses.replace(Wishes(), **{name: OTHER[name]}))
    assert (asked(changed) == asked(Measurement(Wishes()))) == (name == "cache")


def test_other_machines_and_predictions_keep_runs_apart_too() -> None:
    usual = Measurement(Wishes())
    two = dataclasses.replace(usual, remotes=("a:1", "b:2"))
    one = dataclasses.replace(usual, remotes=("a:1",))
    predicted = dataclasses.replace(usual, predicted=0.9)
    assert len({asked(each) for each in (usual, one, two, predicted)}) == 4
    assert asked(usual) == ""


def test_regimes_alternate_limit_by_limit(model: Model) -> None:
    """Everything in RAM where there is room for it, and with the first limit only."""
    wanted = Measurement(Wishes(), limits=(0.5, 1 << 30), regimes=("plain", "page"), runs=2)
    made = [(j.memory, j.repeat, j.regime) for j in schedule(wanted, model, MUCH).jobs]
    half = model.size // 2
    assert made == [
        (None, 0, RESIDENT), (half, 0, "plain"), (half, 0, "page"),
        (None, 1, RESIDENT), (half, 1, "plain"), (half, 1, "page"),
        *((1 << 30, repeat, regime) for repeat in (0, 1) for regime in ("plain", "page")),
    ]  # fmt: skip
    tight = schedule(wanted, model, model.size)
    assert all(job.regime != RESIDENT for job in tight.jobs)
    assert tight.limits == (half, 1 << 30)


def test_plain_mapping_is_one_of_the_regimes(model: Model) -> None:
    """Among the usual ones, and where it is asked for by name."""
    usual = schedule(Measurement(Wishes()), model, 0)
    assert list(dict.fromkeys(j.regime for j in usual.jobs)) == ["plain", "page", "private", "auto"]
    for regimes in (("page",), ("page", "plain")):
        chosen = schedule(Measurement(Wishes(), regimes=regimes, runs=1), model, 0)
        assert tuple(job.regime for job in chosen.jobs) == regimes
    with pytest.raises(UsageError, match="no regime mmap"):
        schedule(Measurement(Wishes(), regimes=("mmap",)), model, 0)


def test_what_each_run_asks_of_the_planner(model: Model) -> None:
    """Its regime on top of what was asked; a program runs as plain mapping would."""
    program = Program("llama-server", ("llama-server",))
    wanted = Measurement(
        Wishes(ram=7 << 30, threads=1), limits=(None, 1 << 30), regimes=("plain", "auto", "page"),
        runs=1, program=program, prompt_tokens=5000,
    )  # fmt: skip
    made = schedule(wanted, model, MUCH)
    found = [(job.regime, wishes_for(job, made)) for job in made.jobs]
    assert {wishes.threads for _, wishes in found} == {1}
    assert {wishes.context for _, wishes in found} == {5376}  # 5000 + 64 + some, in steps of 256
    assert [(regime, wishes.cache, wishes.ram) for regime, wishes in found] == [
        (RESIDENT, "auto", 7 << 30),
        ("plain", "off", 7 << 30),
        ("auto", "auto", 7 << 30),
        ("page", "page", 7 << 30),
        ("llama-server", "off", 7 << 30),
        ("plain", "off", 7 << 30),
        ("auto", "auto", 7 << 30),
        ("page", "page", 7 << 30),
        ("llama-server", "off", 7 << 30),
    ]


def test_a_run_is_planned_for_its_memory_group(model: Model) -> None:
    """As in a group of that size by itself: its reserve is left, and the cache may grow."""
    wanted = Measurement(Wishes(), limits=(None, 1 << 30), regimes=("auto",), runs=1)
    free, limited = (machine_for(job, HERE) for job in schedule(wanted, model, 0).jobs)
    assert free == HERE
    assert (limited.ram_total, limited.ram_available) == (1 << 30, 1 << 30)
    assert ram_reserve(limited) == 64 << 20


def test_what_a_trial_asks_of_the_planner() -> None:
    """A variant changes its own fields and no other; what was chosen is not varied."""
    wishes = Wishes(context=2048, batch=64)
    both = (Variant("threads", 1, 2), Variant("kv-type", "f16", "q8_0"))
    changed = changed_wishes(wishes, both)
    assert changed == dataclasses.replace(wishes, threads=2, type_k="q8_0", type_v="q8_0")
    assert chosen_settings(wishes) == {"batch"}
