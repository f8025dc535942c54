"""Whose turn it is: one answer at a time, a bounded queue, clients served in rotation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator

from localmoe.server.problems import Problem

FIRST_GUESS = 5.0  # seconds that an answer takes, before any was given
WEIGHT = 0.3  # of the newest answer in the mean


class Turns:
    """One client after another: who sends many requests does not keep the others waiting.

    For use from one event loop.
    """

    def __init__(self, most: int) -> None:
        """``most``: requests that may wait."""
        self._most = most
        self._queues: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._busy = False
        self._seconds = FIRST_GUESS
        self.closed = False  # no new request is taken

    @property
    def busy(self) -> bool:
        """Whether somebody has the turn."""
        return self._busy

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return sum(map(len, self._queues.values()))

    @contextlib.asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for the turn, and have it within the block. Raises Problem if too many wait."""
        await self._take(client)
        started = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - started
            self._seconds += WEIGHT * (took - self._seconds)
            self._pass_on()

    async def _take(self, client: str) -> None:
        if self.closed:
            raise Problem(503, "the server is about to end", code="ending", retry_after=10)
        if not self._busy:
            self._busy = True
            return
        if self.waiting >= self._most:
            raise Problem(
                429,
                f"{self._most} requests are waiting already",
                code="queue_full",
                retry_after=max(1, round(self._seconds)),
            )
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(client, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # the turn had just come
                self._pass_on()
            else:
                self._leave(client, mine)
            raise

    def _leave(self, client: str, mine: asyncio.Future[None]) -> None:
        queue = self._queues.get(client, deque())
        with contextlib.suppress(ValueError):  # passed over already
            queue.remove(mine)
        if not queue:
            self._queues.pop(client, None)

    def _pass_on(self) -> None:
        while self._queues:
            client, queue = self._queues.popitem(last=False)
            first = queue.popleft()
            if queue:
                self._queues[client] = queue  # behind the others
            if not first.done():
                first.set_result(None)
                return
        self._busy = False
