"""OpenAI's completions, text that goes on from a prompt: ``POST /v1/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

from localmoe.app.checks import MOST_LOGPROBS
from localmoe.chat.events import AnswerDelta, TurnDone
from localmoe.engine.events import Token
from localmoe.server.asks import Accepted, Answered, Ask, Event
from localmoe.server.fields import Fields
from localmoe.server.figures import openai_usage, text_logprobs, timings
from localmoe.server.problems import Document, Problem, for_openai
from localmoe.server.replies import DONE, comment, data_line
from localmoe.server.sampling import (
    answers_of,
    most_tokens,
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
    if fields.text("suffix"):
        raise Problem(400, "suffix: the models here only go on from a prompt", param="suffix")
    ask = Ask(
        model=model,
        prompt=_prompt(fields),
        sampling=sampling_of(fields),
        max_tokens=most_tokens(fields, "max_tokens", "n_predict"),
        stop=stop_texts(fields),
        top_logprobs=fields.whole("logprobs", 0, MOST_LOGPROBS),
        schema=schema_of(fields),
        answers=answers_of(fields),
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
        self._offset = 0  # characters that were sent of the answer under way
        self._ended: list[TurnDone] = []  # answers; their number is the index of the next one

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

    def document(self, answers: Sequence[Answered]) -> Document:
        return {
            **self._head,
            "choices": [self._whole(index, answer) for index, answer in enumerate(answers)],
            "usage": openai_usage([answer.done for answer in answers]),
            "timings": timings(answers[-1].done),
        }

    def _whole(self, index: int, answer: Answered) -> Document:
        text = self._prefix + answer.done.answer
        logprobs = text_logprobs(answer.tokens, len(self._prefix))
        return _choice(index, text, logprobs, FINISH[answer.done.finish_reason])

    @property
    def _prefix(self) -> str:
        return (self._request.ask.prompt or "") if self._request.echo else ""

    def _end(self, done: TurnDone) -> bytes:
        data = self._line("", FINISH[done.finish_reason], timings=timings(done))
        self._ended.append(done)
        self._offset = 0
        if len(self._ended) < self._request.ask.answers:
            return data + (self._chunk(self._prefix) if self._prefix else b"")
        if self._request.usage:
            data += data_line({**self._head, "choices": [], "usage": openai_usage(self._ended)})
        return data + DONE

    def _chunk(self, text: str, tokens: Sequence[Token] = ()) -> bytes:
        data = self._line(text, None, text_logprobs(tokens, self._offset))
        self._offset += len(text)
        return data

    def _line(
        self, text: str, finish: str | None, logprobs: Document | None = None, **more: object
    ) -> bytes:
        choice = _choice(len(self._ended), text, logprobs, finish)
        return data_line({**self._head, "choices": [choice], **more})

    @property
    def _head(self) -> dict[str, object]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
        }


def _choice(index: int, text: str, logprobs: Document | None, finish: str | None) -> Document:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
