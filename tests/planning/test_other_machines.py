"""Plans with workers: their memory is called theirs, and the weights go over the network once."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from localmoe.app.tiers import experts_place, experts_sentence
from localmoe.cli.fit.plan_screen import plan_screen
from localmoe.facts.bandwidth import DeviceRate
from localmoe.facts.hardware import Gpu, Machine
from localmoe.planning import clock
from localmoe.planning.placement import make_plan
from localmoe.planning.plan import Plan, Verdict, Wishes
from localmoe.planning.speed import forecast
from tests.planning.invented import GIB, MIB, engine, machine, moe_model
from tests.planning.rates import GPU_TYPE, RATES

MODEL = dataclasses.replace(moe_model(), paths=(Path("/models/invented.gguf"),))
ADDRESS = "box:50052"


def with_worker(ram: float, far: float, *vram: float) -> Machine:
    """``ram`` and GPUs here, and a worker that gives ``far`` GiB."""
    here = machine(ram, *vram)
    size = int(far * GIB)
    worker = Gpu(ADDRESS, size, size, True, "RPC0", "rpc", remote=ADDRESS)
    return dataclasses.replace(here, gpus=(worker, *here.gpus))


def planned(host: Machine) -> Plan:
    return make_plan(MODEL, host, Wishes(context=4096), engine(MODEL))


def shown(plan: Plan) -> str:
    stream = io.StringIO()
    told = forecast(MODEL, plan, RATES)
    Console(file=stream, width=160).print(plan_screen(MODEL, plan, told))
    return stream.getvalue().split("the same as llama.cpp flags")[0]


@pytest.mark.parametrize(
    ("host", "verdict", "words"),
    [
        (with_worker(64, 32), Verdict.GPU, "fits in the worker's memory\n"),
        (with_worker(64, 4), Verdict.GPU_RAM, "fits in the worker's memory and RAM\n"),
        (with_worker(2.5, 4), Verdict.GPU_RAM_DISK, "read from disk (worker, RAM and disk)"),
        (with_worker(64, 6, 6), Verdict.GPU, "fits in GPU and worker memory\n"),
        (machine(64, 32), Verdict.GPU, "fits in GPU memory\n"),
        (machine(64, 4), Verdict.GPU_RAM, "fits in GPU memory and RAM\n"),
    ],
)
def test_a_workers_memory_is_no_gpus(host: Machine, verdict: Verdict, words: str) -> None:
    """The whole screen of a plan: "GPU" is in it only where there is one."""
    plan = planned(host)
    assert plan.verdict is verdict
    text = shown(plan)
    assert words in text
    for each in (text, experts_place(plan), experts_sentence(plan)):
        if host.gpus[-1].remote is not None:
            assert "GPU" not in each
        if host.gpus[0].remote is None:
            assert "worker" not in each


def test_the_first_load_sends_the_weights() -> None:
    """Their bytes at the speed of the network, hashed before; later loads hash them alone."""
    plan = planned(with_worker(64, 32))
    slow = DeviceRate("RPC0", {"Q8_0": GPU_TYPE}, 1e-5, 1e-3, 100e6, 100e6)
    rates = dataclasses.replace(RATES, devices=(slow,))
    first, later = (forecast(MODEL, plan, rates, sent=sent) for sent in (False, True))
    there = MODEL.size - 200 * MIB  # the embedding is looked up here
    assert (first.sent_bytes, later.sent_bytes) == (there, 0)
    more = first.first_token.expected - later.first_token.expected
    assert more == pytest.approx(there / 100e6)
    here = forecast(MODEL, planned(machine(64)), rates)
    timed = clock.Clock(MODEL, planned(machine(64)), rates, None)
    assert here.sent_bytes == 0
    assert timed.start().expected == timed.start(sent=True).expected
    assert first.loaded_first_token == later.loaded_first_token
