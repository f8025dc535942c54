"""Whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from localmoe.server.problems import Problem
from localmoe.server.turns import Turns


class Room:
    """Clients that come, and the order in which they are served."""

    def __init__(self, most: int = 10) -> None:
        self.turns = Turns(most)
        self.served: list[str] = []
        self.leave = asyncio.Event()

    async def client(self, name: str) -> None:
        async with self.turns.turn(name[0]):
            self.served.append(name)
            await self.leave.wait()

    async def come(self, *names: str) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.client(name)) for name in names]
        await settle()
        return tasks


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def run(scene: Coroutine[None, None, None]) -> None:
    asyncio.run(scene)


def test_clients_take_turns() -> None:
    """Who sends many requests is served before one that came later with one."""

    async def scene() -> None:
        room = Room()
        tasks = await room.come("a1", "a2", "a3", "b1", "c1")
        room.leave.set()
        await asyncio.gather(*tasks)
        assert room.served == ["a1", "a2", "b1", "c1", "a3"]
        assert not room.turns.busy

    run(scene())


def test_who_leaves_the_queue_leaves_the_others_there() -> None:
    """A queued client that goes away takes another's turn with it, or keeps its own."""

    async def scene() -> None:
        room = Room()
        running, *queued = await room.come("a1", "b1", "b2", "c1")
        queued[0].cancel()
        await settle()
        assert room.turns.waiting == 2
        running.cancel()
        queued[2].cancel()  # the turn may be on its way to it
        await settle()
        room.leave.set()
        await queued[1]
        assert room.served == ["a1", "b2"]
        assert not room.turns.busy

    run(scene())


def test_a_turn_that_comes_as_its_client_leaves_is_passed_on() -> None:
    """A client that is cancelled in the moment of its turn keeps it for ever."""

    async def scene() -> None:
        room = Room()
        running, next_, last = await room.come("a1", "b1", "c1")
        room.leave.set()
        await asyncio.sleep(0)
        next_.cancel()
        await asyncio.wait((running, next_, last))
        assert last.exception() is None
        assert not room.turns.busy

    run(scene())


def test_the_queue_is_bounded() -> None:
    """One more than may wait is kept waiting, or is not told when to come back."""

    async def scene() -> None:
        room = Room(most=1)
        tasks = await room.come("a1", "a2")
        with pytest.raises(Problem) as caught:
            await room.client("b1")
        assert caught.value.status == 429
        assert caught.value.retry_after is not None
        room.turns.closed = True
        with pytest.raises(Problem) as caught:
            await room.client("b1")
        assert caught.value.status == 503
        room.leave.set()
        await asyncio.gather(*tasks)

    run(scene())
