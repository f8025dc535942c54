"""A real device: a GPU, or without one Mesa's software driver, with memory and kernels of its own.

Needs a module (``localmoe engine install vulkan``; LOCALMOE_DEVICE_MODULE names its file) and its
driver. Of Mesa 25 or newer: Debian 13's, or that of bookworm-backports. Mesa 22.3 of Debian 12
corrupts its memory in batches through MUL_MAT_ID. How fast a software device is means nothing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.app.engine_builds import install_file
from localmoe.app.machine import find_machine
from localmoe.app.plans import plan_for
from localmoe.cli.arguments import parse
from localmoe.cli.requests import plan_request
from localmoe.engine import modules
from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Finished, Loaded, PrefillProgress, Request, Sampling, Token
from localmoe.errors import LocalmoeError
from localmoe.facts.model import read_model
from localmoe.planning.cache import needed_budget
from localmoe.planning.memory import EngineSettings
from localmoe.planning.plan import Plan
from localmoe.planning.prefill import stage_bytes
from tests.archs.plain import plain_greedy
from tests.archs.rpc_server import rpc_server
from tests.needs import missing

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

DEVICES = {"vulkan": "Vulkan0", "cuda": "CUDA0"}
MODULE = os.environ.get("LOCALMOE_DEVICE_MODULE", "")
DEVICE = DEVICES["cuda" if "cuda" in Path(MODULE).name else "vulkan"]
ENVIRONMENT = {  # llama.cpp leaves a software device out unless it is named
    "GGML_VK_VISIBLE_DEVICES": "0",
    "GGML_VK_DISABLE_F16": "1",  # as llama.cpp's own tests of this device do
    "GGML_VK_DISABLE_COOPMAT": "1",
}
PROMPT = "The first question is"
LONG = "A mixture of experts has many small networks and a router. " * 12
GREEDY = Sampling(temperature=0.0)
PATIENCE = 900.0  # seconds; the first use compiles shaders, and this machine may be busy
ARCHITECTURES = ("qwen3moe", "deepseek2", "gpt-oss")
LAYOUTS = {
    "all on the device": ([], None),
    "experts in RAM": (["--experts-on", "ram"], r"ffn_.*_exps"),
    "experts on disk": (["--experts-on", "disk", "--cache-ram", "0.001"], r"ffn_.*_exps"),
    "experts of two layers here": (["--experts-on", "ram:0-1"], r"blk\.[01]\.ffn_.*_exps"),
}


@pytest.fixture(scope="module")
def module() -> Iterator[Path]:
    """The backend, installed in the tests' home; skips where there is none, or no driver."""
    if not MODULE:
        missing("no backend's module: set LOCALMOE_DEVICE_MODULE to its file", expected=False)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        name = install_file(Path(MODULE)).name
        try:
            devices = [gpu.device for gpu in engine_info().gpus]
        except LocalmoeError as error:
            devices = [error.message]
        if DEVICE not in devices:
            modules.remove(name)
            missing(f"no driver of the device (Mesa: mesa-vulkan-drivers 25 or newer): {devices}")
        yield modules.path_of(name)
        modules.remove(name)


def planned(path: Path, *options: str) -> Plan:
    asked = plan_request(parse(["run", str(path), "--ctx", "512", "-t", "1", *options]))
    machine = find_machine(asked, hypothetical=False)
    return plan_for(read_model(path), machine, asked, hypothetical=False)


def text_of(engine: Engine, prompt: str, tokens: int = 12) -> str:
    request = Request(prompt, max_tokens=tokens, sampling=GREEDY)
    return "".join(event.text for event in engine.generate(request) if isinstance(event, Token))


def loaded(engine: Engine) -> Loaded:
    last = list(engine.load())[-1]
    assert isinstance(last, Loaded)
    return last


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_placed_as_planned_and_the_tokens_of_plain_llama_cpp(
    architecture: str, layout: str, module: Path, arch_file: Callable[..., Path]
) -> None:
    """On the same device; the engine's own report of memory is that of the plan."""
    path = arch_file(architecture)
    options, here = LAYOUTS[layout]
    plan = planned(path, *options)
    assert plan.settings.devices == (DEVICE,)
    with Engine(read_model(path), plan.settings) as engine:
        found = loaded(engine)
        text = text_of(engine, PROMPT)
    assert found.memory.on(DEVICE) == plan.memory.on(DEVICE)
    assert found.memory.on(DEVICE).weights > 0 and found.memory.on(DEVICE).kv > 0
    assert found.cache == plan.settings.cache
    plain = plain_greedy(
        path,
        PROMPT,
        12,
        timeout=PATIENCE,
        n_gpu_layers=99,
        experts_on_cpu=here,
        module=str(module),
    )
    assert DEVICE in plain.devices
    assert text == plain.text


@pytest.mark.parametrize("layout", ["all on the device", "experts in RAM"])
def test_a_long_prompt(layout: str, module: Path, arch_file: Callable[..., Path]) -> None:
    """Batches large enough for the device to compute with experts that it does not hold."""
    path = arch_file("qwen3moe")
    options, here = LAYOUTS[layout]
    plan = planned(path, *options)
    assert plan.settings.op_offload
    with Engine(read_model(path), plan.settings) as engine:
        loaded(engine)
        text = text_of(engine, LONG)
    assert text == plain_text(path, LONG, plan.settings, here, module)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("memory", ["layers", "stages", "mapping", "page"])
def test_a_long_prompt_with_experts_on_disk(
    memory: str, architecture: str, module: Path, arch_file: Callable[..., Path]
) -> None:
    """The device multiplies by experts that come from the disk: into their places where two layers
    fit, else projection by projection, else from the mapping. The words are those of llama.cpp with
    all of them in RAM; what is read for a prompt is read by the cache.
    """
    path = arch_file(architecture)
    model = read_model(path)
    how = ["--cache", "page"] if memory == "page" else ["--cache-ram", "0.5"]
    settings = planned(path, "--experts-on", "disk", *how).settings
    assert settings.op_offload and settings.devices == (DEVICE,)
    layers = [layer.index for layer in model.layers if layer.expert_count]
    one, whole = needed_budget(model, layers, 1), needed_budget(model, layers, settings.ubatch)
    budgets = {"layers": 2 * whole, "stages": stage_bytes(model, layers) + one, "mapping": one}
    if memory in budgets:
        settings = dataclasses.replace(settings, cache="private", cache_bytes=budgets[memory])
    with Engine(model, settings) as engine:
        assert loaded(engine).cache == settings.cache
        text = text_of(engine, LONG)
        *_, last = engine.generate(Request("Now " + LONG, max_tokens=1, sampling=GREEDY))
    assert isinstance(last, Finished) and last.cache is not None
    if memory == "stages" or (memory == "layers" and settings.cache_bytes < model.expert_bytes):
        assert last.cache.bytes_read > 0.5 * model.expert_bytes
    assert text == plain_text(path, LONG, settings, r"ffn_.*_exps", module)


def plain_text(
    path: Path, prompt: str, settings: EngineSettings, here: str | None, module: Path
) -> str:
    """llama.cpp's own greedy words with the same batches; ``here``: tensors in host memory."""
    return plain_greedy(
        path,
        prompt,
        12,
        timeout=PATIENCE,
        n_batch=settings.batch,
        n_ubatch=settings.ubatch,
        n_gpu_layers=99,
        experts_on_cpu=here,
        module=str(module),
    ).text


def test_a_conversation_is_kept_and_restored(module: Path, arch_file: Callable[..., Path]) -> None:
    """Its state comes from the device, and goes back there."""
    path = arch_file("qwen3moe")
    model, plan = read_model(path), planned(path)
    kept = "talk"
    first = Request(LONG, max_tokens=8, sampling=GREEDY)
    with Engine(model, plan.settings) as engine:
        loaded(engine)
        answer = "".join(e.text for e in engine.generate(first) if isinstance(e, Token))
        assert engine.keep(kept) > 0
        more = text_of(engine, LONG + answer + " and")
    with Engine(model, plan.settings) as engine:
        loaded(engine)
        assert engine.resume(kept) > 0
        events = list(
            engine.generate(Request(LONG + answer + " and", max_tokens=12, sampling=GREEDY))
        )
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert end.reused_tokens > 0
    assert "".join(event.text for event in events if isinstance(event, Token)) == more


@pytest.mark.parametrize("layout", ["all on the device", "experts on disk"])
def test_interrupted_in_prompt_and_answer(
    layout: str, module: Path, arch_file: Callable[..., Path]
) -> None:
    """The next answer is what it would have been."""
    path = arch_file("qwen3moe")
    options, _ = LAYOUTS[layout]
    plan = planned(path, *options, "--batch", "64")
    with Engine(read_model(path), plan.settings) as engine:
        loaded(engine)
        expected = text_of(engine, PROMPT)
        for kind in (PrefillProgress, Token):
            for event in engine.generate(Request(LONG, max_tokens=100, sampling=GREEDY)):
                if isinstance(event, kind):
                    engine.cancel()
        assert text_of(engine, PROMPT) == expected


def test_beside_a_worker(module: Path, rpc_lib: Path, arch_file: Callable[..., Path]) -> None:
    """Two devices of two backends; both hold what the plan says, with llama.cpp's words."""
    path = arch_file("qwen3moe")
    with rpc_server(ram=1 << 30) as endpoint:
        plan = planned(path, "--remote", endpoint)
        assert set(plan.settings.devices) == {"RPC0", DEVICE}
        with Engine(read_model(path), plan.settings) as engine:
            found = loaded(engine)
            text = text_of(engine, PROMPT)
        plain = plain_greedy(
            path,
            PROMPT,
            12,
            timeout=PATIENCE,
            n_gpu_layers=99,
            tensor_split=list(plan.settings.tensor_split),
            module=str(module),
            rpc_library=str(rpc_lib),
            rpc_endpoint=endpoint,
        )
    for device in ("RPC0", DEVICE):
        assert found.memory.on(device) == plan.memory.on(device)
        assert found.memory.on(device).weights > 0
    assert text == plain.text
