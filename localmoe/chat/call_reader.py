"""Calls of tools, read from what a model writes while it arrives.

Where a grammar makes sure that a call is one, its events come at once. Where none does, they come
when the call is whole, so that what turns out to be no call can still be an answer.
"""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Iterator, Mapping, Sequence

from localmoe.chat.call_format import CALL, KEY, QUOTE, Body, CallFormat
from localmoe.chat.call_text import NoCall, Pattern, Text, Waiting, loads
from localmoe.chat.call_values import from_python, from_text, is_text
from localmoe.chat.events import ToolCallBegin, ToolCallDelta, ToolCallEnd, ToolCallEvent

Tools = Mapping[str, object]
"""The JSON schema of each tool's arguments, by the tool's name."""
MOST_NAME = 128  # characters
MOST_KEY = 256
ARGUMENTS_KEYS = ("arguments", "parameters")
OPENING_KEYS = ("type", "id", "function")  # that a call without marks may begin with
_IN_NAME = re.compile(r"[\w.:/-]+")
_LETTERS = string.ascii_letters + string.digits


def new_id() -> str:
    """An id of nine letters and digits, which every template takes."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


class CallReader:
    """Reads the calls of one answer.

    ``mark`` puts stand-ins for the special tokens in a mark, ``spelled`` takes them out of text.
    ``hold``: no event before the call is whole.
    """

    def __init__(
        self,
        format_: CallFormat,
        tools: Tools,
        mark: Callable[[str], str],
        spelled: Callable[[str], str],
        *,
        hold: bool,
    ) -> None:
        self._format = format_
        self._tools = tools
        self._spelled = spelled
        self._hold = hold
        self._calls = 0
        self._made: list[ToolCallEvent] = []
        self._waiting: list[ToolCallEvent] = []
        self._text = Text()
        self._parser: Iterator[None] = iter(())
        self._cut = False
        self._begun = False  # a call of a known tool is under way
        self._name = ""
        self._whole = 0  # characters up to the end of the last call that was one
        self._start, self._end = Pattern(mark(format_.start)), _words(mark(format_.end))
        self._call_start = Pattern(mark(format_.call_start))
        self._call_end = _words(mark(format_.call_end))
        self._name_end = Pattern(mark(format_.name_end))
        self._key_start = Pattern(mark(format_.key_start))
        self._key_end = Pattern(mark(format_.key_end))
        self._value_end = mark(format_.value_end)
        self._quote = mark(QUOTE) if format_.body is Body.GEMMA else ""
        self._channel_end = Pattern(mark(CALL) if format_.body is Body.CHANNEL else "")
        self._short_start = Pattern(_short(mark(format_.call_start)))

    @property
    def triggers(self) -> list[Pattern]:
        """Marks by which a call is known to begin, wherever they stand."""
        starts = (self._start, self._call_start, self._short_start)
        return [mark for mark in starts if len(mark.text.strip()) > 2 or _is_token(mark)]

    @property
    def opening(self) -> str:
        """What an answer begins with that is a call, where calls have no mark."""
        if (self.triggers and not self._format.bare) or self._format.body is Body.CHANNEL:
            return ""
        return "[" if self._format.in_list or self._format.body is Body.PYTHON else "{"

    def begin(self, name: str = "") -> None:
        """A call begins with the next text; ``name`` is known already (CHANNEL)."""
        self._text = Text()
        self._waiting, self._cut, self._begun, self._whole = [], False, False, 0
        self._parser = self._channel(name) if self._format.body is Body.CHANNEL else self._all()

    def feed(self, text: str) -> tuple[list[ToolCallEvent], str | None]:
        """Events, and once the calls have ended the text after them. Raises NoCall."""
        self._text.text += text
        return self._go_on()

    def finish(self, *, cut: bool) -> tuple[list[ToolCallEvent], str | None]:
        """No more text comes; ``cut``: the model would have written more. Raises NoCall."""
        self._text.final, self._cut = True, cut
        return self._go_on()

    @property
    def unread(self) -> str:
        """The text that was no call, from the first one that was none.

        Not what was a call until it was cut off: that it is missing is told by the answer's end.
        """
        cut_off = self._cut and self._begun
        return "" if cut_off else self._text.text[self._whole :]

    def _go_on(self) -> tuple[list[ToolCallEvent], str | None]:
        try:
            next(self._parser)
            rest = None
        except StopIteration:
            rest = self._text.text[self._text.at :]
        made, self._made = self._made, []
        return made, rest

    def taken(self) -> list[ToolCallEvent]:
        """Events that were made before a NoCall."""
        if self._begun and self._hold:
            self._calls -= 1
        made, self._made, self._waiting = self._made, [], []
        return made

    def _all(self) -> Waiting[None]:
        """Call after call, up to their end."""
        text, format_ = self._text, self._format
        yield from text.skip_space()
        started = self._start and (yield from text.meets(self._start))[0]
        if format_.bare and not started:
            yield from text.skip_space()
            text.skip("[")
        if format_.in_list:
            yield from self._list()
        else:
            while True:
                yield from self._call()
                if not (yield from self._another()):
                    break
        yield from self._ending()

    def _list(self) -> Waiting[None]:
        text = self._text
        if (yield from text.skip_space()) == "{":  # one call alone
            yield from self._call()
            return
        text.at += 1
        while (yield from text.skip_space()) == "{":
            yield from self._call()
            if (yield from text.skip_space()) == ",":
                text.at += 1
        if (yield from text.peek()) != "]" and not (text.final and not self._cut):
            raise NoCall
        text.skip("]")

    def _another(self) -> Waiting[bool]:
        """Whether one more call follows."""
        text = self._text
        at = text.at
        char = yield from text.skip_space()
        if self._format.body is Body.PYTHON:
            text.skip(",")
            return char == "," or (yield from self._starts())
        if (yield from self._starts()):
            return True
        if not self._call_start and char == "{":
            return True
        text.at = at
        return False

    def _starts(self) -> Waiting[bool]:
        """Whether the mark of a call stands here; a mark of all calls is read."""
        text = self._text
        if self._start and (yield from text.stands(self._start)):
            yield from text.demand(self._start)
            return True
        for mark in (self._call_start, self._short_start):
            if mark and (yield from text.stands(mark)):
                return True
        return False

    def _ending(self) -> Waiting[None]:
        """Read the mark after all calls, as far as it is there."""
        if self._format.bare and (yield from self._text.skip_space()) == "]":
            self._text.at += 1
        for mark in self._end:
            if (yield from self._text.stands(mark)):
                yield from self._text.demand(mark)

    def _call(self) -> Waiting[None]:
        text, format_ = self._text, self._format
        if format_.body not in (Body.OBJECT, Body.KEYED) or self._call_start:
            if self._call_start and not (yield from text.stands(self._call_start)):
                yield from text.demand(self._short_start)
            else:
                yield from text.demand(self._call_start)
        match format_.body:
            case Body.OBJECT:
                yield from self._object()
            case Body.KEYED:
                yield from self._keyed()
            case Body.NAMED:
                yield from self._named()
            case Body.TAGGED:
                yield from self._tagged()
            case Body.PYTHON:
                yield from self._python()
            case Body.GEMMA:
                yield from self._gemma()
        yield from self._call_ending()

    def _call_ending(self) -> Waiting[None]:
        """The mark after a call; where the text ends by itself, it may be missing."""
        for number, mark in enumerate(self._call_end):
            if (yield from self._text.stands(mark)):
                yield from self._text.demand(mark)
            elif number == 0 and not (self._text.final and not self._cut and self._at_end()):
                raise NoCall
        self._emit(ToolCallEnd(self._calls - 1))
        self._begun = False
        self._made += self._waiting
        self._waiting = []
        self._whole = self._text.at

    def _at_end(self) -> bool:
        return not self._text.text[self._text.at :].strip()

    def _emit(self, event: ToolCallEvent) -> None:
        (self._waiting if self._hold else self._made).append(event)

    def _begin(self, name: str) -> None:
        name = name.strip()
        if name not in self._tools:
            name = name.removeprefix("functions.").partition(":")[0]
        if name not in self._tools:
            raise NoCall
        self._name, self._begun = name, True
        self._emit(ToolCallBegin(self._calls, new_id(), name))
        self._calls += 1

    def _say(self, text: str) -> None:
        if text:
            self._emit(ToolCallDelta(self._calls - 1, self._spelled(text)))

    def _object(self) -> Waiting[None]:
        """``{"name": NAME, "arguments": {…}}``, keys in any order."""
        text, format_ = self._text, self._format
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
            wanted = (format_.name_key, *ARGUMENTS_KEYS, *OPENING_KEYS)
            if first and self.opening and key not in wanted:
                raise NoCall
            first = False
            if (yield from text.skip_space()) != ":":
                raise NoCall
            text.at += 1
            if key == format_.name_key and not name:
                name = yield from text.json_text()
                self._begin(name)
                self._say(early)
            elif key in (format_.arguments_key, *ARGUMENTS_KEYS) and not has_arguments:
                has_arguments = True
                if name:
                    yield from self._arguments()
                else:
                    early = yield from self._value()
                    early = _as_object(early)
            else:
                yield from self._value()
        if not name:
            raise NoCall
        if not has_arguments:
            self._say("{}")

    def _value(self) -> Waiting[str]:
        pieces: list[str] = []
        yield from self._text.skip_space()
        yield from self._text.json_value(pieces.append)
        return "".join(pieces)

    def _arguments(self) -> Waiting[None]:
        """The JSON object of the arguments, as the model writes it."""
        char = yield from self._text.skip_space()
        if char == "{" and not self._hold:
            yield from self._text.json_value(self._say)
            return
        self._say(_as_object((yield from self._value())))

    def _keyed(self) -> Waiting[None]:
        text = self._text
        if (yield from text.skip_space()) != "{":
            raise NoCall
        text.at += 1
        self._begin((yield from text.json_text()))
        if (yield from text.skip_space()) != ":":
            raise NoCall
        text.at += 1
        yield from self._arguments()
        if (yield from text.skip_space()) != "}":
            raise NoCall
        text.at += 1

    def _word(self, ends: Sequence[Pattern]) -> Waiting[str]:
        """A name up to one of the marks; what cannot be one ends the reading early."""
        text = self._text
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

    def _named(self) -> Waiting[None]:
        text = self._text
        ends = [self._name_end] if self._name_end else [Pattern("{")]
        last = Pattern(self._name_end.text.split("\0")[-1])  # without the id before it
        name = yield from self._word([*ends, last])
        if (yield from text.stands(self._name_end)):
            yield from text.demand(self._name_end)
        else:
            yield from text.demand(last)
        self._begin(name)
        yield from self._arguments()

    def _tagged(self) -> Waiting[None]:
        text = self._text
        name_end = [self._name_end] if self._name_end else []
        name = yield from self._word([*name_end, self._key_start, *self._call_end[:1]])
        yield from text.skip_space()
        if self._name_end:
            yield from text.meets(self._name_end)
        self._begin(name)
        written = False
        seen: set[str] = set()
        self._say("{")
        while (yield from text.stands(self._key_start)):
            yield from text.demand(self._key_start)
            key = (yield from text.until([self._key_end], MOST_KEY)).strip()
            word = yield from text.demand(self._key_end)
            if key in seen:
                raise NoCall
            seen.add(key)
            self._say((", " if written else "") + json.dumps(key, ensure_ascii=False) + ": ")
            written = True
            yield from self._tagged_value(key, word)
        self._say("}")

    def _tagged_value(self, key: str, word: str) -> Waiting[None]:
        schema = self._schema(key)
        text_word = self._format.text_word
        textual = word == text_word if text_word else is_text(schema, self._tools[self._name])
        pieces: list[str] = []
        escaped = lambda part: self._say(_escaped(self._spelled(part)))  # noqa: E731
        if textual:
            self._say('"')
        yield from self._until_end(key, escaped if textual else pieces.append)
        if textual:
            self._say('"')
        else:
            raw = self._spelled("".join(pieces))
            self._say(from_text(raw, None if text_word else schema, self._tools[self._name]))

    def _schema(self, key: str) -> object:
        tool = self._tools[self._name]
        properties = tool.get("properties") if isinstance(tool, Mapping) else None
        return properties.get(key) if isinstance(properties, Mapping) else None

    def _until_end(self, key: str, sink: Callable[[str], None]) -> Waiting[None]:
        """The text of a value to ``sink``, up to the mark after it, which is read.

        A mark that is a token ends it; one that is text does where what may follow follows.
        """
        text = self._text
        end = Pattern(self._value_end.replace(KEY, key))
        follows = [self._key_start, *self._call_end[:1]]
        while True:
            char = yield from text.peek()
            if not char:
                raise NoCall
            at = text.at
            if end.lead and text.text.startswith(end.lead[:1], at):
                while len(text.text) - at < len(end.lead) and not text.final:
                    yield
                text.skip(end.lead)
                if (yield from self._ends(end, follows)):
                    return
                text.at = at
            if (yield from self._ends(end, follows)):
                return
            text.at = at + 1
            sink(char)

    def _ends(self, end: Pattern, follows: Sequence[Pattern]) -> Waiting[bool]:
        """Read the mark after a value if it stands here and is one."""
        met, _ = yield from self._text.meets(end)
        if not met or _is_token(end):
            return met
        for mark in follows:
            if (yield from self._text.stands(mark)):
                return True
        return False

    def _python(self) -> Waiting[None]:
        """``NAME(key=VALUE, …)``."""
        text = self._text
        name = yield from self._word([Pattern("(")])
        self._begin(name)
        text.at = text.text.index("(", text.at) + 1
        self._say("{")
        first = True
        while (char := (yield from text.skip_space())) != ")":
            if char == "," and not first:
                text.at += 1
                continue
            key = (yield from text.until([Pattern("=")], MOST_KEY)).strip()
            text.at += 1
            if not key.isidentifier():
                raise NoCall
            value = from_python((yield from self._python_value()))
            self._say(f"{'' if first else ', '}{json.dumps(key, ensure_ascii=False)}: {value}")
            first = False
        text.at += 1
        self._say("}")

    def _python_value(self) -> Waiting[str]:
        """A literal, up to the comma or bracket after it."""
        text = self._text
        begin, depth, quote = text.at, 0, ""
        while True:
            char = yield from text.peek()
            if not char:
                raise NoCall
            if quote:
                if char == "\\":
                    text.at += 1
                    yield from text.peek()
                elif char == quote:
                    quote = ""
            elif char in "'\"":
                quote = char
            elif depth == 0 and char in ",)":
                return self._spelled(text.text[begin : text.at])
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
            text.at += 1

    def _gemma(self) -> Waiting[None]:
        """``NAME{key:value}``."""
        self._begin((yield from self._word([Pattern("{")])))
        yield from self._text.skip_space()
        yield from self._gemma_object()

    def _gemma_object(self) -> Waiting[None]:
        text = self._text
        text.at += 1
        self._say("{")
        first = True
        while (char := (yield from text.skip_space())) != "}":
            if char == "," and not first:
                text.at += 1
                continue
            key = (yield from text.until([Pattern(":")], MOST_KEY)).strip()
            text.at += 1
            key = self._spelled(key.replace(self._quote, "")).strip('"')
            self._say(("" if first else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
            first = False
            yield from self._gemma_value()
        text.at += 1
        self._say("}")

    def _gemma_value(self) -> Waiting[None]:
        text, quote = self._text, Pattern(self._quote)
        char = yield from text.skip_space()
        if (yield from text.stands(quote)):
            yield from text.demand(quote)
            self._say('"')
            while not (yield from text.meets(quote))[0]:
                if not (yield from text.peek()):
                    raise NoCall
                self._say(_escaped(self._spelled(text.text[text.at])))
                text.at += 1
            self._say('"')
        elif char == "{":
            yield from self._gemma_object()
        elif char == "[":
            text.at += 1
            self._say("[")
            first = True
            while (char := (yield from text.skip_space())) != "]":
                if char == "," and not first:
                    text.at += 1
                    continue
                if not first:
                    self._say(", ")
                first = False
                yield from self._gemma_value()
            text.at += 1
            self._say("]")
        else:
            raw = yield from text.until([Pattern(c) for c in ",}]"], 1 << 20)
            self._say(from_text(self._spelled(raw).strip(), None, None))

    def _channel(self, name: str) -> Waiting[None]:
        """The arguments are a message of their own."""
        self._begin(name)
        yield from self._arguments()
        met = yield from self._text.stands(self._channel_end)
        if met:
            yield from self._text.demand(self._channel_end)
        elif self._cut:
            raise NoCall
        yield from self._call_ending()


def _short(mark: str) -> str:
    """What a call may begin with as well: the token alone, or the last word of its mark."""
    if "\ud800" <= mark[:1] <= "\udfff" and "\0" not in mark:
        words = mark.split()
        return mark[0] if len(words) == 1 else words[-1]
    last = mark.split()[-1:]
    return last[0] if last and len(last[0]) > 3 else ""


def _words(mark: str) -> list[Pattern]:
    """The words of an end mark: models leave the later ones out."""
    return [Pattern(word) for word in mark.split()]


def _is_token(mark: Pattern) -> bool:
    return "\ud800" <= mark.first <= "\udfff"


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _as_object(text: str) -> str:
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
