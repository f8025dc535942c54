"""Who is inside."""

from __future__ import annotations

import asyncio

import pytest

from localmoe.server.admission import Admission
from localmoe.server.problems import Problem


class Room:
    """Requests, named by their model and a number: who is inside, in the order of arrival."""

    def __init__(self, most: int = 10) -> None:
        self.admission = Admission(most)
        self.inside: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}

    async def request(self, name: str) -> None:
        self.leave[name] = asyncio.Event()
        async with self.admission.to(name[0]):
            self.inside.append(name)
            try:
                await self.leave[name].wait()
            finally:
                self.inside.remove(name)

    async def come(self, *names: str) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self.request(name)) for name in names]
        await settle()
        return tasks

    async def go(self, *names: str) -> None:
        for name in names:
            self.leave[name].set()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_requests_for_another_model_wait_until_it_is_free() -> None:
    """Two models are asked at once, or whoever came first for the other one waits for ever."""

    async def scene() -> None:
        room = Room()
        tasks = await room.come("a1", "a2", "b1", "a3", "b2")
        assert room.inside == ["a1", "a2"]
        await room.go("a1")
        assert room.inside == ["a2"]
        await room.go("a2")
        assert room.inside == ["b1"]
        await room.go("b1")
        assert room.inside == ["a3"]
        await room.go("a3", "b2")
        await asyncio.gather(*tasks)
        assert room.admission.inside == 0

    asyncio.run(scene())


def test_who_leaves_the_queue_leaves_the_others_there() -> None:
    """A waiting client that goes away takes another's place with it, or keeps its own."""

    async def scene() -> None:
        room = Room()
        first, *waiting = await room.come("a1", "b1", "a2", "c1")
        waiting[0].cancel()
        await settle()
        assert room.inside == ["a1", "a2"]
        first.cancel()
        waiting[1].cancel()
        waiting[2].cancel()  # it is let in as it leaves
        await settle()
        assert (room.inside, room.admission.inside, room.admission.waiting) == ([], 0, 0)

    asyncio.run(scene())


def test_alone_means_alone() -> None:
    """A model is unloaded while somebody is answered."""

    async def scene() -> None:
        room, unloaded = Room(), asyncio.Event()

        async def unload() -> None:
            async with room.admission.alone():
                assert room.inside == []
                unloaded.set()

        (first,) = await room.come("a1")
        alone = asyncio.create_task(unload())
        await settle()
        (second,) = await room.come("a2")
        assert not unloaded.is_set()
        await room.go("a1")
        assert unloaded.is_set()
        await room.go("a2")
        await asyncio.gather(first, second, alone)

    asyncio.run(scene())


def test_the_queue_is_bounded() -> None:
    """One more than may wait is kept waiting, or is not told when to come back."""

    async def scene() -> None:
        room = Room(most=2)
        tasks = await room.come("a1", "a2", "b1")
        with pytest.raises(Problem) as caught:
            await room.request("a3")
        assert caught.value.status == 429
        assert caught.value.retry_after is not None
        room.admission.closed = True
        with pytest.raises(Problem) as caught:
            await room.request("a4")
        assert caught.value.status == 503
        await room.go("a1", "a2", "b1")
        await asyncio.gather(*tasks)

    asyncio.run(scene())
