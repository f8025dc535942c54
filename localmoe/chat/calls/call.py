"""The call under way: the text that a body reads, and the events that are made of it."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from localmoe.chat.calls.text import NoCall, Pattern, Text, Waiting, loads
from localmoe.chat.events import ToolCallBegin, ToolCallDelta, ToolCallEnd, ToolCallEvent

Tools = Mapping[str, object]
"""The JSON schema of each tool's arguments, by the tool's name."""
MOST_NAME = 128  # characters
MOST_KEY = 256
MOST_DEEP = 64  # objects and lists in each other, where they are not written as JSON
_IN_NAME = re.compile(r"[\w.:/-]+")
_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """An id of nine letters and digits, which every template takes."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class BodyReader(Protocol):
    """How name and arguments stand in a call."""

    def read(self, call: Call) -> Waiting[None]:
        """Read a call from its name, or the object with it, to its end. Raises NoCall."""


class Call:
    """The calls of one answer while they are read, one after the other.

    ``spelled`` takes the stand-ins for special tokens out of text. ``hold``: no event before a
    call is whole.
    """

    def __init__(self, tools: Tools, spelled: Callable[[str], str], *, hold: bool) -> None:
        self.text = Text()
        self.spelled = spelled
        self.hold = hold
        self.begun = False  # a call of a known tool is under way
        self._tools = tools
        self._name = ""
        self._count = 0
        self._made: list[ToolCallEvent] = []
        self._waiting: list[ToolCallEvent] = []

    def restart(self, *, hold: bool) -> None:
        """Further calls come, with the next text."""
        self.text, self.begun, self.hold, self._waiting = Text(), False, hold, []

    @property
    def schema(self) -> object:
        """Of the tool that is called."""
        return self._tools[self._name]

    def begin(self, name: str) -> None:
        """The name is known. Raises NoCall where no tool has it."""
        name = name.strip()
        if name not in self._tools:
            name = name.removeprefix("functions.").partition(":")[0]
        if name not in self._tools:
            raise NoCall
        self._name, self.begun = name, True
        self._emit(ToolCallBegin(self._count, new_id(), name))
        self._count += 1

    def say(self, text: str) -> None:
        """A piece of the JSON text of its arguments."""
        if text:
            self._emit(ToolCallDelta(self._count - 1, self.spelled(text)))

    def end(self) -> None:
        self._emit(ToolCallEnd(self._count - 1))
        self.begun = False
        self._made += self._waiting
        self._waiting = []

    def made(self) -> list[ToolCallEvent]:
        """The events since this was asked last."""
        made, self._made = self._made, []
        return made

    def broken(self) -> list[ToolCallEvent]:
        """It was no call: the events that were made before."""
        if self.begun and self.hold:
            self._count -= 1
        self._waiting = []
        return self.made()

    def _emit(self, event: ToolCallEvent) -> None:
        (self._waiting if self.hold else self._made).append(event)

    def name(self, ends: Sequence[Pattern]) -> Waiting[str]:
        """A name up to one of the marks; what cannot be one ends the reading early."""
        text = self.text
        begin = text.at
        while True:
            for end in ends:
                if (yield from text.stands(end)):
                    return text.text[begin : text.at].strip()
            char = yield from text.peek()
            here = text.text[begin : text.at]
            if not char or text.at - begin > MOST_NAME or (here.strip() and "\n" in here):
                raise NoCall
            if not (char.isspace() or _IN_NAME.match(char)):
                raise NoCall
            text.at += 1

    def arguments(self) -> Waiting[None]:
        """The JSON object of the arguments, as the model writes it."""
        char = yield from self.text.skip_space()
        if char == "{" and not self.hold:
            yield from self.text.json_value(self.say)
            return
        self.say(as_object((yield from self.value())))

    def value(self) -> Waiting[str]:
        """A JSON value, as it is written."""
        pieces: list[str] = []
        yield from self.text.skip_space()
        yield from self.text.json_value(pieces.append)
        return "".join(pieces)


def as_object(text: str) -> str:
    """Arguments as the JSON text of an object, which may come as a string. Raises NoCall."""
    value = loads(text)
    if isinstance(value, str):
        text, value = value, loads(value) if value.strip() else {}
    if value is None or value == {}:
        return "{}"
    if not isinstance(value, dict):
        raise NoCall
    try:
        json.loads(text)
    except ValueError:
        return json.dumps(value, ensure_ascii=False)
    return text


def escaped(text: str) -> str:
    """``text`` as it stands in a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
