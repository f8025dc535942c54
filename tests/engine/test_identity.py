"""Through localmoe, greedy output is the plain engine's, token for token.

The reference (``tests/archs/plain.py``) is a loop over llama.cpp's own functions. It gets the same
batch boundaries, prefix history, threads and settings, since those alone change tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.devices import engine_info
from localmoe.engine.events import Finished, PrefillProgress, Request, Sampling, Token
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests.archs import ARCHITECTURES
from tests.archs.plain import plain_greedy
from tests.needs import missing

pytestmark = pytest.mark.process

SETTINGS = EngineSettings(context=512, batch=48, ubatch=48, threads=1, threads_batch=1)
GREEDY = Sampling(temperature=0)
FIRST = "A mixture of experts has many small networks and a router. " * 3
ANSWER_TOKENS = 12


class Recorder:
    """Runs requests and keeps the batch boundaries that the engine's memory was built with."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.boundaries: list[int] = []

    def ask(self, prompt: str, stable: int = 0) -> tuple[str, Finished]:
        request = Request(prompt, stable, max_tokens=ANSWER_TOKENS, sampling=GREEDY)
        text, starts = "", []
        for event in self.engine.generate(request):
            if isinstance(event, PrefillProgress):
                starts.append(event.done)
            elif isinstance(event, Token):
                text += event.text
            else:
                done = event
        reused = starts[0]
        self.boundaries = [b for b in self.boundaries if b < reused] + starts
        decoded = range(done.prompt_tokens, done.prompt_tokens + done.completion_tokens)
        self.boundaries += list(decoded)
        return text, done

    def splits(self, prompt_tokens: int) -> list[int]:
        return sorted({b for b in self.boundaries if 0 < b < prompt_tokens})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_two_turns_equal_the_plain_loop(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """A first answer, then one that reuses its KV prefix: both are the plain loop's tokens."""
    path = arch_file(architecture)
    with Engine(read_model(path), SETTINGS) as engine:
        list(engine.load())
        recorder = Recorder(engine)
        for prompt, stable in turns(recorder):
            text, done = recorder.ask(prompt, stable)
            reference = plain_greedy(
                path,
                prompt,
                done.completion_tokens,
                n_ctx=SETTINGS.context,
                n_batch=SETTINGS.batch,
                threads=1,
                splits=recorder.splits(done.prompt_tokens),
            )
            assert len(reference.prompt_tokens) == done.prompt_tokens
            assert text == reference.text
            assert done.completion_tokens == ANSWER_TOKENS or done.reason == "stop"


@pytest.mark.parametrize("architecture", ["qwen3moe", "deepseek2"])
def test_repacked_it_equals_llama_cpp_as_it_comes(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """Repacked weights have other rounding: the tokens are those of llama.cpp's own default."""
    if not engine_info().repacks:
        missing("an engine whose copies of weights can be used", expected=False)
    path = arch_file(architecture)
    settings = dataclasses.replace(SETTINGS, repack=True, load_mode="none")
    with Engine(read_model(path), settings) as engine:
        list(engine.load())
        recorder = Recorder(engine)
        text, done = recorder.ask(FIRST)
        reference = plain_greedy(
            path,
            FIRST,
            done.completion_tokens,
            n_ctx=SETTINGS.context,
            n_batch=SETTINGS.batch,
            threads=1,
            splits=recorder.splits(done.prompt_tokens),
            repack=True,
        )
    assert any("REPACK" in name for name in reference.buffers), reference.buffers
    assert text == reference.text


def turns(recorder: Recorder) -> itertools.chain[tuple[str, int]]:
    """First turn; the same again (as after /regen); a longer second turn."""
    stable = FIRST[:100]
    return itertools.chain(
        [(FIRST, len(stable)), (FIRST, len(stable)), (FIRST + "And what does it cost?", len(FIRST))]
    )


@pytest.mark.parametrize("architecture", ["qwen3moe", "qwen3next", "gpt-oss", "nemotron_h_moe"])
def test_prefix_is_reused(architecture: str, arch_file: Callable[[str], Path]) -> None:
    """A second turn prefills only what is new, on recurrent and sliding-window models too."""
    with Engine(read_model(arch_file(architecture)), SETTINGS) as engine:
        list(engine.load())
        recorder = Recorder(engine)
        _, first = recorder.ask(FIRST + "<|im_start|>assistant\n", len(FIRST))
        # The answer is dropped, as a template does that strips old reasoning.
        _, second = recorder.ask(FIRST + "Something else instead.", len(FIRST))
        assert first.reused_tokens == 0
        assert second.reused_tokens >= engine.count_tokens(FIRST) - 2


@pytest.mark.parametrize("architecture", ["qwen3moe", "qwen3next", "gpt-oss", "deepseek4"])
@pytest.mark.parametrize("during", [PrefillProgress, Token])
def test_identity_after_an_interrupt(
    architecture: str, during: type[PrefillProgress] | type[Token], arch_file: Callable[[str], Path]
) -> None:
    """An interrupted answer leaves a memory that the same prompt, asked again, can build on."""
    path = arch_file(architecture)
    with Engine(read_model(path), SETTINGS) as engine:
        list(engine.load())
        recorder = Recorder(engine)
        recorder.ask(FIRST[:90])
        longer = FIRST * 2 + "What is a router, and what is an expert?"
        seen = 0
        for event in engine.generate(Request(longer, len(FIRST), sampling=GREEDY)):
            seen += isinstance(event, during)
            if seen == 2:
                engine.cancel()
        assert isinstance(event, Finished)
        assert event.reason == "interrupted"
        again = Recorder(engine)
        text, done = again.ask(longer, len(FIRST))
        if done.reused_tokens:  # its history: the first turn's batches, then the second's
            start = event.reused_tokens
            edges = [b for b in recorder.boundaries if b < start]
            edges += range(start, event.prompt_tokens, SETTINGS.batch)
            again.boundaries += [b for b in edges if b < done.reused_tokens]
            if engine.count_tokens(longer[: len(FIRST)]) == done.reused_tokens:
                again.boundaries.append(done.reused_tokens)
        reference = plain_greedy(
            path,
            longer,
            done.completion_tokens,
            n_ctx=SETTINGS.context,
            n_batch=SETTINGS.batch,
            threads=1,
            splits=again.splits(done.prompt_tokens),
        )
        assert text == reference.text


def test_multi_part_file_equals_single(arch_file: Callable[..., Path]) -> None:
    """A model in three parts gives the tokens of the same model in one file."""
    texts = []
    for path in (arch_file("qwen3moe"), arch_file("qwen3moe", split=3)):
        with Engine(read_model(path), SETTINGS) as engine:
            list(engine.load())
            texts.append(Recorder(engine).ask(FIRST)[0])
    assert texts[0] == texts[1]
