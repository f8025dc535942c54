"""Real runs of generated models: every regime finishes, and writes the same."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from localmoe.bench.records import RESIDENT, Job, Run
from localmoe.bench.runner import Start, prompt_of, run, spans_to_time
from localmoe.facts.model import Model, Role, read_model
from localmoe.planning.memory import EngineSettings
from tests.needs import missing

pytestmark = pytest.mark.process

MIB = 1 << 20
SETTINGS = EngineSettings(context=512, batch=64, ubatch=64, threads=1)


@pytest.fixture(scope="module")
def model(arch_file: Callable[..., Path]) -> Model:
    return read_model(arch_file("qwen3moe"))


def job(model: Model, regime: str, memory: int | None = None) -> Job:
    return Job(model.name, model.size, regime, memory, 0, prompt_tokens=24, steps=12)


def made(model: Model, regime: str, settings: EngineSettings, **env: str) -> Run:
    return run(job(model, regime), model, Start(settings, environment=env))


def test_regimes_write_the_same(model: Model) -> None:
    """Plain llama.cpp, page and private: equal texts, and figures for all steps."""
    small = 3 * model.expert_bytes // 4
    runs = [
        made(model, RESIDENT, SETTINGS),
        made(model, "plain", replace(SETTINGS, read_ahead=False), LOCALMOE_STOCK_MMAP="1"),
        made(model, "page", replace(SETTINGS, cache="page", read_ahead=False)),
        made(model, "private", replace(SETTINGS, cache="private", cache_bytes=small)),
    ]
    assert [r.error for r in runs] == [""] * 4
    assert len({r.digest for r in runs}) == 1
    for each in runs:
        assert each.ticks[-1].tokens == 13
        assert each.first_s >= each.ttft_s > 0 and each.load_s > 0
        assert each.anonymous_peak > 0 and each.disk > 0
        assert [t.seconds for t in each.ticks] == sorted(t.seconds for t in each.ticks)
    assert runs[3].hits is not None and runs[3].misses is not None
    moe = sum(1 for layer in model.layers if layer.expert_count)
    used = max(layer.expert_used for layer in model.layers)
    assert runs[3].hits + runs[3].misses == 12 * moe * used


def test_reading_is_seen(model: Model, tmp_path: Path) -> None:
    """A cold start fetches the file, whoever reads it."""
    own = shutil.copy(model.paths[0], tmp_path)  # other tests may have the shared one mapped
    model = read_model(Path(own))
    cold = made(model, "plain", replace(SETTINGS, read_ahead=False), LOCALMOE_STOCK_MMAP="1")
    if cold.ticks[0].read == 0:
        missing("the system does not tell what a process reads, or nothing is on a disk")
    assert cold.ticks[0].read > model.expert_bytes // 2


def test_what_goes_wrong_is_told_in_the_run(model: Model) -> None:
    """An engine that refuses is a run with an error, so that the others go on."""
    long = replace(job(model, "plain"), prompt_tokens=600)
    failed = run(long, model, Start(SETTINGS))
    assert "the context 512" in failed.error
    assert failed.ticks == ()


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_prompts_have_the_asked_length(tokens: int) -> None:
    """With one token per word, or two, or one per letter."""
    for count in (lambda s: len(s.split()), lambda s: 2 * len(s.split()), len):
        text = prompt_of(tokens, count)
        assert count(text) in (tokens, tokens + 1) or len(text.split()) == 1


def test_the_disk_is_measured_with_experts(model: Model, arch_file: Callable[..., Path]) -> None:
    """Each span is one expert of one tensor; together they are all of them. Else: whole files."""
    spans = spans_to_time(model)
    assert sum(span.length for span in spans) == model.expert_bytes
    tensors = [t for t in model.tensors if t.role is Role.ROUTED_EXPERT]
    assert len(spans) == sum(tensor.shape[-1] for tensor in tensors)
    assert {span.offset for span in spans} >= {t.offset for t in tensors}
    dense = read_model(arch_file("llama-dense"))
    assert [(s.offset, s.length) for s in spans_to_time(dense)] == [(0, dense.size)]
