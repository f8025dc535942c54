"""Answers on their way to the client: as they come, or whole; with signs of life in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localmoe.chat.events import AnswerDelta, TurnDone
from localmoe.engine.events import PrefillProgress, Token
from localmoe.server import limits
from localmoe.server.asks import Accepted, Answered, Event, Loading, Waiting
from localmoe.server.problems import Document, Problem, problem_of
from localmoe.text import format_duration

STREAM = "text/event-stream; charset=utf-8"
JSON = "application/json"
DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """One answer in the words of a dialect: as server-sent events, or whole."""

    def begin(self, accepted: Accepted) -> bytes:
        """The answer begins: what a streaming client is sent first."""
        ...

    def event(self, event: Event) -> bytes:
        """What a streaming client is sent for an event; b"" for nothing."""
        ...

    def sign_of_life(self, words: str) -> bytes:
        """What a streaming client is sent after some seconds of silence. ``words``: one line."""
        ...

    def problem(self, problem: Problem) -> bytes:
        """What a streaming client is sent when the answer breaks off."""
        ...

    def document(self, answers: Sequence[Answered]) -> Document:
        """What was answered, whole, for a client that does not stream."""
        ...


Problems = Callable[[Problem], Document]
Note = Callable[[int, Sequence[TurnDone]], None]


class Reply(Response):
    """The answer to one request; whoever goes away cancels it."""

    def __init__(
        self,
        events: AsyncGenerator[Event, None],
        writer: Writer,
        problems: Problems,
        note: Note,
        *,
        stream: bool,
    ) -> None:
        """``problems`` words an error before the status is sent; ``note`` is told how it ended."""
        super().__init__()
        self._events = events
        self._writer = writer
        self._problems = problems
        self._note = note
        self._stream = stream
        self._words = "on its way"
        self._sent = 0.0  # when the client last heard something
        self._begun = False  # the status was sent
        self._complete = False  # so was all of the answer: clients leave before its last byte
        self._answers: list[Answered] = []
        self._tokens: list[Token] = []  # of the answer under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = asyncio.create_task(self._answer(scope, receive, send))
        heart = asyncio.create_task(self._beat(send))
        gone = asyncio.create_task(_left(receive))
        status = 499  # the client went away
        try:
            await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                status = answer.result()
            elif self._complete:
                status = 200
        finally:
            for task in (gone, heart, answer):
                task.cancel()
            await asyncio.gather(gone, heart, answer, return_exceptions=True)
            self._note(status, [answer.done for answer in self._answers])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Send the answer, or why there is none; returns the status."""
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    self._words = in_words(event) or self._words
                    data = b""
                    if isinstance(event, AnswerDelta) and event.tokens and not self._stream:
                        self._tokens += event.tokens
                    if isinstance(event, TurnDone):
                        self._answers.append(Answered(event, tuple(self._tokens)))
                        self._tokens = []
                    if isinstance(event, Accepted):
                        await self._begin(send)
                        data = self._writer.begin(event)
                    elif self._stream:
                        data = self._writer.event(event)
                    if data and self._stream:
                        await self._send(send, data)
                    self._complete = self._stream and isinstance(event, TurnDone)
        except Exception as error:
            return await self._break_off(scope, receive, send, problem_of(error))
        if not self._stream:
            await self._send(send, encoded(self._writer.document(self._answers)))
            self._complete = True
        await send({"type": "http.response.body", "body": b""})
        return 200

    async def _break_off(self, scope: Scope, receive: Receive, send: Send, problem: Problem) -> int:
        if not self._begun:
            self._begun = True
            await refusal(problem, self._problems)(scope, receive, send)
        elif self._stream:
            await self._send(send, self._writer.problem(problem))
            await send({"type": "http.response.body", "body": b""})
        else:  # a whole document can no more be had: the connection breaks, which is an error too
            raise Broken(problem)
        return problem.status

    async def _beat(self, send: Send) -> None:
        """Signs of life, by the wall clock."""
        await asyncio.sleep(limits.UNDECIDED)
        await self._begin(send)
        while True:
            silent = time.monotonic() - self._sent
            if silent >= limits.SIGN_OF_LIFE:
                sign = self._writer.sign_of_life(self._words) if self._stream else b" "
                await self._send(send, sign)
                silent = 0.0
            await asyncio.sleep(limits.SIGN_OF_LIFE - silent)

    async def _begin(self, send: Send) -> None:
        if self._begun:
            return
        self._begun = True
        kind = STREAM if self._stream else JSON
        headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store")]
        if self._stream:
            headers.append((b"x-accel-buffering", b"no"))  # a proxy must not collect it
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _send(self, send: Send, data: bytes) -> None:
        await self._begin(send)
        self._sent = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": True})


class Broken(Exception):  # noqa: N818
    """An answer that broke off when its status was sent already."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


def refusal(problem: Problem, problems: Problems) -> Response:
    """The response that says why a request is not answered."""
    headers = {"cache-control": "no-store"}
    if problem.retry_after is not None:
        headers["retry-after"] = str(problem.retry_after)
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = encoded(problems(problem))
    return Response(body, problem.status, headers, media_type=JSON)


def in_words(event: Event) -> str | None:
    """An event that happens before the first word, in one line; None for others."""
    match event:
        case Waiting(ahead):
            return f"waiting: {ahead} before this one"
        case Loading(fraction):
            return f"loading the model: {100 * fraction:.0f} %"
        case PrefillProgress(done, total):
            left = f", {format_duration((total - done) / event.tps)} left" if event.tps else ""
            return f"reading the prompt: {done} of {total} tokens{left}"
    return None


def encoded(document: Document) -> bytes:
    """A document as JSON; ASCII, so that it is one line whatever is in it."""
    return json.dumps(document, separators=(",", ":")).encode()


def data_line(document: Document) -> bytes:
    """A server-sent event without a name, as OpenAI's chat completions are."""
    return b"data: " + encoded(document) + b"\n\n"


def named_event(name: str, document: Document) -> bytes:
    """A server-sent event with a name, which is the document's ``type`` too."""
    data = encoded({"type": name, **document})
    return b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


def comment(words: str) -> bytes:
    """A line that readers of server-sent events skip."""
    return f": {words}\n\n".encode()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
