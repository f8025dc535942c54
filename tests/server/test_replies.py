"""Signs of life, and what is sent when an answer breaks off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from localmoe.chat.events import AnswerDelta, Timings, TurnDone, Usage
from localmoe.engine.events import PrefillProgress
from localmoe.errors import ContextOverflowError, EngineCrashError
from localmoe.server import limits
from localmoe.server.asks import Accepted, Ask, Event
from localmoe.server.openai_chat import ChatRequest, ChatWriter
from localmoe.server.problems import for_openai
from localmoe.server.replies import Broken, Reply

DONE = TurnDone("stop", "hi", "", Usage(3, 1), Timings(0.1, None, None))


class Client:
    """Hears a reply; ``leave`` closes the connection."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.leave = asyncio.Event()
        self.heard = asyncio.Condition()
        self.ended: list[int] = []

    async def receive(self) -> Message:
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        async with self.heard:
            self.sent.append(message)
            self.heard.notify_all()

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent).decode()

    async def hears(self, text: str) -> None:
        async with self.heard:
            await self.heard.wait_for(lambda: text in self.text)

    async def of(self, events: AsyncGenerator[Event, None], *, stream: bool) -> None:
        writer = ChatWriter(ChatRequest(Ask(model="m"), stream, usage=False, progress=False))
        note = lambda status, done: self.ended.append(status)  # noqa: E731
        reply = Reply(events, writer, for_openai, note, stream=stream)
        await reply({"type": "http"}, self.receive, self.send)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SIGN_OF_LIFE", 0.01)
    monkeypatch.setattr(limits, "UNDECIDED", 0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_silence_is_filled(stream: bool) -> None:
    """While a prompt is read, and before it is, the client hears nothing; or it breaks the JSON."""

    async def scene() -> None:
        client, go_on = Client(), asyncio.Event()

        async def events() -> AsyncGenerator[Event, None]:
            await client.hears(": on its way" if stream else " ")
            yield Accepted("m", 10)
            yield PrefillProgress(1, 3, 0)
            await client.hears("1 of 3 tokens" if stream else "  ")
            yield AnswerDelta("hi")
            yield DONE

        await client.of(events(), stream=stream)
        assert client.ended == [200]
        if stream:
            assert client.text.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(client.text)["choices"][0]["message"]["content"] == "hi"
        go_on.set()

    asyncio.run(scene())


def test_an_early_error_is_a_status() -> None:
    """A prompt that is too long is a 200."""

    async def events() -> AsyncGenerator[Event, None]:
        raise ContextOverflowError("the prompt has 9 tokens, the context 8")
        yield DONE

    async def scene() -> None:
        client = Client()
        await client.of(events(), stream=True)
        assert client.sent[0]["status"] == 400
        assert "context_length_exceeded" in client.text

    asyncio.run(scene())


@pytest.mark.parametrize("stream", [True, False])
def test_a_late_error_cannot_be_taken_for_an_answer(stream: bool) -> None:
    """An answer that breaks off ends like a whole one."""

    async def events() -> AsyncGenerator[Event, None]:
        yield Accepted("m", 10)
        yield AnswerDelta("hi")
        raise EngineCrashError("it died")

    async def scene() -> None:
        client = Client()
        if stream:
            await client.of(events(), stream=True)
            assert "engine_crash" in client.text
            assert "[DONE]" not in client.text
        else:
            with pytest.raises(Broken):
                await client.of(events(), stream=False)
            assert client.sent[-1].get("more_body", True)

    asyncio.run(scene())


def test_who_leaves_with_the_last_word_was_answered() -> None:
    """A client that closes its connection at [DONE], as libraries do, is said to have left."""

    async def scene() -> None:
        client = Client()

        async def events() -> AsyncGenerator[Event, None]:
            yield Accepted("m", 10)
            yield DONE
            client.leave.set()
            await asyncio.Event().wait()

        await client.of(events(), stream=True)
        assert client.ended == [200]

    asyncio.run(scene())


def test_who_leaves_closes_the_answer() -> None:
    """The answer to a client that went away is computed on."""

    async def scene() -> None:
        client, closed = Client(), asyncio.Event()

        async def events() -> AsyncGenerator[Event, None]:
            try:
                client.leave.set()
                await asyncio.Event().wait()
                yield DONE
            finally:
                closed.set()

        await client.of(events(), stream=True)
        assert closed.is_set()
        assert client.ended == [499]

    asyncio.run(scene())


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_with_the_whole_answer_has_had_it(stream: bool) -> None:
    """A client may close the connection before the server knows that its last byte was sent."""

    class Hasty(Client):
        async def send(self, message: Message) -> None:
            await super().send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self.leave.set()
                await asyncio.sleep(0.05)

    async def scene() -> None:
        client = Hasty()

        async def events() -> AsyncGenerator[Event, None]:
            yield Accepted("m", 10)
            yield AnswerDelta("hi")
            yield DONE

        await client.of(events(), stream=stream)
        assert client.ended == [200]

    asyncio.run(scene())
