"""One loaded model for many threads: turns, and short prompts that overtake long ones."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from localmoe.app.model import LoadedModel
from localmoe.engine.events import (
    AnswerEvent,
    Finished,
    Loaded,
    LoadProgress,
    Part,
    PrefillProgress,
    Request,
    Span,
    Token,
)
from localmoe.errors import EngineCrashError, EngineError, LocalmoeError

_Events = Generator[AnswerEvent, None, None]
_Said = TypeVar("_Said")

SHORTER = 8  # times shorter than what is left of a prompt is one that may overtake it
OVERTAKEN = 4  # times that a prompt is overtaken at most


@dataclass(eq=False)
class Turn:
    """A request's place: it waits, reads its prompt, answers."""

    tokens: int  # of its prompt
    left: int  # of them, not read yet; 0 once the answer has begun
    done: int = 0
    reading: bool = False  # whether ``left`` is known from the engine
    overtaken: int = 0
    overtakes: Turn | None = None  # the running one that is to make way
    cancelled: bool = False

    def may_pass(self, other: Turn) -> bool:
        return self.tokens * SHORTER <= other.left and other.overtaken < OVERTAKEN


class SharedModel:
    """The owner of a loaded model whose callers are many: first come, first served.

    A prompt that is read may be overtaken at the end of a batch, by one an eighth as long: its
    state is put away (``Wishes.prompt_cache``), the short request answered, the prompt read on. So
    nobody waits minutes for a title, and no prompt is overtaken more than four times. A prompt of
    which more was read than can be put away is not overtaken.
    """

    def __init__(self, model: LoadedModel) -> None:
        """``model`` is loaded, and used by nobody else."""
        self.model = model
        self._engine = model.engine
        self._changed = threading.Condition()
        self._waiting: list[Turn] = []
        self._running: Turn | None = None
        assert model.loaded is not None
        per_token = max(1, model.loaded.memory.kv // model.loaded.context)
        settings = model.plan.settings
        # Tokens read so far of a prompt whose state can be put away after one batch more.
        self._movable = settings.prompt_cache // per_token - settings.batch
        self._reviving = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether somebody is being answered."""
        return self._running is not None

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._waiting)

    def caller(self) -> LoadedModel:
        """The model as one request sees it, from a thread of its own.

        It is used as if nobody else were there: its answers wait for their turn, and stopping one
        stops that one alone. After a crash the next turn begins with a fresh engine.
        """
        model = self.model
        view = LoadedModel(
            model.facts, model.machine, model.plan, Caller(self, model), model.renderer,
            model.forecast,
        )  # fmt: skip
        view.loaded, view._template = model.loaded, model.template
        return view

    def revive(self) -> None:
        """Have the engine loaded again after a crash. Raises what loading raises."""
        with self._reviving:
            if self.model.closed:
                raise EngineError("the model is closed", hint="localmoe.load brings it back")
            if not self._engine.alive:
                for _ in self.model.bring_in():
                    pass

    def enter(self, turn: Turn) -> bool:
        """Wait for the turn; False when it was cancelled before."""
        with self._changed:
            self._place(turn)
            self._make_way()
            try:
                self._changed.wait_for(
                    lambda: turn.cancelled or (not self._running and self._waiting[0] is turn)
                )
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
            if turn.cancelled:
                return False
            self._running = turn
            return True

    def leave(self, turn: Turn) -> None:
        with self._changed:
            self._running = None
            turn.reading = False
            self._changed.notify_all()

    def progress(self, turn: Turn, event: PrefillProgress | Token) -> None:
        """Note how far the running one is."""
        if isinstance(event, PrefillProgress):
            with self._changed:
                turn.reading, turn.done, turn.left = True, event.done, event.total - event.done
                self._make_way()
        elif turn.reading:
            with self._changed:
                turn.reading, turn.left = False, 0

    def cancel(self, turn: Turn) -> None:
        with self._changed:
            turn.cancelled = True
            if self._running is turn:
                self._engine.cancel()
            self._changed.notify_all()

    def _place(self, turn: Turn) -> None:
        """At the end of the queue, or before those that it may pass.

        One that was paused comes back behind whoever made it pause.
        """
        at = len(self._waiting)
        if turn.done:
            behind = [i for i, other in enumerate(self._waiting, 1) if other.overtakes is turn]
            at = max(behind, default=0)
        else:
            while at and turn.may_pass(self._waiting[at - 1]):
                at -= 1
                self._waiting[at].overtaken += 1
        self._waiting.insert(at, turn)

    def _make_way(self) -> None:
        """Pause the running one if the first in the queue may overtake it."""
        running = self._running
        if running is None or not self._waiting or not running.reading:
            return
        first = self._waiting[0]
        if first.overtakes is None and first.may_pass(running) and running.done <= self._movable:
            first.overtakes = running
            running.overtaken += 1
            self._engine.pause()


class Caller:
    """The engine as one request sees it: a ``LoadableEngine`` that is loaded."""

    def __init__(self, shared: SharedModel, model: LoadedModel) -> None:
        self._shared = shared
        self._model = model
        self._engine = model.engine
        self._turn: Turn | None = None
        self._cancelled = False

    def generate(self, request: Request) -> _Events:
        """As ``Engine.generate``, when it is this one's turn."""
        started = time.perf_counter()
        tokens = self._prompt_tokens(request)
        turn = self._turn = Turn(tokens, left=tokens, cancelled=self._cancelled)
        reused: int | None = None  # tokens, before anything of this prompt was read
        while self._shared.enter(turn):
            waited = time.perf_counter() - started
            try:
                self._shared.revive()
                with self._until_it_stops(self._engine.generate(request)) as events:
                    for event in events:
                        if turn.cancelled:  # before the engine had begun
                            self._engine.cancel()
                        if isinstance(event, Finished):
                            break
                        if isinstance(event, PrefillProgress):
                            reused = event.reused if reused is None else reused
                            event = dataclasses.replace(event, reused=reused)
                        self._shared.progress(turn, event)
                        yield event
            finally:
                self._shared.leave(turn)
            assert isinstance(event, Finished)
            if event.reason != "paused" or turn.cancelled:
                yield dataclasses.replace(
                    event,
                    reason="interrupted" if event.reason == "paused" else event.reason,
                    reused_tokens=event.reused_tokens if reused is None else reused,
                    ttft_s=event.ttft_s + waited,
                )
                return
        yield Finished("interrupted", 0, 0, 0, time.perf_counter() - started, None, None)

    @contextlib.contextmanager
    def _until_it_stops(self, events: _Events) -> Iterator[_Events]:
        """Who leaves early waits for the engine: it is not ended for being slow, as it is others'.

        A batch on a GPU, or a disk that is slow, may take longer than an engine of one's own gets.
        """
        with contextlib.closing(events):
            try:
                yield events
            except GeneratorExit:
                self._engine.cancel()
                for _ in events:
                    pass
                raise

    def cancel(self) -> None:
        """Stop this request, waiting or running, and no other. From any thread."""
        self._cancelled = True
        if self._turn is not None:
            self._shared.cancel(self._turn)

    def pause(self) -> None:
        """Nothing: who makes way for whom is the shared model's to say."""

    def close(self) -> None:
        """Stop this request; the model stays."""
        self.cancel()

    @property
    def alive(self) -> bool:
        return self._engine.alive

    @property
    def silent_s(self) -> float:
        return self._engine.silent_s

    def at_work(self) -> bool:
        return self._engine.at_work()

    def load(self) -> Iterator[LoadProgress | Loaded]:
        """It is loaded."""
        assert self._model.loaded is not None
        yield self._model.loaded

    def count_tokens(self, text: str) -> int:
        return self._consulted(lambda: self._engine.count_tokens(text))

    def count_prompt(self, prompt: str, data: Sequence[Span] = ()) -> int:
        return self._consulted(lambda: self._engine.count_prompt(prompt, data))

    def tokenize(self, text: str, *, special: bool = False, whole: bool = False) -> list[int]:
        return self._consulted(lambda: self._engine.tokenize(text, special=special, whole=whole))

    def spell(self, tokens: Sequence[int]) -> list[bytes]:
        return self._consulted(lambda: self._engine.spell(tokens))

    def split_specials(self, texts: Sequence[str]) -> list[list[Part]]:
        return self._consulted(lambda: self._engine.split_specials(texts))

    def _consulted(self, ask: Callable[[], _Said]) -> _Said:
        """What the engine says; of one that dies meanwhile, the next one."""
        try:
            self._shared.revive()
            return ask()
        except EngineCrashError:
            self._shared.revive()
            return ask()

    def keep(self, slot: str) -> int:
        """0: what callers have read is kept in RAM."""
        return 0

    def resume(self, slot: str) -> int:
        """0: as for ``keep``."""
        return 0

    def _prompt_tokens(self, request: Request) -> int:
        """Many, if the engine cannot say now."""
        try:
            return self.count_prompt(request.prompt, request.data)
        except LocalmoeError:
            return sys.maxsize
