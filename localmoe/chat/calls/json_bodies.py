"""Calls whose arguments are a JSON object."""

from __future__ import annotations

from collections.abc import Callable

from localmoe.chat.calls.call import Call, as_object
from localmoe.chat.calls.format import ANY, CALL, NAME, CallFormat
from localmoe.chat.calls.text import NoCall, Pattern, Waiting

ARGUMENTS_KEYS = ("arguments", "parameters")
OPENING_KEYS = ("type", "id", "function")  # that a call without marks may begin with


class ObjectReader:
    """``{"name": NAME, "arguments": {…}}``, keys in any order.

    ``unmarked``: only by its first key is it known to be a call.
    """

    def __init__(self, format_: CallFormat, *, unmarked: bool) -> None:
        self._name_key = format_.name_key
        self._arguments_keys = (format_.arguments_key, *ARGUMENTS_KEYS)
        self._first = (format_.name_key, *ARGUMENTS_KEYS, *OPENING_KEYS) if unmarked else ()

    def read(self, call: Call) -> Waiting[None]:
        text = call.text
        if (yield from text.skip_space()) != "{":
            raise NoCall
        text.at += 1
        name, early, has_arguments = "", "", False
        first = True
        while True:
            char = yield from text.skip_space()
            if char == "}":
                text.at += 1
                break
            if char == ",":
                text.at += 1
                continue
            key = yield from text.json_text()
            if first and self._first and key not in self._first:
                raise NoCall
            first = False
            if (yield from text.skip_space()) != ":":
                raise NoCall
            text.at += 1
            if key == self._name_key and not name:
                name = yield from text.json_text()
                call.begin(name)
                call.say(early)
            elif key in self._arguments_keys and not has_arguments:
                has_arguments = True
                if name:
                    yield from call.arguments()
                else:
                    early = as_object((yield from call.value()))
            else:
                yield from call.value()
        if not name:
            raise NoCall
        if not has_arguments:
            call.say("{}")


class KeyedReader:
    """``{NAME: {…}}``."""

    def read(self, call: Call) -> Waiting[None]:
        text = call.text
        if (yield from text.skip_space()) != "{":
            raise NoCall
        text.at += 1
        call.begin((yield from text.json_text()))
        if (yield from text.skip_space()) != ":":
            raise NoCall
        text.at += 1
        yield from call.arguments()
        if (yield from text.skip_space()) != "}":
            raise NoCall
        text.at += 1


class NamedReader:
    """NAME, a mark, ``{…}``."""

    def __init__(self, format_: CallFormat, mark: Callable[[str], str]) -> None:
        self._end = Pattern(mark(format_.name_end.replace(NAME, ANY)))
        self._last = Pattern(self._end.text.split(ANY)[-1])  # without the id before it

    def read(self, call: Call) -> Waiting[None]:
        text = call.text
        ends = [self._end, self._last] if self._end else [Pattern("{")]
        name = yield from call.name(ends)
        if (yield from text.stands(self._end)):
            yield from text.demand(self._end)
        else:
            yield from text.demand(self._last)
        call.begin(name)
        yield from call.arguments()


class ChannelReader:
    """gpt-oss: the arguments are a message of their own, whose header has named the tool."""

    def __init__(self, mark: Callable[[str], str]) -> None:
        self._end = Pattern(mark(CALL))

    def read(self, call: Call) -> Waiting[None]:
        yield from call.arguments()
        if (yield from call.text.stands(self._end)):
            yield from call.text.demand(self._end)
        elif call.text.cut:
            raise NoCall
