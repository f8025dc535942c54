"""Anthropic's messages: ``POST /v1/messages`` and ``/v1/messages/count_tokens``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from localmoe.chat.events import (
    AnswerDelta,
    ReasoningDelta,
    ToolCallBegin,
    ToolCallDelta,
    ToolCallEnd,
    TurnDone,
)
from localmoe.server import tool_fields
from localmoe.server.asks import Accepted, Answered, Ask, Event, Message
from localmoe.server.fields import Fields
from localmoe.server.figures import forecast, timings
from localmoe.server.problems import Document, Problem, for_anthropic
from localmoe.server.replies import named_event
from localmoe.server.sampling import (
    EFFORTS,
    checked_schema,
    most_tokens,
    sampling_of,
    stop_texts,
)

STOP_REASONS = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
    "interrupted": "end_turn",
}
NONCE = "x-anthropic-billing-header:"
"""Begins a system block that is another one in each request: kept, it would make every prompt a new
one from its first words on."""
LITTLE, MEDIUM = 2_048, 16_384  # budgets of thinking, in tokens, up to which it is low, medium


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """One request, checked."""

    ask: Ask
    stream: bool


def read(fields: Fields) -> MessagesRequest:
    """The request in a body. Raises Problem."""
    ask = Ask(
        model=fields.text("model"),
        messages=_messages(fields),
        sampling=sampling_of(fields),
        max_tokens=most_tokens(fields, "max_tokens"),
        stop=stop_texts(fields, "stop_sequences"),
        schema=_schema(fields),
        tools=tool_fields.of_messages(fields),
        think=_think(fields),
    )
    return MessagesRequest(ask, stream=fields.flag("stream") or False)


def _messages(fields: Fields) -> tuple[Message, ...]:
    messages = fields.objects("messages")
    if messages is None:
        fields.missing("messages")
    if not messages:
        fields.wrong("messages", "a list with at least one message")
    system = _system(fields)
    first = ({"role": "system", "content": system},) if system else ()
    return (*first, *(said for message in messages for said in _message(message)))


def _system(fields: Fields) -> str:
    if not isinstance(fields.raw("system"), list):
        return fields.text("system") or ""
    blocks = fields.objects("system") or ()
    texts = [_text_of(block) for block in blocks]
    return "\n\n".join(text for text in texts if not text.startswith(NONCE))


def _message(fields: Fields) -> tuple[Message, ...]:
    """A message; the results of tools in it become messages of their own, before it."""
    role = fields.choice("role", ("user", "assistant", "system")) or fields.missing("role")
    content = fields.raw("content")
    if content is None:
        fields.missing("content")
    if not isinstance(content, list):
        return ({"role": role, "content": fields.text("content") or "", "at": fields.where},)
    texts, thoughts = [], []
    calls: list[Mapping[str, object]] = []
    results: list[Message] = []
    for block in fields.objects("content") or ():
        match block.required_text("type"):
            case "thinking":
                thoughts.append(block.text("thinking") or "")
            case "redacted_thinking":
                pass  # nobody can read it
            case "tool_use":
                name = block.required_text("name")
                block.inner("input")
                calls.append(tool_fields.call_of(block, "id", name, "input"))
            case "tool_result":
                results.append(_result(block))
            case _:
                texts.append(_text_of(block))
    message: Message = {"role": role, "content": "\n\n".join(texts), "at": fields.where}
    if thoughts:
        message = {**message, "reasoning": "".join(thoughts)}
    if calls:
        message = tool_fields.with_calls(message, calls)
    return (*results, message) if texts or calls or not results else tuple(results)


def _result(block: Fields) -> Message:
    """What a tool gave; that it failed is said in front."""
    content = block.raw("content")
    if isinstance(content, list):
        text = "\n\n".join(map(_text_of, block.objects("content") or ()))
    else:
        text = block.text("content") or ""
    failed = "Error: " if block.flag("is_error") else ""
    return tool_fields.result(block, "tool_use_id", failed + text)


def _text_of(block: Fields) -> str:
    kind = block.required_text("type")
    if kind != "text":
        param = block.path("type")
        raise Problem(400, f"{param}: the models here read text, no {kind}", param=param)
    return block.required_text("text")


def _think(fields: Fields) -> str | None:
    output = fields.inner("output_config")
    effort = None if output is None else output.choice("effort", tuple(EFFORTS))
    thinking = fields.inner("thinking")
    if thinking is not None:
        kind = thinking.choice("type", ("enabled", "disabled", "adaptive"))
        budget = thinking.whole("budget_tokens", 0, 2**31 - 1)
        if kind == "disabled":
            return "off"
        if effort is None and kind == "enabled" and budget is not None:
            return "low" if budget <= LITTLE else "medium" if budget <= MEDIUM else "high"
    return None if effort is None else EFFORTS[effort]


def _schema(fields: Fields) -> object:
    output = fields.inner("output_config")
    wanted = fields.inner("output_format") or (output.inner("format") if output else None)
    if wanted is None:
        return None
    wanted.choice("type", ("json_schema",))
    return checked_schema(wanted.raw("schema"), wanted.path("schema"))


class MessagesWriter:
    """One answer as a ``message``, or as the events of one."""

    def __init__(self, request: MessagesRequest) -> None:
        self._id = f"msg_{secrets.token_hex(12)}"
        self._model = request.ask.model or ""
        self._stops = request.ask.stop
        self._block: str | None = None  # type of the block under way
        self._index = -1  # of that block

    def begin(self, accepted: Accepted) -> bytes:
        self._model = self._model or accepted.model
        usage = {
            "input_tokens": accepted.prompt_tokens - accepted.reused_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": accepted.reused_tokens,
            "output_tokens": 0,
        }
        message = {**self._message([], None), "usage": usage}
        return named_event("message_start", {"message": message, **forecast(accepted)})

    def event(self, event: Event) -> bytes:
        match event:
            case ReasoningDelta(text):
                return self._delta("thinking", {"type": "thinking_delta", "thinking": text})
            case AnswerDelta(text):
                return self._delta("text", {"type": "text_delta", "text": text})
            case ToolCallBegin(_, id_, name):
                return self._open_call(id_, name)
            case ToolCallDelta(_, text):
                delta = {"type": "input_json_delta", "partial_json": text}
                place = {"index": self._index, "delta": delta}
                return named_event("content_block_delta", place)
            case ToolCallEnd():
                return self._close()
            case TurnDone():
                return self._end(event)
        return b""

    def sign_of_life(self, words: str) -> bytes:
        return named_event("ping", {"status": words})

    def problem(self, problem: Problem) -> bytes:
        return named_event("error", for_anthropic(problem))

    def document(self, answers: Sequence[Answered]) -> Document:
        done = answers[0].done
        content: list[Mapping[str, object]] = []
        if done.reasoning:
            content.append({"type": "thinking", "thinking": done.reasoning, "signature": ""})
        if done.answer or not (content or done.calls):
            content.append({"type": "text", "text": done.answer})
        for call in done.calls:
            given = json.loads(call.arguments)
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
        message = {**self._message(content, None), **_stopped(done)}
        return {**message, "usage": usage_of(done), "timings": timings(done)}

    def _end(self, done: TurnDone) -> bytes:
        figures = {"usage": usage_of(done), "timings": timings(done)}
        last = named_event("message_delta", {"delta": _stopped(done), **figures})
        return self._close() + last + named_event("message_stop", {})

    def _delta(self, kind: str, delta: Mapping[str, object]) -> bytes:
        opened = b""
        if self._block != kind:
            opened = self._close()
            self._block, self._index = kind, self._index + 1
            block: dict[str, Any] = {"type": kind, kind: ""}
            if kind == "thinking":
                block["signature"] = ""
            start = {"index": self._index, "content_block": block}
            opened += named_event("content_block_start", start)
        return opened + named_event("content_block_delta", {"index": self._index, "delta": delta})

    def _open_call(self, id_: str, name: str) -> bytes:
        closed = self._close()
        self._block, self._index = "tool_use", self._index + 1
        block = {"type": "tool_use", "id": id_, "name": name, "input": {}}
        start = {"index": self._index, "content_block": block}
        return closed + named_event("content_block_start", start)

    def _close(self) -> bytes:
        if self._block is None:
            return b""
        self._block = None
        return named_event("content_block_stop", {"index": self._index})

    def _message(
        self, content: list[Mapping[str, object]], stop_reason: str | None
    ) -> dict[str, object]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": None,
        }


def _stopped(done: TurnDone) -> Document:
    """Why the answer has ended, and at which of the texts that were asked for."""
    reason = STOP_REASONS[done.finish_reason] if done.stop_text is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": done.stop_text}


def usage_of(done: TurnDone) -> Document:
    """``usage``: tokens that were not read again are not counted as input."""
    usage = done.usage
    return {
        "input_tokens": usage.prompt_tokens - usage.reused_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.reused_tokens,
        "output_tokens": usage.completion_tokens,
    }
