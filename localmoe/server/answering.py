"""Answers: an ``Ask`` in, events out. Threads talk to the engine, the event loop waits."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import dataclasses
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from localmoe.app.experience import learn_from
from localmoe.app.listener import Listener
from localmoe.app.model import LoadedModel
from localmoe.app.requests import SampleRequest
from localmoe.app.stream import Stream
from localmoe.chat.context import answer_room
from localmoe.chat.events import ChatEvent, TurnDone
from localmoe.engine.events import PrefillProgress
from localmoe.errors import EngineError
from localmoe.planning.context import too_long
from localmoe.server import limits
from localmoe.server.admission import Admission
from localmoe.server.asks import Accepted, Ask, Event, Loading, Message, Waiting
from localmoe.server.models import Models
from localmoe.server.problems import Problem
from localmoe.text import counted

Emit = Callable[[Event], None]


class Answering:
    """One model, asked from many threads: a request has one of its own."""

    def __init__(
        self,
        models: Models,
        admission: Admission,
        defaults: SampleRequest,
        listener: Listener,
        *,
        learns: bool,
        drops: bool,
    ) -> None:
        """``defaults``: where a request says nothing; ``learns``: speeds are kept for forecasts;
        ``drops``: a conversation that is too long loses its oldest turns.
        """
        self.models = models
        self.admission = admission
        self._defaults = defaults
        self._listener = listener
        self._learns = learns
        self._drops = drops
        self._threads = ThreadPoolExecutor(limits.QUEUE + 2, "request")

    async def answer(self, ask: Ask) -> AsyncGenerator[Event, None]:
        """The events of the answer, the last one ``TurnDone``; of several, each ends with one.

        Closing the generator leaves the queue, or stops the answer and waits until the engine is
        free. Raises Problem, and what planning, loading and answering raise.
        """
        if self.admission.inside:
            await self._check_length(ask)
            yield Waiting(self.admission.waiting + 1)
        async with self.admission.to(self.models.target(ask.model)):
            work = _Work(lambda emit, work: self._answer(ask, emit, work))
            async with contextlib.aclosing(self._on_thread(work)) as events:
                async for event in events:
                    yield event

    async def count(self, ask: Ask) -> int:
        """Tokens of the prompt that the answer would begin with, while others are answered too."""
        model = await self._model(ask.model)
        return await asyncio.to_thread(self._count, model, ask)

    async def prompt(self, ask: Ask) -> str:
        """The text that the answer would begin with, as the model reads it."""
        model = await self._model(ask.model)
        use, level = ask.tools or (), ask.think or self._defaults.think
        return await asyncio.to_thread(
            lambda: model.render_prompt(ask.messages, think=level, tools=use)
        )

    async def spelled(self, name: str | None, tokens: Sequence[int]) -> bytes:
        """The text of tokens; nothing for a number that is none."""
        model = await self._model(name)
        return b"".join(await asyncio.to_thread(model.spell, tokens))

    async def tokens(
        self, name: str | None, text: str, *, special: bool, whole: bool
    ) -> list[tuple[int, bytes]]:
        """The tokens of a text, with the bytes of each; ``special`` as in ``Engine.tokenize``."""
        model = await self._model(name)

        def found() -> list[tuple[int, bytes]]:
            tokens = model.tokenize(text, special=special, whole=whole)
            return list(zip(tokens, model.spell(tokens), strict=True))

        return await asyncio.to_thread(found)

    async def _model(self, name: str | None) -> LoadedModel:
        """The model of that name, loaded."""
        if (model := self.models.ready(name)) is None:
            await self.load(name)
            model = self.models.ready(name)
        if model is None:
            raise Problem(503, "another model was loaded meanwhile", retry_after=5)
        return model

    def _count(self, model: LoadedModel, ask: Ask) -> int:
        if ask.prompt is not None:
            return model.engine.count_prompt(ask.prompt)
        return self._tokens_of(model, ask.messages, ask)

    async def _check_length(self, ask: Ask) -> None:
        """Raises ContextOverflowError now, rather than when it is this request's turn."""
        model = self.models.ready(ask.model)
        if model is not None and model.loaded is not None:
            try:
                tokens = await asyncio.to_thread(self._count, model, ask)
            except EngineError:  # it has just died: by this request's turn there is another one
                return
            if tokens >= model.loaded.context and (ask.prompt is not None or not self._drops):
                raise too_long(tokens, model.loaded.context, model.facts.context_train)

    async def load(self, name: str | None) -> None:
        """Have a model loaded. Raises what planning and loading raise."""
        async with self.admission.to(self.models.target(name)):
            work = _Work(lambda emit, work: self._load(name, emit))
            async with contextlib.aclosing(self._on_thread(work)) as events:
                async for _ in events:
                    pass

    async def unload(self) -> None:
        """Give the model's memory back when nobody is being answered."""
        async with self.admission.alone():
            await asyncio.to_thread(self.models.unload)

    def close(self) -> None:
        """End the engine, and the threads with it."""
        if self.models.current is not None:
            self.models.current.closed = True  # nobody brings it back
            self.models.current.engine.close()  # a load or an answer under way ends with an error
        self._threads.shutdown(wait=True)
        self.models.unload()

    def _load(self, name: str | None, emit: Emit) -> LoadedModel:
        for event in self.models.bring_in(name):
            emit(Loading(event.fraction))
        return self.models.caller()

    def _answer(self, ask: Ask, emit: Emit, work: _Work) -> None:
        model = self._load(ask.model, emit)
        if self._drops and ask.prompt is None:
            ask = self._shortened(model, ask)
        accepted = False
        for number in range(ask.answers):
            stream = self._stream(model, ask, number)
            with work.running(stream):
                for event in stream:
                    if not accepted:
                        emit(_accepted(model, event))
                        accepted = True
                    emit(event)
                    if isinstance(event, TurnDone) and self._learns:
                        learn_from(model.facts, model.plan, model.machine, event.finished)

    def _shortened(self, model: LoadedModel, ask: Ask) -> Ask:
        """The ask without the oldest turns, as far as it would not fit with them."""
        assert model.loaded is not None
        room = model.loaded.context - answer_room(model.loaded.context, ask.max_tokens)
        messages = fitting(ask.messages, lambda some: self._tokens_of(model, some, ask), room)
        if dropped := len(ask.messages) - len(messages):
            self._listener.note(f"{counted(dropped, 'message')} too long ago for the context")
        return dataclasses.replace(ask, messages=messages)

    def _tokens_of(self, model: LoadedModel, messages: Sequence[Message], ask: Ask) -> int:
        return model.count_prompt(
            messages, think=ask.think or self._defaults.think, tools=ask.tools or ()
        )

    def _stream(self, model: LoadedModel, ask: Ask, number: int) -> Stream:
        """The answer of that number; a seed is the first one's, and the next ones' follow."""
        defaults = self._defaults
        sampling = {**defaults.sampling, **ask.sampling}
        if (seed := sampling.get("seed")) is not None:
            sampling["seed"] = (seed + number) % 2**32
        max_tokens = defaults.max_tokens if ask.max_tokens is None else ask.max_tokens
        stop = (*defaults.stop, *ask.stop)
        if ask.prompt is not None:
            return model.generate(
                ask.prompt,
                schema=ask.schema,
                max_tokens=max_tokens,
                stop=stop,
                top_logprobs=ask.top_logprobs,
                **sampling,
            )
        return model.chat(
            ask.messages,
            schema=ask.schema,
            think=ask.think or defaults.think,
            max_tokens=max_tokens,
            stop=stop,
            tools=ask.tools or (),
            top_logprobs=ask.top_logprobs,
            **sampling,
        )

    async def _on_thread(self, work: _Work) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[Event | None] = asyncio.Queue()

        def emit(event: Event | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: the program is ending
                loop.call_soon_threadsafe(heard.put_nowait, event)

        done = loop.run_in_executor(self._threads, work.run, emit)
        try:
            while (event := await heard.get()) is not None:
                yield event
            await done  # raises what ended it
        finally:
            if not done.done():
                work.stop()
                with contextlib.suppress(Exception):
                    await asyncio.shield(done)


def fitting(
    messages: Sequence[Message], count: Callable[[Sequence[Message]], int], room: int
) -> tuple[Message, ...]:
    """The messages without as many of the oldest turns as needed to ``count`` at most ``room``.

    The system's first words and the last turn stay, whether they fit or not. A turn begins with a
    message of the user's that follows one of somebody else's.
    """
    first = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    begins = [
        i
        for i in range(first, len(messages))
        if messages[i]["role"] == "user" and (i == first or messages[i - 1]["role"] != "user")
    ]
    whole = tuple(messages)
    candidates = [whole, *((*whole[:first], *whole[i:]) for i in begins if i > first)]
    at = bisect.bisect_left(
        candidates, True, hi=len(candidates) - 1, key=lambda c: count(c) <= room
    )
    return candidates[at]


def _accepted(model: LoadedModel, first: ChatEvent) -> Accepted:
    assert model.loaded is not None
    name, context = model.facts.name, model.loaded.context
    if not isinstance(first, PrefillProgress):
        return Accepted(name, context)
    reads = first.total - first.reused
    wait = None if model.forecast is None else reads / model.forecast.prefill.expected
    return Accepted(name, context, first.total, first.reused, wait)


class _Work:
    """Something that a thread does, and that can be stopped from another."""

    def __init__(self, do: Callable[[Emit, _Work], object]) -> None:
        self._do = do
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._stopped = False

    def run(self, emit: Callable[[Event | None], None]) -> None:
        """On a thread. None is emitted at the end."""
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
