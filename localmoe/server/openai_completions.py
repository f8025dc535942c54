"""OpenAI's completions, text that goes on from a prompt: ``POST /v1/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from localmoe.app.checks import MOST_LOGPROBS
from localmoe.chat.events import AnswerDelta, TurnDone
from localmoe.engine.events import Token
from localmoe.server.asks import Accepted, Ask, Event
from localmoe.server.fields import Fields
from localmoe.server.figures import openai_usage, text_logprobs, timings
from localmoe.server.problems import Document, Problem, for_openai
from localmoe.server.replies import DONE, comment, data_line
from localmoe.server.sampling import (
    checked_schema,
    most_tokens,
    one_answer,
    sampling_of,
    schema_of,
    stop_texts,
)

FINISH = {"stop": "stop", "length": "length", "interrupted": "stop"}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One request, checked."""

    ask: Ask
    stream: bool
    usage: bool  # a streaming client wants the usage too
    echo: bool  # the prompt is part of the text


def read(fields: Fields) -> CompletionRequest:
    """The request in a body. Raises Problem."""
    model = fields.text("model")
    options = fields.inner("stream_options")
    one_answer(fields)
    if fields.text("suffix"):
        raise Problem(400, "suffix: the models here only go on from a prompt", param="suffix")
    schema = schema_of(fields)
    own = fields.raw("json_schema")  # llama-server's way
    ask = Ask(
        model=model,
        prompt=_prompt(fields),
        sampling=sampling_of(fields),
        max_tokens=most_tokens(fields, "max_tokens", "n_predict"),
        stop=stop_texts(fields),
        top_logprobs=fields.whole("logprobs", 0, MOST_LOGPROBS),
        schema=schema if own is None else checked_schema(own, "json_schema"),
    )
    return CompletionRequest(
        ask,
        stream=fields.flag("stream") or False,
        usage=(options is not None and options.flag("include_usage")) or False,
        echo=fields.flag("echo") or False,
    )


def _prompt(fields: Fields) -> str:
    prompt = fields.raw("prompt")
    if prompt is None:
        fields.missing("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        fields.wrong("prompt", "one text that is not empty")
    return prompt


class CompletionWriter:
    """One answer as ``text_completion``."""

    def __init__(self, request: CompletionRequest) -> None:
        self._request = request
        self._id = f"cmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = request.ask.model or ""
        self._offset = 0  # characters that were sent

    def begin(self, accepted: Accepted) -> bytes:
        self._model = self._model or accepted.model
        return self._chunk(self._prefix) if self._prefix else b""

    def event(self, event: Event) -> bytes:
        match event:
            case AnswerDelta(text, tokens):
                return self._chunk(text, tokens)
            case TurnDone():
                return self._end(event)
        return b""

    def sign_of_life(self, words: str) -> bytes:
        return comment(words)

    def problem(self, problem: Problem) -> bytes:
        return data_line(for_openai(problem))

    def document(self, done: TurnDone, tokens: Sequence[Token]) -> Document:
        finish = FINISH[done.finish_reason]
        return {
            **self._body(self._prefix + done.answer, finish, tokens),
            "usage": openai_usage(done),
            "timings": timings(done),
        }

    @property
    def _prefix(self) -> str:
        return (self._request.ask.prompt or "") if self._request.echo else ""

    def _end(self, done: TurnDone) -> bytes:
        last = {**self._body("", FINISH[done.finish_reason]), "timings": timings(done)}
        data = data_line(last)
        if self._request.usage:
            data += data_line({**self._body("", None), "choices": [], "usage": openai_usage(done)})
        return data + DONE

    def _chunk(self, text: str, tokens: Sequence[Token] = ()) -> bytes:
        data = data_line(self._body(text, None, tokens))
        self._offset += len(text)
        return data

    def _body(
        self, text: str, finish: str | None, tokens: Sequence[Token] = ()
    ) -> dict[str, object]:
        offset = self._offset + (len(self._prefix) if finish else 0)
        choice = {
            "index": 0,
            "text": text,
            "logprobs": text_logprobs(tokens, offset),
            "finish_reason": finish,
        }
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
        }
