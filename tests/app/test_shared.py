"""Many threads on one model: turns, short prompts that overtake, and each stops only its own."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import localmoe
from localmoe.app.shared import OVERTAKEN, SharedModel
from localmoe.errors import EngineCrashError, LocalmoeError
from tests.chat import templates
from tests.waiting import wait_until

pytestmark = pytest.mark.process

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
LONG = "A mixture of experts has many small networks and a router. " * 50
SHORT = "Write a title."


@pytest.fixture(scope="module")
def path(arch_file: Callable[..., Path]) -> Path:
    return arch_file("qwen3moe", template=templates.CHATML)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[localmoe.LoadedModel]:
    wishes = localmoe.Wishes(threads=1, batch=32, prompt_cache=64 << 20)
    with localmoe.load(str(path), context=2048, wishes=wishes) as loaded:
        yield loaded


@dataclass
class Asking:
    """A question on a thread of its own; ``ended`` gets its name when it has its answer."""

    shared: SharedModel
    prompt: str
    ended: list[str] = field(default_factory=list)
    done: localmoe.TurnDone | None = None
    error: LocalmoeError | None = None

    def __post_init__(self) -> None:
        self.events: list[object] = []
        self.stream = self.shared.caller().chat(self.prompt, **GREEDY)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            for event in self.stream:
                self.events.append(event)
                if isinstance(event, localmoe.TurnDone):
                    self.done = event
                    self.ended.append(self.prompt)
        except LocalmoeError as error:
            self.error = error

    @property
    def answer(self) -> str:
        self.thread.join()
        assert self.done is not None
        return self.done.answer

    @property
    def answered(self) -> bool:
        return self.done is not None and self.done.finish_reason != "interrupted"

    def begun(self, batches: int = 1) -> Asking:
        wait_until(lambda: len(self.events) >= batches)
        return self


def alone(model: localmoe.LoadedModel, *prompts: str) -> list[str]:
    return [model.chat(prompt, **GREEDY).result().answer for prompt in prompts]


def test_each_gets_its_own_answer(model: localmoe.LoadedModel) -> None:
    """Twelve at once, from twelve threads: every answer is that of its question alone."""
    prompts = [f"Question {number}: what is a router?" for number in range(12)]
    expected = alone(model, *prompts)
    shared = SharedModel(model)
    askings = [Asking(shared, prompt) for prompt in prompts]
    assert [asking.answer for asking in askings] == expected
    assert shared.waiting == 0


def test_a_short_prompt_overtakes_a_long_one(model: localmoe.LoadedModel) -> None:
    """It has its answer first; the long one is read on from where it was, to the same words."""
    expected = alone(model, LONG, SHORT)
    list(model.bring_in())  # loaded anew: it has read nothing
    shared, ended = SharedModel(model), list[str]()
    long = Asking(shared, LONG, ended).begun(batches=5)
    short = Asking(shared, SHORT, ended)
    assert [long.answer, short.answer] == expected
    assert ended == [SHORT, LONG]
    read = [e.done for e in long.events if isinstance(e, localmoe.PrefillProgress)]
    assert read == sorted(read)
    assert long.done is not None and long.done.usage.reused_tokens == 0


def test_it_is_overtaken_a_few_times_at_most(model: localmoe.LoadedModel) -> None:
    """However many short ones come, the long one has its turn."""
    shared, ended = SharedModel(model), list[str]()
    long = Asking(shared, "Once more. " + LONG, ended).begun()
    shorts = [Asking(shared, f"{SHORT} {number}", ended) for number in range(2 * OVERTAKEN)]
    for asking in (long, *shorts):
        asking.thread.join()
    assert ended.index(long.prompt) <= OVERTAKEN


def test_where_nothing_can_be_put_away_nobody_overtakes(
    model: localmoe.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without RAM for it the long prompt would have to be read anew."""
    settings = dataclasses.replace(model.plan.settings, prompt_cache=0)
    monkeypatch.setattr(model, "plan", dataclasses.replace(model.plan, settings=settings))
    shared, ended = SharedModel(model), list[str]()
    long = Asking(shared, "None. " + LONG, ended).begun()
    short = Asking(shared, SHORT, ended)
    assert short.answer and long.answer
    assert ended == [long.prompt, SHORT]


def test_stopping_stops_that_one_alone(model: localmoe.LoadedModel) -> None:
    """One that waits ends without its turn; one that runs makes room for the next."""
    shared = SharedModel(model)
    expected = alone(model, "What is a router?")
    first = Asking(shared, "First. " + LONG).begun()
    waiting, third = Asking(shared, "Second. " + LONG), Asking(shared, "What is a router?")
    wait_until(lambda: shared.waiting)
    waiting.stream.close()
    waiting.thread.join()
    assert waiting.error is None and not waiting.answered
    first.stream.close()
    first.thread.join()
    assert not first.answered
    assert third.answer == expected[0]


def test_who_leaves_waits_for_a_slow_engine(
    model: localmoe.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is others' engine too: it is not ended when it takes longer than one's own would get."""
    monkeypatch.setattr("localmoe.engine.connection.PATIENCE", 0.0)
    worker = model.engine.pid  # type: ignore[attr-defined]
    shared = SharedModel(model)
    with shared.caller().generate("Once", max_tokens=1500, temperature=1.0) as stream:
        next(stream)
    assert shared.caller().chat(SHORT, **GREEDY).result().answer
    assert model.engine.pid == worker and model.engine.alive  # type: ignore[attr-defined]


def test_a_prompt_in_the_queue_survives_the_engine(model: localmoe.LoadedModel) -> None:
    """It is being counted when the engine dies: the next engine counts it, and answers it."""
    (expected,) = alone(model, "Another question.")
    shared, engine = SharedModel(model), model.engine
    first = Asking(shared, "Before it dies. " + LONG).begun()
    os.kill(engine.pid, signal.SIGSTOP)  # type: ignore[attr-defined]
    threads = Path(f"/proc/{engine.pid}/task")  # type: ignore[attr-defined]
    wait_until(lambda: all("T (stopped)" in path.read_text() for path in threads.glob("*/status")))
    queued = Asking(shared, "Another question.")
    asked = engine._worker._answers  # type: ignore[attr-defined]
    wait_until(lambda: len(asked) > 1)
    os.kill(engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    assert queued.answer == expected
    first.thread.join()
    assert isinstance(first.error, EngineCrashError)


def test_a_crash_is_told_to_one_and_the_next_has_a_fresh_engine(
    model: localmoe.LoadedModel,
) -> None:
    """The one under way gets the error, the first or the one that overtook it; others an answer."""
    (expected,) = alone(model, "Another question.")
    shared = SharedModel(model)
    first = Asking(shared, "Last. " + LONG).begun()
    second = Asking(shared, "Another question.")
    wait_until(lambda: shared.waiting or second.done)
    os.kill(model.engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    first.thread.join()
    second.thread.join()
    told = [asking for asking in (first, second) if asking.done is None]
    assert len(told) <= 1
    assert all(isinstance(asking.error, EngineCrashError) for asking in told)
    assert second in told or second.answer == expected
    assert Asking(shared, "Another question.").answer == expected
