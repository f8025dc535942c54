"""Answers: an ``Ask`` in, events out. One thread talks to the engine, the event loop waits."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from localmoe.app.experience import learn_from
from localmoe.app.model import LoadedModel
from localmoe.app.requests import SampleRequest
from localmoe.app.stream import Stream
from localmoe.chat.events import TurnDone
from localmoe.server.asks import Accepted, Ask, Event, Loading, Waiting
from localmoe.server.models import Models
from localmoe.server.turns import Turns

Emit = Callable[[Event], None]


class Answering:
    """The engine's thread, and who may use it."""

    def __init__(
        self, models: Models, turns: Turns, defaults: SampleRequest, *, learns: bool
    ) -> None:
        """``defaults``: where a request says nothing; ``learns``: speeds are kept for forecasts."""
        self.models = models
        self.turns = turns
        self._defaults = defaults
        self._learns = learns
        self._thread = ThreadPoolExecutor(1, "engine")

    async def answer(self, ask: Ask, client: str) -> AsyncGenerator[Event, None]:
        """The events of one answer, the last one ``TurnDone``.

        Closing the generator leaves the queue, or stops the answer and waits until the engine is
        free. Raises Problem, and what planning, loading and answering raise.
        """
        if self.turns.busy:
            yield Waiting(self.turns.waiting + 1)
        async with self.turns.turn(client):
            work = _Work(lambda emit, work: self._answer(ask, emit, work))
            events = self._on_thread(work)
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event

    async def load(self, name: str | None) -> None:
        """Have a model loaded. Raises what planning and loading raise."""
        async with self.turns.turn(""):
            work = _Work(lambda emit, work: self._load(name, emit))
            async with contextlib.aclosing(self._on_thread(work)) as events:
                async for _ in events:
                    pass

    async def unload(self) -> None:
        """Give the model's memory back when nobody is being answered."""
        async with self.turns.turn(""):
            await asyncio.get_running_loop().run_in_executor(self._thread, self.models.unload)

    def close(self) -> None:
        """End the thread, and with it the engine."""
        if self.models.current is not None:
            self.models.current.engine.close()  # a load or an answer under way ends with an error
        self._thread.submit(self.models.unload)
        self._thread.shutdown(wait=True)

    def _load(self, name: str | None, emit: Emit) -> LoadedModel:
        for event in self.models.bring_in(name):
            emit(Loading(event.fraction))
        model = self.models.current
        assert model is not None
        return model

    def _answer(self, ask: Ask, emit: Emit, work: _Work) -> None:
        model = self._load(ask.model, emit)
        stream = self._stream(model, ask)
        accepted = False
        with work.running(stream):
            for event in stream:
                if not accepted:
                    assert model.loaded is not None
                    emit(Accepted(model.facts.name, model.loaded.context))
                    accepted = True
                emit(event)
                if isinstance(event, TurnDone) and self._learns:
                    learn_from(model.facts, model.plan, model.machine, event.finished)

    def _stream(self, model: LoadedModel, ask: Ask) -> Stream:
        defaults = self._defaults
        sampling = {**defaults.sampling, **ask.sampling}
        max_tokens = defaults.max_tokens if ask.max_tokens is None else ask.max_tokens
        stop = (*defaults.stop, *ask.stop)
        if ask.prompt is not None:
            return model.generate(
                ask.prompt, schema=ask.schema, max_tokens=max_tokens, stop=stop, **sampling
            )
        return model.chat(
            ask.messages,
            schema=ask.schema,
            think=ask.think or defaults.think,
            max_tokens=max_tokens,
            stop=stop,
            **sampling,
        )

    async def _on_thread(self, work: _Work) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Event | None] = asyncio.Queue()

        def emit(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: the program is ending
                loop.call_soon_threadsafe(heard.put_nowait, event)

        done = loop.run_in_executor(self._thread, work.run, emit)
        try:
            while (event := await heard.get()) is not None:
                yield event
            await done  # raises what ended it
        finally:
            if not done.done():
                work.stop()
                with contextlib.suppress(Exception):
                    await asyncio.shield(done)


class _Work:
    """Something that the engine's thread does, and that can be stopped from another."""

    def __init__(self, do: Callable[[Emit, _Work], object]) -> None:
        self._do = do
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._stopped = False

    def run(self, emit: Callable[[Event | None], None]) -> None:
        """On the engine's thread. None is emitted at the end."""
        try:
            if not self._stopped:
                self._do(emit, self)
        finally:
            emit(None)

    @contextlib.contextmanager
    def running(self, stream: Stream) -> Iterator[None]:
        """Within the block ``stop`` stops the stream; at once if it was called before."""
        with self._lock:
            self._stream = stream
            if self._stopped:
                stream.close()
        with stream:
            yield

    def stop(self) -> None:
        """Stop what is being answered. A load goes on: whoever asks again finds it done."""
        with self._lock:
            self._stopped = True
            if self._stream is not None:
                self._stream.close()
