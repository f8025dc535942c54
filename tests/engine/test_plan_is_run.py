"""What a plan says is what the engine has, layout by layout: bytes, devices, batches, offload."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localmoe.app.documents import plan_document
from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.cli.arguments import parse
from localmoe.cli.requests import plan_request
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Loaded
from localmoe.engine.rpc_serving import Server
from localmoe.facts.model import read_model
from localmoe.planning.memory import CPU
from localmoe.planning.work_buffer import work_buffer_of
from tests.archs.rpc_server import HOST, free_port

pytestmark = pytest.mark.process

GIB = 1 << 30
HERE = {
    "alone": [],
    "a longer context": ["--ctx", "2048"],
    "a small KV cache": ["--kv-type", "q8_0"],
    "weights in another order": ["--repack", "on"],
    "experts in the page cache": ["--experts-on", "disk", "--cache", "page"],
    "experts in private memory": ["--experts-on", "disk", "--cache-ram", "0.001"],
}
WITH_ONE = {
    "all on the device": [],
    "two layers' experts here": ["--n-cpu-moe", "2"],
    "all experts here": ["--experts-on", "ram"],
    "experts on disk": ["--experts-on", "disk"],
    "a few layers on the device": ["--gpu-layers", "2"],
    "one tensor here": ["--override", "blk\\.3\\.ffn_up_exps=CPU"],
    "a small KV cache there": ["--kv-type", "q8_0", "--experts-on", "ram:0-1"],
}
WITH_TWO = {"two devices": [], "two devices, experts here": ["--experts-on", "ram:0-1"]}
LAYOUTS = [
    pytest.param(options, workers, id=name)
    for workers, layouts in enumerate((HERE, WITH_ONE, WITH_TWO))
    for name, options in layouts.items()
]


@pytest.fixture(scope="module")
def servers(rpc_lib: Path) -> Iterator[list[Server]]:
    with Server(HOST, free_port(), 1, GIB) as one, Server(HOST, free_port(), 1, GIB) as two:
        yield [one, two]


@pytest.mark.parametrize(("options", "workers"), LAYOUTS)
def test_the_plan_is_what_is_loaded(
    options: list[str],
    workers: int,
    arch_file: Callable[..., Path],
    request: pytest.FixtureRequest,
) -> None:
    """Every figure of the plan's document that the engine can tell of is the engine's own."""
    path = arch_file("qwen3moe")
    arguments = ["plan", str(path), "--ctx", "512", *options]
    if workers:
        for server in request.getfixturevalue("servers")[:workers]:
            arguments += ["--remote", server.endpoint]
    asked = plan_request(parse(arguments))
    model = read_model(path)
    machine = find_machine(asked, hypothetical=False)
    plan = plan_for(model, machine, asked, hypothetical=False)
    with Engine(model, plan.settings) as engine:
        loaded = list(engine.load())[-1]
    assert isinstance(loaded, Loaded)

    told: Any = plan_document(model, machine, plan, None)["engine"]
    assert (loaded.context, loaded.batch, loaded.ubatch) == (
        told["context"],
        told["batch"],
        told["ubatch"],
    )
    on_devices = {entry.device for entry in loaded.memory.devices} - {CPU}
    assert on_devices == set(told["devices"])
    assert len(on_devices) == workers
    for device in on_devices:
        assert loaded.memory.on(device) == plan.memory.on(device)
    here, planned = loaded.memory.on(CPU), plan.memory.on(CPU)
    experts_here = any(row.experts != "gpu" for row in plan.layers)
    own = work_buffer_of(model).size(told["ubatch"], experts_on_host=experts_here)
    assert (here.kv, here.compute + own) == (planned.kv, planned.compute)
    assert plan.settings.repack == ("--repack" in options and engine_info().repacks)
    if plan.settings.repack:  # nothing is mapped, so that this is all that is taken
        assert here.weights == planned.weights
    regime = plan.settings.cache
    assert loaded.cache == regime == told["cache"]
    assert told["op_offload"]
