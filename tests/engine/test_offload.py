"""A device multiplies large batches by experts that neither it nor RAM can hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.app.engine_builds import install_file
from localmoe.engine import modules
from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, PrefillProgress, Request, Sampling, Token
from localmoe.facts.model import Model, read_model
from localmoe.planning.cache import needed_budget
from localmoe.planning.layout import experts_to_host
from localmoe.planning.memory import EngineSettings
from localmoe.planning.prefill import stage_bytes
from tests.archs.plain import plain_greedy
from tests.engine.small_modules import compiled

pytestmark = pytest.mark.process

DEVICE = "CUDA0"
ARCHITECTURES = ("qwen3moe", "deepseek2", "gpt-oss")
BATCH = 64
GREEDY = Sampling(temperature=0.0)
LONG = "A mixture of experts has many small networks and a router. " * 12
MEMORY = ("layers", "stages", "mapping", "page")


@pytest.fixture(scope="session")
def lent(shared: Path) -> Path:
    """The lent device's backend, compiled against the installed engine."""
    return compiled("lent_device", shared)


@pytest.fixture
def device(lent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The lent device, installed."""
    monkeypatch.setenv("LOCALMOE_HOME", str(tmp_path))
    install_file(lent)
    yield modules.path_of("cuda")
    modules.remove("cuda")


def settings_for(model: Model, memory: str) -> EngineSettings:
    """Dense weights on the device; experts on the disk, with memory for two layers', for two
    projections of one, for a token's, or in the page cache."""
    layers = [layer.index for layer in model.layers if layer.expert_count]
    one = needed_budget(model, layers, 1)
    budgets = {
        "layers": 2 * needed_budget(model, layers, BATCH),
        "stages": stage_bytes(model, layers) + one,
        "mapping": one,
    }
    return EngineSettings(
        context=512,
        batch=BATCH,
        ubatch=BATCH,
        devices=(DEVICE,),
        gpu_layers=-1,
        overrides=experts_to_host(layers),
        read_ahead=False,
        cache="private" if memory in budgets else "page",
        cache_bytes=budgets.get(memory, 0),
        threads=1,
        threads_batch=1,
    )


def answer(engine: Engine, prompt: str, tokens: int = 12) -> tuple[str, Finished]:
    request = Request(prompt, max_tokens=tokens, sampling=GREEDY, ignore_end=True)
    events = list(engine.generate(request))
    done = events[-1]
    assert isinstance(done, Finished)
    return "".join(event.text for event in events if isinstance(event, Token)), done


def loaded(engine: Engine) -> Loaded:
    last = list(engine.load())[-1]
    assert isinstance(last, Loaded)
    return last


def plain(path: Path, module: Path) -> str:
    """llama.cpp on the same device, with all experts in RAM."""
    return plain_greedy(
        path,
        LONG,
        12,
        n_batch=BATCH,
        n_gpu_layers=99,
        experts_on_cpu=r"ffn_.*_exps",
        module=str(module),
    ).text


@pytest.mark.parametrize("refused", ["", "ffn_down"])
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_words_are_llama_cpps(
    architecture: str,
    memory: str,
    refused: str,
    device: Path,
    arch_file: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the experts come, and also where the device leaves a projection to the processor.
    The cache reads what is copied: while a prompt is read, far more than the last layer's experts,
    which are for one token and the processor.
    """
    if refused:
        monkeypatch.setenv("LENT_REFUSES", refused)
    path = arch_file(architecture)
    model = read_model(path)
    settings = settings_for(model, memory)
    with Engine(model, settings) as engine:
        assert loaded(engine).memory.on(DEVICE).weights > 0
        first, _ = answer(engine, LONG)
        _, done = answer(engine, "Now " + LONG, 1)
    regime = "page" if memory == "page" else "private"
    assert done.cache is not None and done.cache.regime == regime
    if memory == "stages" or (memory == "layers" and settings.cache_bytes < model.expert_bytes):
        assert done.cache.bytes_read > 0.5 * model.expert_bytes
    assert first == plain(path, device)


def test_an_interrupt_in_a_batch_there(device: Path, arch_file: Callable[..., Path]) -> None:
    """It ends the batch, whatever the device makes of it; the next answer is the same as ever."""
    path = arch_file("qwen3moe")
    model = read_model(path)
    with Engine(model, settings_for(model, "stages")) as engine:
        loaded(engine)
        answer(engine, "Now " + LONG)
        expected, _ = answer(engine, LONG)
        request = Request("Now " + LONG, max_tokens=4, sampling=GREEDY)
        reasons = []
        for event in engine.generate(request):
            if isinstance(event, PrefillProgress):
                engine.cancel()
            if isinstance(event, Finished):
                reasons.append(event.reason)
        assert reasons == ["interrupted"]
        assert answer(engine, LONG)[0] == expected


def test_switched_off(device: Path, arch_file: Callable[..., Path]) -> None:
    """The processor multiplies, to the same words: the device's kernels are its own."""
    path = arch_file("qwen3moe")
    model = read_model(path)
    told = []
    for offload in (True, False):
        settings = dataclasses.replace(settings_for(model, "layers"), op_offload=offload)
        with Engine(model, settings) as engine:
            loaded(engine)
            told.append(answer(engine, LONG)[0])
    assert told[0] == told[1]
