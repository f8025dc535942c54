"""Several conversations take turns on one model, and none is read twice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, Loaded, PrefillProgress, Request, Sampling, Token
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings
from tests.archs import ARCHITECTURES

pytestmark = pytest.mark.process

MIB = 1 << 20
SETTINGS = EngineSettings(
    context=1024, batch=48, ubatch=48, threads=1, threads_batch=1, prompt_cache=64 * MIB
)
MAIN = "A mixture of experts has many small networks and a router. " * 8
MORE = "And what does it cost? "
TITLE = "Write a title of three words. " * 6
AGENT = MAIN[: len(MAIN) // 2] + "Look for files whose names begin with a dot. " * 6
KINDS = ("qwen3moe", "gpt-oss", "qwen3next")  # plain, window, hybrid; the rest in the soak tests
WINDOWS = ("gpt-oss", "gemma4", "llama4")
LOST = 64  # tokens of a conversation that may be read again


def started(path: Path, **changes: object) -> Engine:
    engine = Engine(read_model(path), dataclasses.replace(SETTINGS, **changes))  # type: ignore[arg-type]
    list(engine.load())
    return engine


def ask(engine: Engine, prompt: str, stable: int = 0) -> tuple[str, Finished]:
    request = Request(prompt, stable, max_tokens=12, sampling=Sampling(temperature=0))
    text = ""
    for event in engine.generate(request):
        if isinstance(event, Token):
            text += event.text
    assert isinstance(event, Finished)
    return text, event


@pytest.mark.parametrize(
    "architecture",
    [*KINDS, *(pytest.param(a, marks=pytest.mark.soak) for a in ARCHITECTURES if a not in KINDS)],
)
def test_words_are_those_of_a_conversation_alone(
    architecture: str, arch_file: Callable[[str], Path]
) -> None:
    """With a title and a sub-agent between its turns; as much of it is reused as without them.

    But for a few tokens of a window's cells, which are not kept: where more has to be read again
    the batches are others, and so may be the words.
    """
    path = arch_file(architecture)

    def same(said: tuple[str, Finished], alone: tuple[str, Finished]) -> None:
        missing = alone[1].reused_tokens - said[1].reused_tokens
        assert missing == 0 or (0 < missing < 16 and architecture in WINDOWS)
        assert missing or said[0] == alone[0]

    with started(path, prompt_cache=0) as engine:
        first = ask(engine, MAIN, len(MAIN))
        prompt = MAIN + first[0] + MORE
        second = ask(engine, prompt, len(prompt))
        third = ask(engine, prompt + second[0] + MORE)
    with started(path, prompt_cache=0) as engine:
        title = ask(engine, TITLE, len(TITLE))
        title_more = ask(engine, TITLE + title[0] + MORE)
    with started(path) as engine:
        same(ask(engine, MAIN, len(MAIN)), first)
        same(ask(engine, TITLE, len(TITLE)), title)
        same(ask(engine, prompt, len(prompt)), second)
        ask(engine, AGENT)
        same(ask(engine, TITLE + title[0] + MORE), title_more)
        same(ask(engine, prompt + second[0] + MORE), third)


def test_without_a_budget_nothing_is_kept(arch_file: Callable[[str], Path]) -> None:
    """The counterpart: what another prompt overwrote is read again."""
    with started(arch_file("qwen3moe"), prompt_cache=0) as engine:
        ask(engine, MAIN)
        ask(engine, TITLE)
        assert ask(engine, MAIN + MORE)[1].reused_tokens < 8


def main_state(path: Path) -> tuple[int, int]:
    """Tokens of MAIN and its answer, and the bytes of their state."""
    with Engine(read_model(path), SETTINGS) as engine:
        loaded = list(engine.load())[-1]
        assert isinstance(loaded, Loaded)
        tokens = engine.count_prompt(MAIN) + 12
    return tokens, tokens * loaded.memory.kv // loaded.context


def test_the_budget_is_kept(arch_file: Callable[[str], Path]) -> None:
    """A state that just fits is kept; of a larger one its beginning, if that is worth it."""
    path = arch_file("qwen3moe")
    tokens, state = main_state(path)
    for share, least, most in ((1.1, 0.9, 1.0), (0.7, 0.6, 0.7), (0.2, 0.0, 0.1)):
        with started(path, prompt_cache=int(share * state)) as engine:
            ask(engine, MAIN)
            ask(engine, TITLE)
            assert least <= ask(engine, MAIN)[1].reused_tokens / tokens <= most


def test_a_tail_that_changes_is_not_worth_a_copy(arch_file: Callable[[str], Path]) -> None:
    """Thinking that is stripped, an answer asked for again: the conversation is kept once.

    There is no room for the conversation beside the title: a copy would push that out.
    """
    path = arch_file("qwen3moe")
    with started(path, prompt_cache=int(1.1 * main_state(path)[1])) as engine:
        ask(engine, TITLE)
        ask(engine, MAIN)
        for _ in range(3):
            assert ask(engine, MAIN + "Again. ")[1].reused_tokens >= engine.count_prompt(MAIN) - 2
        assert ask(engine, TITLE + MORE)[1].reused_tokens >= engine.count_prompt(TITLE) - 2


def test_a_prefill_that_was_interrupted_is_gone_on_with(arch_file: Callable[[str], Path]) -> None:
    """Stopped in the middle, after another prompt too: what was read is not read again."""
    for architecture in ("qwen3moe", "qwen3next"):
        with started(arch_file(architecture), prompt_cache=0) as engine:
            expected = ask(engine, MAIN + MORE)[0]
        with started(arch_file(architecture)) as engine:
            read = 0
            for event in engine.generate(Request(MAIN + MORE, sampling=Sampling(temperature=0))):
                if isinstance(event, PrefillProgress) and not read and event.done > event.total / 2:
                    read = event.done
                    engine.cancel()
            assert isinstance(event, Finished) and event.reason == "interrupted"
            ask(engine, TITLE)
            again, done = ask(engine, MAIN + MORE)
            assert done.reused_tokens > read - 2 * LOST
            assert again == expected
