"""How many requests are inside, and for which model: those for another one wait until it is free.

Who of those inside is answered first is ``app.shared``'s to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from localmoe.server.problems import Problem

FIRST_GUESS = 5.0  # seconds that a request takes, before any was answered
WEIGHT = 0.3  # of the newest one in the mean


class Admission:
    """Requests for one model are inside together, in the order in which they came.

    For use from one event loop.
    """

    def __init__(self, most: int) -> None:
        """``most``: requests that may wait, for their model or for their turn."""
        self._most = most
        self._model: object = None  # that of those inside
        self._queue: deque[tuple[object, asyncio.Future[None]]] = deque()
        self._seconds = FIRST_GUESS
        self.inside = 0
        self.closed = False  # no new request is taken

    @property
    def waiting(self) -> int:
        """Requests that wait, for their model or for their turn."""
        return len(self._queue) + max(0, self.inside - 1)

    @contextlib.asynccontextmanager
    async def to(self, model: object) -> AsyncIterator[None]:
        """Inside the block requests for this model, and no others, are inside.

        Raises Problem if too many wait, or the server is about to end.
        """
        if self.closed:
            raise Problem(503, "the server is about to end", code="ending", retry_after=10)
        if self.waiting >= self._most:
            raise Problem(
                429,
                f"{self._most} requests are waiting already",
                code="queue_full",
                retry_after=max(1, round(self._seconds)),
            )
        await self._enter(model)
        started = time.monotonic()
        try:
            yield
        finally:
            self._seconds += WEIGHT * (time.monotonic() - started - self._seconds)
            self.inside -= 1
            self._let_in()

    @contextlib.asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Inside the block nobody else is inside."""
        async with self.to(object()):
            yield

    async def _enter(self, model: object) -> None:
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((model, mine))
        self._let_in()
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it had just been let in
                self.inside -= 1
            else:
                self._queue = deque(entry for entry in self._queue if entry[1] is not mine)
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._queue:
            model, first = self._queue[0]
            if first.cancelled():
                self._queue.popleft()
            elif not self.inside or model == self._model:
                self._queue.popleft()
                self._model = model
                self.inside += 1
                first.set_result(None)
            else:
                return
