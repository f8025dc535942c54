"""The paths of the server, and the way of a request through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Scope

from localmoe.app.listener import Listener
from localmoe.chat.events import TurnDone
from localmoe.server import (
    anthropic,
    openai_chat,
    openai_completions,
    openai_responses,
    openapi,
)
from localmoe.server.answering import Answering
from localmoe.server.asks import Ask
from localmoe.server.dialects import problems_at
from localmoe.server.fields import Fields
from localmoe.server.json_body import Bodies
from localmoe.server.listing import model_document, models_document
from localmoe.server.metrics import Metrics
from localmoe.server.problems import Problem, problem_of
from localmoe.server.replies import Reply, Writer, refusal
from localmoe.server.sampling import MAX_INT
from localmoe.text import clean_line, counted, format_duration, shortened


class Spoken(Protocol):
    """A request that a dialect has read."""

    @property
    def ask(self) -> Ask: ...

    @property
    def stream(self) -> bool: ...


DIALECTS: Sequence[tuple[str, Callable[[Fields], Spoken], Callable[[Any], Writer]]] = (
    ("/v1/chat/completions", openai_chat.read, openai_chat.ChatWriter),
    ("/v1/completions", openai_completions.read, openai_completions.CompletionWriter),
    ("/v1/responses", openai_responses.read, openai_responses.ResponsesWriter),
    ("/v1/messages", anthropic.read, anthropic.MessagesWriter),
)
COUNTS: Sequence[tuple[str, Callable[[Fields], Spoken]]] = (
    ("/v1/chat/completions/input_tokens", openai_chat.read),
    ("/v1/responses/input_tokens", openai_responses.read),
    ("/v1/messages/count_tokens", anthropic.read),
)
TEXTS = ("/tokenize", "/detokenize", "/apply-template")
COUNTED = frozenset((*(path for path, _, _ in DIALECTS), *(path for path, _ in COUNTS), *TEXTS))
MOST_NOTED = 100
UNSUPPORTED = (
    "/v1/embeddings",
    "/v1/images/{what:path}",
    "/v1/audio/{what:path}",
    "/v1/moderations",
    "/v1/rerank",
)


class Paths:
    """What is answered at which path."""

    def __init__(self, answering: Answering, listener: Listener) -> None:
        self._answering = answering
        self._listener = listener
        self._bodies = Bodies()
        self._metered = Metrics()
        self._noted: set[str] = set()  # what was said once, and is not again
        self.last_used = time.monotonic()

    def app(self) -> Starlette:
        """The application."""
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route("/detokenize", self._detokenize, methods=["POST"]),
                Route("/apply-template", self._apply_template, methods=["POST"]),
                *(Route(path, self._count(read), methods=["POST"]) for path, read in COUNTS),
                *(
                    Route(path, self._dialect(read, writer), methods=["POST"])
                    for path, read, writer in DIALECTS
                ),
                *(Route(path, self._unsupported, methods=["POST"]) for path in UNSUPPORTED),
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

    def _dialect(self, read: Callable[[Fields], Spoken], writer: Callable[[Any], Writer]) -> Any:
        """The endpoint of a dialect that is read and written so."""

        async def endpoint(request: Request) -> Response:
            fields = await self._fields(request)
            asked = read(fields)
            self._note_left_out(fields, asked.ask)
            return self._reply(request, asked.ask, writer(asked), stream=asked.stream)

        return endpoint

    def _count(self, read: Callable[[Fields], Spoken]) -> Any:
        """The endpoint that counts the tokens of a request that is read so."""

        async def endpoint(request: Request) -> Response:
            asked = read(await self._fields(request))
            tokens = await self._answering.count(asked.ask)
            return JSONResponse({"input_tokens": tokens})

        return endpoint

    async def _tokenize(self, request: Request) -> Response:
        fields = await self._fields(request)
        text = fields.required_text("content")
        special = fields.flag("parse_special")
        tokens = await self._answering.tokens(
            fields.text("model"),
            text,
            special=True if special is None else special,
            whole=fields.flag("add_special") or False,
        )
        if not fields.flag("with_pieces"):
            return JSONResponse({"tokens": [token for token, _ in tokens]})
        pieces = [{"id": token, "piece": piece_of(spelled)} for token, spelled in tokens]
        return JSONResponse({"tokens": pieces})

    async def _detokenize(self, request: Request) -> Response:
        fields = await self._fields(request)
        tokens = fields.items("tokens")
        if tokens is None:
            fields.missing("tokens")
        if not all(type(token) is int and 0 <= token <= MAX_INT for token in tokens):
            fields.wrong("tokens", "a list of the numbers of tokens")
        text = await self._answering.spelled(fields.text("model"), tokens)
        return JSONResponse({"content": text.decode(errors="replace")})

    async def _apply_template(self, request: Request) -> Response:
        asked = openai_chat.read(await self._fields(request))
        return JSONResponse({"prompt": await self._answering.prompt(asked.ask)})

    async def _metrics(self, request: Request) -> Response:
        admission = self._answering.admission
        text = self._metered.text(running=min(1, admission.inside), waiting=admission.waiting)
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document())

    async def _unsupported(self, request: Request) -> Response:
        what = request.url.path.removeprefix("/v1/").partition("/")[0]
        raise Problem(400, f"the models here read and write text: no {what}", code="unsupported")

    async def _fields(self, request: Request) -> Fields:
        return Fields(await self._bodies.object_of(request))

    def _note_left_out(self, fields: Fields, ask: Ask) -> None:
        """Say once what of a request is ignored: fields, and keywords of its tools' schemas."""
        found = [("have a field that is ignored", shortened(name, 60)) for name in fields.unread]
        left_out = ask.tools.not_enforced if ask.tools else ()
        found += [("have a tool with what no grammar enforces", words) for words in left_out]
        for what, words in found:
            note = f"requests {what}: {clean_line(words)}"
            if note not in self._noted and len(self._noted) < MOST_NOTED:
                self._noted.add(note)
                self._listener.note(note)

    def _reply(self, request: Request, ask: Ask, writer: Writer, *, stream: bool) -> Reply:
        started = time.monotonic()
        self.last_used = started

        def note(status: int, dones: Sequence[TurnDone]) -> None:  # never a text of it
            self.last_used = time.monotonic()
            self._metered.add(known(request.url.path), status, dones)
            took = format_duration(self.last_used - started)
            self._listener.note(_line(request, status, ask.model, dones, took))

        events = self._answering.answer(ask)
        return Reply(events, writer, problems_at(request.url.path), note, stream=stream)

    async def _refused(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            words = {404: "there is nothing at this path", 405: "not with this method"}
            problem = Problem(error.status_code, words.get(error.status_code, error.detail))
        else:
            problem = problem_of(error)
        if request.method == "POST" or problem.status >= 500:
            self.note_refusal(request.scope, problem)
        return refusal(problem, problems_at(request.url.path))

    def note_refusal(self, scope: Scope, problem: Problem) -> None:
        """Count and log a request that is not answered."""
        request = Request(scope)
        self._metered.add(known(request.url.path), problem.status, ())
        self._listener.note(_line(request, problem.status, None, (), problem.code or ""))

    async def _left(self, request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody reads it


def piece_of(spelled: bytes) -> str | list[int]:
    """A token's text; its bytes where they are no text by themselves, as llama-server has it."""
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return list(spelled)


def known(path: str) -> str:
    """The path as it is counted: one that clients make up is "other"."""
    return path if path in COUNTED else "other"


def _line(
    request: Request, status: int, model: str | None, dones: Sequence[TurnDone], took: str
) -> str:
    """A line of the log: who, what, how much, how long; never a text."""
    parts = [f"{request.method} {shortened(request.url.path, 60)} {status}"]
    if model:
        parts.append(shortened(model, 60))
    if dones:
        usage = dones[0].usage
        cached = f" ({usage.reused_tokens:,} cached)" if usage.reused_tokens else ""
        written = counted(sum(done.usage.completion_tokens for done in dones), "token")
        parts.append(f"{usage.prompt_tokens:,}{cached} + {written}")
    parts.append(took)
    parts.append(request.client.host if request.client else "")
    return clean_line(" · ".join(filter(None, parts)))
