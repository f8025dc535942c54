"""The messages of a request, as other programs write them, checked and put in order. Pure.

``messages[2]`` in an error is the third message of the list; one that stood elsewhere in a request
says where, under ``at``, and so does a call. A history that no client can mean is refused; what
clients do differently (developer or system, content as text or in parts, arguments as text or as an
object, results in any order) comes out in one form, so that the same history gives the same prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

from localmoe.chat.session import Message, ToolCall
from localmoe.errors import UsageError
from localmoe.text import shortened

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PARTS = ("text", "input_text", "output_text")
SHOWN = 60  # characters of a wrong value
MOST_DEEP = 64  # objects and lists in each other, in arguments


def read_messages(value: object) -> tuple[Message, ...]:
    """Messages from objects with ``role`` and ``content``, ``tool_calls`` and ``tool_call_id``.

    Raises UsageError, which names the message.
    """
    if not isinstance(value, Sequence) or not all(isinstance(m, Mapping) for m in value):
        raise UsageError(f"prompt is a text, or a list of messages, not {_shown(value)}")
    if not value:
        raise UsageError("there are no messages", hint='[{"role": "user", "content": "Hello"}]')
    read = _Reader()
    at = ""
    for number, message in enumerate(value):
        at = _place(message, f"messages[{number}]")
        read.message(at, message)
    return read.done(at)


class _Reader:
    """The messages so far, and the calls whose results are still to come."""

    def __init__(self) -> None:
        self._read: list[Message] = []
        self._open: dict[str, ToolCall] = {}  # calls of the last assistant message, by id
        self._results: dict[str, Message] = {}
        self._caller = ""  # the message that makes these calls

    def message(self, at: str, message: Mapping[str, object]) -> None:
        role = message.get("role")
        if role not in ROLES:
            given = f", not {_shown(role)}" if "role" in message else ""
            raise UsageError(f"{at}: role is one of {', '.join(ROLES)}{given}")
        if role == "tool":
            self._result(at, message)
            return
        self._end_of_results(at)
        if role == "assistant":
            self._assistant(at, message)
            return
        content = content_text(f"{at}.content", message.get("content"))
        role = "system" if role == "developer" else "user" if role == "user" else "system"
        if role == "system" and len(self._read) == 1 and self._read[0].role == "system":
            content = "\n\n".join(filter(None, (self._read.pop().content, content)))
        self._read.append(Message(role, content))

    def done(self, last: str) -> tuple[Message, ...]:
        self._end_of_results("the end")
        if self._read[-1].role == "assistant":
            raise UsageError(
                f"{last} is the assistant's: the last message is one that it answers",
                hint="leave it out, or end with a message of the user's",
            )
        if all(message.role == "system" for message in self._read):
            raise UsageError(f"{last}: no message of the user's comes", hint='add {"role": "user"}')
        return tuple(self._read)

    def _assistant(self, at: str, message: Mapping[str, object]) -> None:
        calls = _calls(f"{at}.tool_calls", message.get("tool_calls"))
        content = message.get("content")
        text = "" if content is None and calls else content_text(f"{at}.content", content)
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        reasoning = _text(f"{at}.reasoning_content", thoughts)
        self._read.append(Message("assistant", text, reasoning, calls=calls))
        self._open, self._caller = {call.id: call for call in calls}, at

    def _result(self, at: str, message: Mapping[str, object]) -> None:
        wanted = message.get("tool_call_id")
        if not isinstance(wanted, str):
            raise UsageError(f"{at}: tool_call_id names the call of this result")
        if wanted in self._results:
            raise UsageError(f"{at} is a second result of the call {_shown(wanted)}")
        if wanted not in self._open:
            raise UsageError(
                f"{at} is the result of the call {_shown(wanted)}, which the assistant's message "
                "before it does not make"
            )
        content = content_text(f"{at}.content", message.get("content"))
        self._results[wanted] = Message("tool", content, result_of=self._open[wanted])

    def _end_of_results(self, at: str) -> None:
        """The results in the order of their calls: then it makes no difference who was faster."""
        for id_ in self._open:
            if id_ not in self._results:
                raise UsageError(
                    f"{self._caller} makes the call {_shown(id_)}, and no result of it comes "
                    f"before {at}",
                    hint='add {"role": "tool", "tool_call_id": …, "content": …}',
                )
        self._read += [self._results[id_] for id_ in self._open]
        self._open, self._results = {}, {}


def content_text(at: str, content: object) -> str:
    """The text of a message's content, or of its parts. Raises UsageError."""
    if isinstance(content, list | tuple):
        return "".join(_part(f"{at}[{number}]", part) for number, part in enumerate(content))
    return _text(at, content)


def _part(at: str, part: object) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in TEXT_PARTS:
        return _text(f"{at}.text", part.get("text"))
    what = f"of the type {_shown(kind)}" if isinstance(kind, str) else _shown(part)
    raise UsageError(f"{at} is no text but {what}", hint="this model reads text alone")


def _calls(at: str, given: object) -> tuple[ToolCall, ...]:
    if given is None:
        return ()
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise UsageError(f"{at} is a list of calls, not {_shown(given)}")
    calls: list[ToolCall] = []
    for number, call in enumerate(given):
        place = _place(call, f"{at}[{number}]")
        calls.append(_call(place, call))
        if calls[-1].id in [other.id for other in calls[:-1]]:
            raise UsageError(f"{place}: a second call has the id {_shown(calls[-1].id)}")
    return tuple(calls)


def _call(at: str, call: object) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise UsageError(f"{at} is no call of a function: {_shown(call)}")
    id_, name = (
        _text(f"{at}.id", call.get("id")),
        _text(f"{at}.function.name", function.get("name")),
    )
    if not name:
        raise UsageError(f"{at}.function.name is empty")
    place = f"{at}.function.arguments"
    return ToolCall(id_, name, arguments_text(place, function.get("arguments")))


def arguments_text(at: str, arguments: object) -> str:
    """Arguments as the JSON text of an object. Raises UsageError for what is none.

    A text stays as it is, so that the model sees again what it has written.
    """
    if arguments is None or (isinstance(arguments, str) and not arguments.strip()):
        return "{}"
    try:
        if isinstance(arguments, Mapping):
            arguments = json.dumps(dict(arguments), ensure_ascii=False)
        parsed = _parsed(arguments) if isinstance(arguments, str) else arguments
        if isinstance(parsed, dict) and isinstance(arguments, str):
            return arguments
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{at} is no JSON: {shortened(str(error), SHOWN)}") from None
    raise UsageError(f"{at} is a JSON object, not {_shown(parsed)}")


def _parsed(text: str) -> object:
    """Raises ValueError for what is no JSON, or nested deeper than templates can write it."""
    value: object = json.loads(text, parse_constant=_no_number)
    level = [value]
    for _ in range(MOST_DEEP):
        inner = (v for v in level if isinstance(v, dict | list))
        level = [
            v for outer in inner for v in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested more than {MOST_DEEP} levels deep")


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _place(given: object, usual: str) -> str:
    """Where a message or a call stood in what a client sent."""
    at = given.get("at") if isinstance(given, Mapping) else None
    return at if isinstance(at, str) else usual


def _text(at: str, value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{at} is a text, not {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return shortened(repr(value), SHOWN)
