"""OpenAI's chat completions: ``POST /v1/chat/completions``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from localmoe.app.checks import MOST_LOGPROBS
from localmoe.chat.events import (
    AnswerDelta,
    ReasoningDelta,
    ToolCallBegin,
    ToolCallDelta,
    TurnDone,
)
from localmoe.engine.events import PrefillProgress, Token
from localmoe.server import tool_fields
from localmoe.server.asks import Accepted, Answered, Ask, Event, Message
from localmoe.server.fields import Fields
from localmoe.server.figures import chat_logprobs, forecast, openai_usage, timings
from localmoe.server.problems import Document, Problem, for_openai
from localmoe.server.replies import DONE, comment, data_line
from localmoe.server.sampling import (
    answers_of,
    most_tokens,
    sampling_of,
    schema_of,
    stop_texts,
    think_level,
)

ROLES = ("system", "developer", "user", "assistant", "tool")
BEGINNING = {"role": "assistant", "content": ""}
FINISH = {"stop": "stop", "tool_calls": "tool_calls", "length": "length", "interrupted": "stop"}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One request, checked."""

    ask: Ask
    stream: bool
    usage: bool  # a streaming client wants the usage too
    progress: bool  # … and how far the prompt is read, as llama-server says it


def read(fields: Fields) -> ChatRequest:
    """The request in a body. Raises Problem."""
    options = fields.inner("stream_options")
    _refuse_what_is_not_here(fields)
    ask = Ask(
        model=fields.text("model"),
        messages=messages_of(fields),
        sampling=sampling_of(fields),
        max_tokens=most_tokens(fields, "max_completion_tokens", "max_tokens"),
        stop=stop_texts(fields),
        schema=schema_of(fields),
        tools=tool_fields.of_chat(fields),
        think=think_level(fields),
        top_logprobs=_top_logprobs(fields),
        answers=answers_of(fields),
    )
    return ChatRequest(
        ask,
        stream=fields.flag("stream") or False,
        usage=(options is not None and options.flag("include_usage")) or False,
        progress=fields.flag("return_progress") or False,
    )


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """The messages of a conversation. Raises Problem."""
    messages = fields.objects("messages")
    if messages is None:
        fields.missing("messages")
    if not messages:
        fields.wrong("messages", "a list with at least one message")
    return tuple(map(_message, messages))


def _message(fields: Fields) -> Message:
    role = fields.choice("role", ROLES) or fields.missing("role")
    message: dict[str, object] = {"role": "system" if role == "developer" else role}
    message["content"] = text_of(fields, "content") or ""
    reasoning = fields.text("reasoning_content") or fields.text("reasoning")
    if reasoning:
        message["reasoning"] = reasoning
    if role == "tool":
        message["tool_call_id"] = fields.required_text("tool_call_id")
    if fields.raw("function_call") is not None:
        param = fields.path("function_call")
        raise Problem(400, f"{param}: such calls stand in tool_calls now", param=param)
    if role == "assistant" and (calls := fields.items("tool_calls")):
        return tool_fields.with_calls(message, calls)
    return message


def text_of(fields: Fields, name: str, kinds: tuple[str, ...] = ("text", "refusal")) -> str | None:
    """A text, or the texts of a list of parts. Raises Problem for parts that are none."""
    if not isinstance(fields.raw(name), list):
        return fields.text(name)
    texts = []
    for part in fields.objects(name) or ():
        kind = part.required_text("type")
        if kind not in kinds:
            raise Problem(
                400,
                f"{part.path('type')}: the models here read text, no {kind}",
                param=part.path("type"),
            )
        texts.append(part.required_text("refusal" if kind == "refusal" else "text"))
    return "".join(texts)


def _top_logprobs(fields: Fields) -> int | None:
    most = fields.whole("top_logprobs", 0, MOST_LOGPROBS)
    if fields.flag("logprobs"):
        return most or 0
    if most:
        raise Problem(400, "top_logprobs: only with logprobs", param="top_logprobs")
    return None


def _refuse_what_is_not_here(fields: Fields) -> None:
    if fields.items("functions"):
        raise Problem(400, "functions: they are called tools now", param="functions")
    modalities = fields.items("modalities")
    if modalities and modalities != ["text"]:
        raise Problem(400, "modalities: the models here write text alone", param="modalities")


class ChatWriter:
    """One answer as ``chat.completion`` or as ``chat.completion.chunk`` events."""

    def __init__(self, request: ChatRequest) -> None:
        self._request = request
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = request.ask.model or ""
        self._ended: list[TurnDone] = []  # answers; their number is the index of the next one

    def begin(self, accepted: Accepted) -> bytes:
        self._model = self._model or accepted.model
        return self._chunk(BEGINNING, None, (), **forecast(accepted))

    def event(self, event: Event) -> bytes:
        match event:
            case AnswerDelta(text, tokens):
                return self._chunk({"content": text}, tokens=tokens)
            case ReasoningDelta(text):
                return self._chunk({"reasoning_content": text})
            case ToolCallBegin(index, id_, name):
                function = {"name": name, "arguments": ""}
                head = {"index": index, "id": id_, "type": "function", "function": function}
                return self._chunk({"tool_calls": [head]})
            case ToolCallDelta(index, text):
                piece = {"index": index, "function": {"arguments": text}}
                return self._chunk({"tool_calls": [piece]})
            case PrefillProgress() if self._request.progress:
                progress = {
                    "total": event.total,
                    "cache": event.reused,
                    "processed": event.done,
                }
                return self._chunk({"content": None}, prompt_progress=progress)
            case TurnDone():
                return self._end(event)
        return b""

    def sign_of_life(self, words: str) -> bytes:
        return comment(words)

    def problem(self, problem: Problem) -> bytes:
        return data_line(for_openai(problem))

    def document(self, answers: Sequence[Answered]) -> Document:
        return {
            **self._head("chat.completion"),
            "choices": [_choice(index, answer) for index, answer in enumerate(answers)],
            "usage": openai_usage([answer.done for answer in answers]),
            "timings": timings(answers[-1].done),
        }

    def _end(self, done: TurnDone) -> bytes:
        data = self._chunk({}, FINISH[done.finish_reason], timings=timings(done))
        self._ended.append(done)
        if len(self._ended) < self._request.ask.answers:
            return data + self._chunk(BEGINNING)
        if self._request.usage:
            head = self._head("chat.completion.chunk")
            usage = {**head, "choices": [], "usage": openai_usage(self._ended)}
            data += data_line(usage)
        return data + DONE

    def _chunk(
        self,
        delta: Mapping[str, object],
        finish: str | None = None,
        tokens: Sequence[Token] = (),
        **more: object,
    ) -> bytes:
        index = len(self._ended)
        choice: dict[str, object] = {"index": index, "delta": delta, "finish_reason": finish}
        if tokens:
            choice["logprobs"] = chat_logprobs(tokens)
        head = self._head("chat.completion.chunk")
        return data_line({**head, "choices": [choice], **more})

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": "localmoe",
        }


def _choice(index: int, answer: Answered) -> Document:
    done = answer.done
    message: dict[str, object] = {**BEGINNING, "content": done.answer}
    if done.reasoning:
        message["reasoning_content"] = done.reasoning
    if done.calls:
        message["content"] = done.answer or None
        message["tool_calls"] = [
            tool_fields.call(call.id, call.name, call.arguments) for call in done.calls
        ]
    return {
        "index": index,
        "message": message,
        "finish_reason": FINISH[done.finish_reason],
        "logprobs": chat_logprobs(answer.tokens),
    }
