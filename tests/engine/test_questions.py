"""Questions about the vocabulary: answered at once, from any thread, beside a computation."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import Finished, PrefillProgress, Request, Sampling, Token
from localmoe.errors import EngineCrashError, EngineError
from localmoe.facts.model import read_model
from localmoe.planning.memory import EngineSettings

pytestmark = pytest.mark.process

SETTINGS = EngineSettings(context=2048, batch=32, ubatch=32, threads=1, threads_batch=1)
GREEDY = Sampling(temperature=0)
TEXT = "Grüße, 世界! <s> tab\there 🎈"


@pytest.fixture(scope="module")
def engine(arch_file: Callable[[str], Path]) -> Iterator[Engine]:
    with Engine(read_model(arch_file("qwen3moe")), SETTINGS) as loaded:
        list(loaded.load())
        yield loaded


def questions(engine: Engine) -> list[object]:
    return [
        engine.count_tokens(TEXT),
        engine.count_prompt(TEXT, [(0, 5)]),
        engine.tokenize(TEXT, special=True, whole=True),
        engine.split_specials([TEXT]),
    ]


@pytest.mark.parametrize("moment", [PrefillProgress, Token])
def test_answered_while_the_model_computes(
    moment: type[PrefillProgress | Token], engine: Engine
) -> None:
    """In a prefill and in an answer, four threads at once: the answers of an idle model.

    What is computed goes on, and had not ended before: it is we who stop it.
    """
    expected = questions(engine)
    found: list[list[object]] = []
    request = Request("word " * 1500, sampling=GREEDY, ignore_end=True)
    asked = False
    for event in engine.generate(request):
        if isinstance(event, moment) and not asked:
            asked = True
            threads = [
                threading.Thread(target=lambda: found.append(questions(engine))) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            engine.cancel()
    assert found == [expected] * 4
    assert isinstance(event, Finished) and event.reason == "interrupted"
    assert bool(event.completion_tokens) == (moment is Token)


def test_tokens_and_their_bytes(engine: Engine) -> None:
    """Spelled out, the tokens are the text; a number that is no token is nothing."""
    tokens = engine.tokenize(TEXT)
    assert len(tokens) == engine.count_tokens(TEXT)
    assert b"".join(engine.spell(tokens)) == TEXT.encode()
    assert engine.spell([-1, 2**31, tokens[0]]) == [b"", b"", *engine.spell(tokens[:1])]


def test_a_model_that_is_replaced_meanwhile(arch_file: Callable[[str], Path]) -> None:
    """Whoever asks during a second load gets an answer or an error, and nothing crashes."""
    stop = threading.Event()
    found: set[int | str] = set()

    def ask() -> None:
        while not stop.is_set():
            try:
                found.add(own.count_tokens(TEXT))
            except EngineError as error:
                found.add(error.message)

    with Engine(read_model(arch_file("qwen3moe")), SETTINGS) as own:
        with pytest.raises(EngineError, match="no model is loaded"):
            own.count_tokens(TEXT)
        list(own.load())
        expected = own.count_tokens(TEXT)
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            list(own.load())
        stop.set()
        for thread in threads:
            thread.join()
    assert found <= {expected, "no model is loaded"}


def test_a_worker_that_dies(arch_file: Callable[[str], Path]) -> None:
    """Whoever waits gets the reason, and so does whoever asks after that."""
    with Engine(read_model(arch_file("qwen3moe")), SETTINGS) as own:
        list(own.load())
        os.kill(own.pid, signal.SIGSTOP)
        found: list[EngineError] = []

        def ask() -> None:
            try:
                own.count_tokens(TEXT)
            except EngineError as error:
                found.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        os.kill(own.pid, signal.SIGKILL)
        thread.join()
        ask()
    assert [type(error) for error in found] == [EngineCrashError] * 2
