"""The paths of the server, and the way of a request through it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from localmoe.app.listener import Listener
from localmoe.chat.events import TurnDone
from localmoe.server import openai_chat
from localmoe.server.answering import Answering
from localmoe.server.asks import Ask
from localmoe.server.dialects import problems_at
from localmoe.server.fields import Fields
from localmoe.server.json_body import Bodies
from localmoe.server.listing import model_document, models_document
from localmoe.server.problems import Problem, problem_of
from localmoe.server.replies import Reply, Writer, refusal
from localmoe.text import clean_line, counted, format_duration, shortened

Endpoint = Callable[[Request], Awaitable[Response]]


class Paths:
    """What is answered at which path."""

    def __init__(self, answering: Answering, listener: Listener) -> None:
        self._answering = answering
        self._listener = listener
        self._bodies = Bodies()
        self._unknown: set[str] = set()  # fields that were ignored, and said to be
        self.last_used = time.monotonic()

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
            exception_handlers={
                HTTPException: self._refused,
                Problem: self._refused,
                ClientDisconnect: self._left,
                Exception: self._refused,
            },
        )

    async def _health(self, request: Request) -> Response:
        model = self._answering.models.current
        if model is not None and model.loaded is None:
            raise Problem(503, "the model is being loaded", code="loading", retry_after=2)
        return JSONResponse({"status": "ok"})

    async def _models(self, request: Request) -> Response:
        document = await asyncio.to_thread(models_document, self._answering.models)
        return JSONResponse(document)

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        document = await asyncio.to_thread(model_document, self._answering.models, name)
        return JSONResponse(document)

    async def _chat(self, request: Request) -> Response:
        fields = await self._fields(request)
        asked = openai_chat.read(fields)
        self._note_unread(fields)
        writer = openai_chat.ChatWriter(asked)
        return self._reply(request, asked.ask, writer, stream=asked.stream)

    async def _fields(self, request: Request) -> Fields:
        return Fields(await self._bodies.object_of(request))

    def _note_unread(self, fields: Fields) -> None:
        for name in fields.unread:
            if name not in self._unknown and len(self._unknown) < 100:
                self._unknown.add(name)
                shown = clean_line(shortened(name, 60))
                self._listener.note(f"requests have a field that is ignored: {shown}")

    def _reply(self, request: Request, ask: Ask, writer: Writer, *, stream: bool) -> Reply:
        started = time.monotonic()
        who = client_of(request)
        self.last_used = started

        def note(status: int, done: TurnDone | None) -> None:  # never a text of it
            self.last_used = time.monotonic()
            took = format_duration(self.last_used - started)
            self._listener.note(_line(request, status, ask.model, done, took))

        events = self._answering.answer(ask, who)
        return Reply(events, writer, problems_at(request.url.path), note, stream=stream)

    async def _refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: "there is nothing at this path", 405: "not with this method"}
            problem = Problem(error.status_code, words.get(error.status_code, error.detail))
        else:
            problem = problem_of(error)
        if request.method == "POST" or problem.status >= 500:
            self._listener.note(_line(request, problem.status, None, None, ""))
        return refusal(problem, problems_at(request.url.path))

    async def _left(self, request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it


def client_of(request: Request) -> str:
    """Who asks, for the queue: address, program and key, the latter two as a hash."""
    host = request.client.host if request.client else ""
    headers = request.headers
    known = "\n".join(headers.get(n, "") for n in ("user-agent", "authorization", "x-api-key"))
    return f"{host} {hashlib.sha256(known.encode()).hexdigest()[:16]}"


def _line(
    request: Request, status: int, model: str | None, done: TurnDone | None, took: str
) -> str:
    """A line of the log: who, what, how much, how long; never a text."""
    parts = [f"{request.method} {shortened(request.url.path, 60)} {status}"]
    if model:
        parts.append(shortened(model, 60))
    if done is not None:
        usage = done.usage
        cached = f" ({usage.reused_tokens:,} cached)" if usage.reused_tokens else ""
        written = counted(usage.completion_tokens, "token")
        parts.append(f"{usage.prompt_tokens:,}{cached} + {written}")
    parts.append(took)
    parts.append(request.client.host if request.client else "")
    return clean_line(" · ".join(filter(None, parts)))
