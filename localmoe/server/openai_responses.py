"""OpenAI's responses, without a memory of earlier ones: ``POST /v1/responses``."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from localmoe.server.problems import Document, Problem, words_for_openai
from localmoe.server.replies import named_event
from localmoe.server.sampling import (
    ANY_OBJECT,
    EFFORTS,
    checked_schema,
    most_tokens,
    sampling_of,
)

ROLES = ("system", "developer", "user", "assistant")
TEXTS = ("input_text", "output_text", "text", "refusal")


@dataclass(frozen=True, slots=True)
class ResponsesRequest:
    """One request, checked."""

    ask: Ask
    stream: bool
    instructions: str | None
    tools: tuple[object, ...] = ()  # as they were given
    spaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # of tools that have one


def read(fields: Fields) -> ResponsesRequest:
    """The request in a body. Raises Problem."""
    for name in ("previous_response_id", "conversation"):
        if fields.raw(name) is not None:
            raise Problem(400, f"{name}: no response is kept here, send all of it", param=name)
    tools, spaces = tool_fields.of_responses(fields)
    instructions = fields.text("instructions")
    reasoning = fields.inner("reasoning")
    effort = None if reasoning is None else reasoning.choice("effort", tuple(EFFORTS))
    first = ({"role": "system", "content": instructions},) if instructions else ()
    ask = Ask(
        model=fields.text("model"),
        messages=merged((*first, *_input(fields))),
        sampling=sampling_of(fields),
        max_tokens=most_tokens(fields, "max_output_tokens"),
        schema=_schema(fields),
        tools=tools,
        think=None if effort is None else EFFORTS[effort],
    )
    given = tuple(fields.items("tools") or ())
    return ResponsesRequest(ask, fields.flag("stream") or False, instructions, given, spaces)


def _input(fields: Fields) -> tuple[Message, ...]:
    given = fields.raw("input")
    if given is None:
        fields.missing("input")
    if not isinstance(given, list):
        return ({"role": "user", "content": fields.text("input") or ""},)
    items = fields.objects("input")
    if not items:
        fields.wrong("input", "a text, or a list with at least one item")
    found: list[Message] = []
    thought = ""
    for item in items:
        kind = item.text("type") or "message"
        if kind == "reasoning":
            thought = _thought(item)
            continue
        message = _message(item, kind)
        if thought and message["role"] == "assistant":
            message = {**message, "reasoning": thought}
        if found and kind == "function_call" and found[-1]["role"] == "assistant":
            earlier = found.pop()
            calls = (*_calls_of(earlier), *_calls_of(message))
            message = tool_fields.with_calls({**message, **earlier}, calls)
        found.append(message)
        thought = ""
    return tuple(found)


def _calls_of(message: Message) -> tuple[object, ...]:
    calls = message.get("tool_calls")
    return tuple(calls) if isinstance(calls, list) else ()


def _message(item: Fields, kind: str) -> Message:
    if kind == "function_call":
        space = item.text("namespace")
        name = item.required_text("name")
        name = f"{space}{tool_fields.JOINT}{name}" if space else name
        item.text("arguments")
        made = tool_fields.call_of(item, "call_id", name, "arguments")
        return tool_fields.with_calls({"role": "assistant", "at": item.where}, [made])
    if kind == "function_call_output":
        output = _content(item, TEXTS, "output")
        return tool_fields.result(item, "call_id", output)
    if kind != "message":
        param = item.path("type")
        raise Problem(400, f"{param}: {kind} is not read here", param=param)
    role = item.choice("role", ROLES) or item.missing("role")
    return {
        "role": "system" if role == "developer" else role,
        "content": _content(item, TEXTS),
        "at": item.where,
    }


def _content(item: Fields, kinds: tuple[str, ...], name: str = "content") -> str:
    if not isinstance(item.raw(name), list):
        return item.text(name) or ""
    texts = []
    for part in item.objects(name) or ():
        kind = part.required_text("type")
        if kind not in kinds:
            param = part.path("type")
            raise Problem(400, f"{param}: the models here read text, no {kind}", param=param)
        texts.append(part.required_text("refusal" if kind == "refusal" else "text"))
    return "".join(texts)


def _thought(item: Fields) -> str:
    said = _content(item, ("reasoning_text", "text"))
    summary = item.objects("summary") or ()
    return said or "\n".join(part.text("text") or "" for part in summary)


def merged(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, with the system's texts at the beginning as one."""
    count = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if count < 2:
        return messages
    text = "\n\n".join(str(message["content"]) for message in messages[:count])
    return ({"role": "system", "content": text}, *messages[count:])


def _schema(fields: Fields) -> object:
    text = fields.inner("text")
    wanted = None if text is None else text.inner("format")
    if wanted is None:
        return None
    match wanted.choice("type", ("text", "json_object", "json_schema")):
        case "json_schema":
            return checked_schema(wanted.raw("schema"), wanted.path("schema"))
        case "json_object":
            return ANY_OBJECT
    return None


class ResponsesWriter:
    """One answer as a ``response``, or as the events of one."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._id = f"resp_{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = request.ask.model or ""
        self._number = 0  # of the next event
        self._opened = False  # the client knows of the response
        self._output: list[dict[str, object]] = []  # whole items
        self._kind: str | None = None  # of the item under way
        self._texts: list[str] = []  # of the item under way
        self._item_id = ""
        self._call = ("", "")  # id and name of the call under way

    def begin(self, accepted: Accepted) -> bytes:
        self._model = self._model or accepted.model
        if self._opened:  # by a sign of life
            return self._in_progress(**forecast(accepted))
        return self._open(**forecast(accepted))

    def event(self, event: Event) -> bytes:
        match event:
            case ReasoningDelta(text):
                return self._delta("reasoning", text)
            case AnswerDelta(text):
                return self._delta("message", text)
            case ToolCallBegin(_, id_, name):
                return self._open_call(id_, name)
            case ToolCallDelta(_, text):
                self._texts.append(text)
                place = {"item_id": self._item_id, "output_index": len(self._output)}
                return self._event("response.function_call_arguments.delta", **place, delta=text)
            case ToolCallEnd():
                return self._close_call()
            case TurnDone():
                return self._end(event)
        return b""

    def sign_of_life(self, words: str) -> bytes:
        if not self._opened:
            return self._open(status=words)
        return self._in_progress(status=words)

    def problem(self, problem: Problem) -> bytes:
        error = {"code": problem.code or "server_error", "message": words_for_openai(problem)}
        failed = {**self._response("failed"), "error": error}
        return self._open() + self._event("response.failed", response=failed)

    def document(self, answers: Sequence[Answered]) -> Document:
        done = answers[0].done
        for kind, text in (("reasoning", done.reasoning), ("message", done.answer)):
            if text or (kind == "message" and not done.calls):
                self._output.append(_item(kind, _new_id(kind), text))
        for call in done.calls:
            item = self._call_item(f"fc_{call.id}", call.id, call.name, call.arguments)
            self._output.append(item)
        return self._whole(done)

    def _open(self, **more: object) -> bytes:
        if self._opened:
            return b""
        self._opened = True
        created = self._event("response.created", response=self._response("in_progress"))
        return created + self._in_progress(**more)

    def _in_progress(self, **more: object) -> bytes:
        return self._event("response.in_progress", response=self._response("in_progress"), **more)

    def _delta(self, kind: str, text: str) -> bytes:
        opened = b""
        if self._kind != kind:
            opened = self._close() + self._open_item(kind)
        self._texts.append(text)
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        return opened + self._event(f"response.{name}.delta", **self._place, delta=text)

    def _open_item(self, kind: str) -> bytes:
        self._kind, self._texts, self._item_id = kind, [], _new_id(kind)
        item = {**_item(kind, self._item_id, None), "status": "in_progress"}
        data = self._event("response.output_item.added", output_index=len(self._output), item=item)
        return data + self._event(
            "response.content_part.added", **self._place, part=_part(kind, "")
        )

    def _close(self) -> bytes:
        if self._kind is None:
            return b""
        kind, text = self._kind, "".join(self._texts)
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        data = self._event(f"response.{name}.done", **self._place, text=text)
        data += self._event("response.content_part.done", **self._place, part=_part(kind, text))
        item = _item(kind, self._item_id, text)
        index = len(self._output)
        self._output.append(item)
        self._kind = None
        return data + self._event("response.output_item.done", output_index=index, item=item)

    def _open_call(self, id_: str, name: str) -> bytes:
        data = self._close()
        self._texts, self._item_id, self._call = [], f"fc_{id_}", (id_, name)
        item = {**self._call_item(self._item_id, id_, name, ""), "status": "in_progress"}
        place = {"output_index": len(self._output), "item": item}
        return data + self._event("response.output_item.added", **place)

    def _close_call(self) -> bytes:
        text, index = "".join(self._texts), len(self._output)
        item = self._call_item(self._item_id, *self._call, text)
        place = {"item_id": self._item_id, "output_index": index}
        done = self._event("response.function_call_arguments.done", **place, arguments=text)
        self._output.append(item)
        return done + self._event("response.output_item.done", output_index=index, item=item)

    def _call_item(self, item_id: str, id_: str, name: str, arguments: str) -> dict[str, object]:
        space, own_name = self._request.spaces.get(name, ("", name))
        return {
            "type": "function_call",
            "id": item_id,
            "call_id": id_,
            "name": own_name,
            "arguments": arguments,
            "status": "completed",
            **({"namespace": space} if space else {}),
        }

    def _end(self, done: TurnDone) -> bytes:
        data = self._close()
        whole = self._whole(done)
        return data + self._event(f"response.{whole['status']}", response=whole)

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": self._item_id, "output_index": len(self._output), "content_index": 0}

    def _event(self, kind: str, **more: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return named_event(kind, {"sequence_number": number, **more})

    def _whole(self, done: TurnDone) -> dict[str, object]:
        cut = done.finish_reason == "length"
        usage = done.usage
        return {
            **self._response("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.reused_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.total,
            },
            "timings": timings(done),
        }

    def _response(self, status: str) -> dict[str, object]:
        ask = self._request.ask
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "model": self._model,
            "output": list(self._output),
            "error": None,
            "incomplete_details": None,
            "instructions": self._request.instructions,
            "max_output_tokens": ask.max_tokens,
            "metadata": {},
            "parallel_tool_calls": ask.tools.parallel if ask.tools else True,
            "previous_response_id": None,
            "store": False,
            "temperature": ask.sampling.get("temperature"),
            "tool_choice": "required" if ask.tools and ask.tools.required else "auto",
            "tools": list(self._request.tools),
            "top_p": ask.sampling.get("top_p"),
            "truncation": "disabled",
            "usage": None,
        }


def _new_id(kind: str) -> str:
    return f"{'rs' if kind == 'reasoning' else 'msg'}_{secrets.token_hex(12)}"


def _item(kind: str, name: str, text: str | None) -> dict[str, object]:
    content = [] if text is None else [_part(kind, text)]
    if kind == "reasoning":
        return {"type": kind, "id": name, "summary": [], "content": content}
    return {
        "type": kind,
        "id": name,
        "status": "completed",
        "role": "assistant",
        "content": content,
    }


def _part(kind: str, text: str) -> Mapping[str, object]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
