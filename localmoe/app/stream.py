"""The events of one answer, to be read and stopped from any thread or task."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from types import TracebackType
from typing import Self

from localmoe.chat.events import ChatEvent, TurnDone
from localmoe.errors import EngineError


class Stream:
    """The events of one answer as they happen; the last one is ``TurnDone``.

    ``close`` stops the answer, from any thread; so does leaving its ``with`` block, cancelling the
    task that reads it with ``async for``, and dropping the last reference to it. One thread or task
    reads at a time.
    """

    def __init__(
        self, events: Generator[ChatEvent, None, None], cancel: Callable[[], None]
    ) -> None:
        """``cancel`` makes ``events`` end early; it is called from any thread."""
        self._events = events
        self._cancel = cancel
        self._reading = threading.Lock()
        self._closed = threading.Event()
        self._done: TurnDone | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatEvent:
        with self._reading:
            if self._closed.is_set():
                self._events.close()
            event = next(self._events)
            if isinstance(event, TurnDone):
                self._done = event
            elif self._closed.is_set():  # while this event was waited for
                self._events.close()
                raise StopIteration
            return event

    def result(self) -> TurnDone:
        """The whole answer, once it has ended; again the same. Raises what reading raises."""
        for _ in self:
            pass
        if self._done is None:
            raise EngineError("the answer was stopped before its end", hint="ask again")
        return self._done

    def close(self) -> None:
        """Stop the answer. A thread that waits for its next event gets the end of it."""
        self._closed.set()
        if self._reading.acquire(blocking=False):
            try:
                self._events.close()
            finally:
                self._reading.release()
        else:
            self._cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatEvent:
        """The next event, waited for in a thread."""
        import asyncio  # late: who reads it without need not wait for the import

        try:
            event = await asyncio.to_thread(next, self, None)
        except asyncio.CancelledError:
            self.close()
            raise
        if event is None:
            raise StopAsyncIteration
        return event

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import asyncio

        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        """Stop the answer, and wait until whoever reads it has noticed: then the model is free."""
        self.close()
        with self._reading:
            self._events.close()


def result(events: Iterable[ChatEvent]) -> TurnDone:
    """The end of a turn, waited for. Raises EngineError, and what the events raise."""
    if isinstance(events, Stream):
        return events.result()
    done = None
    for event in events:
        if isinstance(event, TurnDone):
            done = event
    if done is None:
        raise EngineError("the engine ended a turn without saying why")
    return done
