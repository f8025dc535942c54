"""Conversations on one model file with several expert caches, every decode's logits noted.

The engine's own loop runs (loader, Residency, Generator), in a child process, since an evicted
expert that is touched ends it. As a program it reads cases from standard input as JSON and writes
what happened as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from localmoe.errors import LocalmoeError
from localmoe.facts.model import read_model
from localmoe.planning.cache_plan import plan_cache
from localmoe.planning.memory import EngineSettings
from tests import forked
from tests.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from localmoe.engine.worker.expert_cache import Counters

ROOT = Path(__file__).parents[2]
SANITIZED = (
    "LOCALMOE_SANITIZED" in os.environ
)  # by scripts/sanitize.sh: all takes ten times as long
DEADLOCK = 1200.0 if SANITIZED else PATIENCE  # seconds; cases take one or two
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Turn:
    """One request.

    ``stop``: where the user interrupts, in the middle of a decode: "prefill" or "decode", which of
    them, and the node of its graph; or ``cancel_after`` seconds.
    """

    prompt: str
    tokens: int = 4
    stable: int = 0  # characters
    stop: tuple[str, int, int] | None = None
    cancel_after: float | None = None
    resize: int | None = None  # a new budget in bytes, before the turn


@dataclass(frozen=True, slots=True)
class Case:
    """One loaded model. ``hot``: file of the hot set, warmed at load and written at the end.

    ``shaken``: least and greatest budget between which another thread changes it all the time.
    """

    settings: EngineSettings
    turns: tuple[Turn, ...]
    hot: str = ""
    warm: int = 0  # experts of the hot set that are waited for before the first turn
    shaken: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """``logits``: a digest after each decode. ``answer``: one over those that chose tokens.

    ``starts``: positions in the prompt where a batch began.
    """

    reason: str  # Finished.reason, or the message of the error
    text: str = ""
    reused: int = 0
    prompt_tokens: int = 0
    starts: tuple[int, ...] = ()
    logits: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    regime: str
    turns: tuple[Said, ...]
    counters: dict[str, float] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0
    resident: tuple[tuple[int, int], ...] = ()  # group and number of experts in use at the end


def planned(path: Path, settings: EngineSettings, wish: str, budget: int) -> EngineSettings:
    """What the planner makes of ``wish`` with all experts in host memory."""
    model = read_model(path)
    host = {layer.index: layer.expert_bytes for layer in model.layers if layer.expert_count}
    chosen, _ = plan_cache(model, settings, host, budget, wish)
    return chosen


def run_cases(
    path: Path,
    cases: Sequence[Case],
    timeout: float = DEADLOCK,
    environment: Mapping[str, str] | None = None,
) -> list[Ran]:
    """The cases one after the other in one child process, with ``environment`` beside ours.

    Raises AssertionError with the child's standard error when it dies.
    """
    request = json.dumps({"path": str(path), "cases": [dataclasses.asdict(c) for c in cases]})
    if environment:  # which may count when a program starts
        child = subprocess.run(
            [sys.executable, "-m", "tests.engine.cached"],
            input=request,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    else:
        child = forked.answer("tests.engine.cached", request, timeout)
    assert child.returncode == 0, f"exit {child.returncode}: {child.stderr[-3000:]}"
    return [ran_from_json(each) for each in json.loads(child.stdout)]


def in_child(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)`` in a fresh process, so that what it breaks is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def ran_from_json(document: dict[str, Any]) -> Ran:
    turns = tuple(
        Said(**{**said, "starts": tuple(said["starts"]), "logits": tuple(said["logits"])})
        for said in document["turns"]
    )
    resident = tuple((group, expert) for group, expert in document["resident"])
    return Ran(**{**document, "turns": turns, "resident": resident})


class Conversation:
    """A loaded model in this process. Use as a context manager."""

    def __init__(self, path: Path, settings: EngineSettings, hot: str = "") -> None:
        from localmoe.engine.worker import binding, loader
        from localmoe.engine.worker.residency import Residency

        self._llama = binding.llama
        self.flag = ctypes.c_int32(0)
        self.model = read_model(path)
        log = loader.EngineLog()
        self._log = binding.set_log(log.write)
        paths = [str(part) for part in self.model.paths]
        self.handle = loader.open_model(paths, settings, log, self.model.architecture)
        self._ctx = loader.open_context(self.handle, settings, log)
        self.experts = Residency(
            self.handle, self.model, settings, self.flag, Path(hot) if hot else None
        )
        self._generator = _witness(self.handle, self._ctx, self.flag, self.experts)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self._generator.close()
        self.experts.close()
        self._llama.llama_free(self._ctx)
        self._llama.llama_model_free(self.handle)

    def say(self, turn: Turn) -> Said:
        """The answer, or what went wrong; the conversation can go on."""
        from localmoe.engine.events import Finished, PrefillProgress, Request, Sampling, Token

        self._generator.watch(turn.stop)
        request = Request(
            turn.prompt,
            turn.stable,
            max_tokens=turn.tokens,
            sampling=Sampling(temperature=0),
            ignore_end=True,
        )
        text, starts = "", []
        timer = threading.Timer(turn.cancel_after or 0.0, self._cancel)
        if turn.cancel_after is not None:
            timer.start()
        try:
            for event in self._generator.generate(request):
                if isinstance(event, Token):
                    text += event.text
                elif isinstance(event, PrefillProgress):
                    starts.append(event.done)
        except LocalmoeError as error:
            return Said(f"{type(error).__name__}: {error}")
        finally:
            timer.cancel()
            self.flag.value = 0
        assert isinstance(event, Finished)
        logits, answer = self._generator.seen, self._generator.answer
        return Said(
            event.reason,
            text,
            event.reused_tokens,
            event.prompt_tokens,
            tuple(starts),
            tuple(logits),
            answer.hexdigest(),
        )

    def counters(self) -> Counters:
        counters = self.experts.counters()
        assert counters is not None, "there is no cache"
        return counters

    def _cancel(self) -> None:
        self.flag.value = 1


def _witness(model: Any, ctx: Any, flag: ctypes.c_int32, experts: Any) -> Any:
    from localmoe.engine.worker.binding import llama
    from localmoe.engine.worker.generation import PROMPT, Generator

    class Witness(Generator):
        """Notes the logits of each decode, and interrupts in the middle of one if told to."""

        def watch(self, stop: tuple[str, int, int] | None) -> None:
            self.seen: list[str] = []
            self.answer = hashlib.sha256()
            self._row = b""
            self._done = {"prefill": 0, "decode": 0}
            self._nodes = 0
            callback: tuple[Any, Any] = self._abort
            if stop is not None:
                callback = (llama.ggml_abort_callback(lambda _: self._asked(stop)), None)
                self._keep = callback
            llama.llama_set_abort_callback(ctx, *callback)

        def _asked(self, stop: tuple[str, int, int]) -> bool:
            self._nodes += 1
            if (self._phase, self._done[self._phase], self._nodes) == stop:
                flag.value = 1
            return flag.value != 0

        def _decode(self, tokens: list[int], number: int, following: int = 0) -> None:
            self._nodes = 0
            self._phase = "prefill" if number == PROMPT else "decode"
            super()._decode(tokens, number, following)
            self._done[self._phase] += 1
            logits = llama.llama_get_logits_ith(ctx, -1)
            size = 4 * int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
            row = ctypes.string_at(ctypes.cast(logits, ctypes.c_void_p), size)
            self.seen.append(hashlib.sha256(row).hexdigest()[:16])
            if number != PROMPT:
                self.answer.update(self._row)
            self._row = row

        def generate(self, *request: Any) -> Any:
            yield from super().generate(*request)
            self.answer.update(self._row)

    return Witness(model, ctx, flag, experts)


def run(path: Path, case: Case) -> Ran:
    """One case in this process."""
    with Conversation(path, case.settings, case.hot) as conversation:
        experts, said = conversation.experts, []
        if case.warm:
            wait_until(lambda: conversation.counters().warmed >= case.warm)
        with shaking(conversation, case.shaken):
            for turn in case.turns:
                if turn.resize is not None:
                    assert experts._cache is not None
                    experts._cache.resize(turn.resize)
                said.append(conversation.say(turn))
        experts.remember()
        counters, stats, cache = experts.counters(), experts.stats(), experts._cache
        return Ran(
            experts.regime,
            tuple(said),
            dataclasses.asdict(counters) if counters is not None else {},
            stats.hits if stats else 0,
            stats.misses if stats else 0,
            tuple(cache.hot(65536)) if cache is not None else (),
        )


@contextlib.contextmanager
def shaking(conversation: Conversation, budgets: tuple[int, int] | None) -> Iterator[None]:
    """Another budget every few milliseconds, as if memory came and went."""
    stop = threading.Event()

    def shake() -> None:
        assert budgets is not None
        cache, rng = conversation.experts._cache, random.Random(1)
        assert cache is not None
        while not stop.wait(rng.uniform(0.0, 0.004)):
            cache.resize(rng.randint(*budgets))

    thread = threading.Thread(target=shake)
    if budgets is not None:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if budgets is not None:
            thread.join()


def case_from_json(document: dict[str, Any]) -> Case:
    from localmoe.engine.protocol import settings_from_json

    turns = tuple(
        Turn(**{**turn, "stop": tuple(turn["stop"]) if turn["stop"] else None})
        for turn in document["turns"]
    )
    settings = settings_from_json(document["settings"])
    shaken = tuple(document["shaken"]) if document["shaken"] else None
    return Case(settings, turns, document["hot"], document["warm"], shaken)


def ready() -> None:
    from localmoe.engine.worker import generation, residency

    assert generation and residency


def main() -> None:
    wanted = json.load(sys.stdin)
    answers = os.dup(1)
    os.dup2(2, 1)
    done = [run(Path(wanted["path"]), case_from_json(case)) for case in wanted["cases"]]
    with os.fdopen(answers, "w") as out:
        json.dump([dataclasses.asdict(each) for each in done], out)


if __name__ == "__main__":
    main()
