"""The worker process: events, interrupts, crashes, bad files."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from localmoe.engine.client import Engine
from localmoe.engine.events import (
    Finished,
    Loaded,
    LoadProgress,
    PrefillProgress,
    Request,
    Sampling,
    Token,
)
from localmoe.engine.process import WorkerProcess
from localmoe.errors import (
    ContextOverflowError,
    EngineCrashError,
    EngineError,
    InterruptedLoadError,
    ModelFileError,
)
from localmoe.facts.model import read_model
from localmoe.facts.page_cache import missing_chunks
from localmoe.planning.memory import EngineSettings
from tests.needs import missing
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.process

SETTINGS = EngineSettings(context=2048, batch=512, ubatch=512, threads=1, threads_batch=1)
GREEDY = Sampling(temperature=0)


@pytest.fixture
def engine(arch_file: Callable[[str], Path]) -> Iterator[Engine]:
    with Engine(read_model(arch_file("qwen3moe")), SETTINGS) as loaded:
        list(loaded.load())
        yield loaded


def answer(engine: Engine, request: Request) -> tuple[str, Finished]:
    events = list(engine.generate(request))
    last = events[-1]
    assert isinstance(last, Finished)
    return "".join(e.text for e in events if isinstance(e, Token)), last


def test_load_ends_with_the_memory_of_the_real_load(arch_file: Callable[[str], Path]) -> None:
    """The last event of a load says what the engine really allocated."""
    with Engine(read_model(arch_file("qwen3moe")), SETTINGS) as engine:
        last = list(engine.load())[-1]
    assert isinstance(last, Loaded)
    assert last.context == SETTINGS.context
    assert last.memory.exact
    assert min(last.memory.weights, last.memory.kv, last.memory.compute) > 0


def test_events_come_in_order(engine: Engine) -> None:
    """Prefill first, then text, then exactly one Finished whose counts agree."""
    events = list(engine.generate(Request("Hello there.", max_tokens=5, sampling=GREEDY)))
    kinds = [type(event) for event in events]
    assert kinds == sorted(kinds, key=[PrefillProgress, Token, Finished].index)
    assert kinds.count(Finished) == 1
    done = events[-1]
    assert isinstance(done, Finished)
    assert [e.tokens for e in events if isinstance(e, Token)][-1] == done.completion_tokens == 5


def test_greedy_repeats_and_seeds_repeat(engine: Engine) -> None:
    """Greedy gives the same text twice; so does a seed; another seed gives another text."""
    for sampling in (GREEDY, Sampling(seed=7)):
        request = Request("Tell me something.", max_tokens=24, sampling=sampling)
        assert answer(engine, request)[0] == answer(engine, request)[0]
    texts = {
        answer(engine, Request("Tell me.", max_tokens=24, sampling=Sampling(seed=s)))[0]
        for s in range(4)
    }
    assert len(texts) > 1


def test_max_tokens_and_context_end_the_answer(engine: Engine) -> None:
    """``length`` after max_tokens, and when the context is full; the next turn still works."""
    _, done = answer(engine, Request("One two.", max_tokens=3, sampling=GREEDY))
    assert (done.reason, done.completion_tokens) == ("length", 3)
    prompt = "word " * 1900
    _, done = answer(engine, Request(prompt, sampling=GREEDY))
    assert done.reason in ("length", "stop")
    assert done.prompt_tokens + done.completion_tokens <= SETTINGS.context
    assert answer(engine, Request("Again.", max_tokens=2, sampling=GREEDY))[1].reason == "length"


def test_prompt_longer_than_the_context(engine: Engine) -> None:
    """A typed error with both counts; the engine goes on."""
    with pytest.raises(ContextOverflowError, match=r"\d+ tokens, the context 2048"):
        answer(engine, Request("word " * 5000))
    assert answer(engine, Request("Short.", max_tokens=2))[1].completion_tokens == 2


def test_cancel_during_decode(engine: Engine) -> None:
    """The answer so far is kept and the reason is ``interrupted``."""
    seen = ""
    for event in engine.generate(Request("Go on and on.", sampling=GREEDY)):
        if isinstance(event, Token):
            seen += event.text
            if event.tokens == 5:
                engine.cancel()
    assert isinstance(event, Finished)
    assert event.reason == "interrupted"
    assert seen


def test_cancel_during_prefill_is_prompt(large_file: Path) -> None:
    """A batch that takes seconds stops in the middle: none of its tokens is in the context."""
    settings = EngineSettings(context=4096, batch=2048, ubatch=2048, threads=1, threads_batch=1)
    with Engine(read_model(large_file), settings) as engine:
        list(engine.load())
        events = engine.generate(Request("many words here " * 600, sampling=GREEDY))
        first = next(events)
        assert isinstance(first, PrefillProgress)
        assert first.done == 0 and first.total < settings.batch
        times = psutil.Process(engine.pid).cpu_times
        begun = times().user
        wait_until(lambda: times().user > begun + 0.2)  # it computes
        engine.cancel()
        (last,) = events
        _, again = answer(engine, Request("many words", max_tokens=1, sampling=GREEDY))
    assert isinstance(last, Finished)
    assert (last.reason, last.completion_tokens) == ("interrupted", 0)
    assert again.reused_tokens == 0


def test_a_late_cancel_does_not_hit_the_next_request(engine: Engine) -> None:
    """Cancelling when nothing runs changes nothing."""
    answer(engine, Request("One.", max_tokens=2, sampling=GREEDY))
    engine.cancel()
    assert answer(engine, Request("Two.", max_tokens=4, sampling=GREEDY))[1].completion_tokens == 4


def test_dropping_the_iterator_cancels(engine: Engine) -> None:
    """Leaving a generation early frees the engine for the next one; it is not ended for that."""
    worker = engine.pid
    for event in engine.generate(Request("Go on.", sampling=GREEDY, ignore_end=True)):
        if isinstance(event, Token):
            break
    assert answer(engine, Request("Next.", max_tokens=2, sampling=GREEDY))[1].reason == "length"
    assert engine.pid == worker


def evict(path: Path) -> int:
    """Drop a file from the page cache; the number of chunks that are now missing there."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    gone = len(missing_chunks(str(path)))
    if gone < 10:
        missing("this file system keeps the file in memory")
    return gone


def test_a_cold_load_shows_progress_and_stops(large_file: Path) -> None:
    """In the mode that is used: steps from the disk, a cancel in between, then the whole of it."""
    missing = evict(large_file)
    with Engine(read_model(large_file), EngineSettings(context=512, threads=1)) as engine:
        with pytest.raises(InterruptedLoadError):
            for _ in engine.load():
                engine.cancel()
        assert len(missing_chunks(str(large_file))) > missing // 2
        events = list(engine.load())
    fractions = [e.fraction for e in events if isinstance(e, LoadProgress)]
    assert isinstance(events[-1], Loaded)
    assert len(fractions) >= 2
    # All of it was read; the system may have taken a little away again.
    assert len(missing_chunks(str(large_file))) <= missing // 10


def test_beyond_ram_a_load_does_not_read_the_file(large_file: Path) -> None:
    """Where the plan leaves experts on disk, loading maps the file and reads almost nothing."""
    missing = evict(large_file)
    settings = EngineSettings(context=512, threads=1, read_ahead=False)
    with Engine(read_model(large_file), settings) as engine:
        assert isinstance(list(engine.load())[-1], Loaded)
        assert len(missing_chunks(str(large_file))) > missing * 0.8


def test_cancel_while_tensors_are_read(large_file: Path) -> None:
    """The same without a mapping, where llama.cpp reads the tensors itself."""
    with Engine(read_model(large_file), EngineSettings(context=512, load_mode="none")) as engine:
        with pytest.raises(InterruptedLoadError):
            for _ in engine.load():
                engine.cancel()
        assert isinstance(list(engine.load())[-1], Loaded)


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "memory ran out"), (signal.SIGBUS, "model file"), (signal.SIGABRT, "check")],
)
def test_a_killed_worker_is_an_error_message(
    engine: Engine, number: signal.Signals, words: str
) -> None:
    """The cause is named, and ``load`` brings the engine back."""
    with pytest.raises(EngineCrashError, match=words):
        for event in engine.generate(Request("Go on.", sampling=GREEDY)):
            if isinstance(event, Token) and event.tokens == 3:
                os.kill(engine.pid, number)
    assert not engine.alive
    list(engine.load())
    assert answer(engine, Request("Back.", max_tokens=2))[1].completion_tokens == 2


def test_the_worker_ends_with_its_parent(arch_file: Callable[[str], Path]) -> None:
    """End of input ends the worker, even in the middle of an answer."""
    worker = WorkerProcess()
    process = worker._process
    assert process.stdin is not None
    paths = [str(arch_file("qwen3moe"))]
    list(worker.request("load", paths=paths, settings=dataclasses.asdict(SETTINGS)))
    request = dataclasses.asdict(Request("Go on and on.", sampling=GREEDY))
    answer = worker.request("generate", request=request)
    assert next(answer)["event"] == "prefill"
    process.stdin.close()
    assert process.wait(PATIENCE) == 0
    worker.close()


def test_every_request_to_a_dead_worker_is_an_error(engine: Engine) -> None:
    """Not only the first one: none waits for an answer that cannot come."""
    os.kill(engine.pid, signal.SIGKILL)
    for _ in range(3):
        with pytest.raises(EngineCrashError):
            engine.count_tokens("anyone there?")


def test_an_unknown_operation_is_answered() -> None:
    """Other front ends get an error for what does not exist, and the worker goes on."""
    worker = WorkerProcess()
    try:
        with pytest.raises(EngineError, match="no operation"):
            worker.ask("levitate")
        assert worker.ask("info")["event"] == "info"
    finally:
        worker.close()


def test_unknown_architecture_is_a_model_error(tmp_path: Path) -> None:
    """The engine's own reason comes through, as a ModelFileError."""
    from tests.archs import bad_files

    path = bad_files(tmp_path)["unknown_architecture"]
    with (
        Engine(read_model(path), SETTINGS) as engine,
        pytest.raises(ModelFileError, match="architecture"),
    ):
        list(engine.load())
