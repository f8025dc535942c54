"""Arguments between marks, key and value: ``<parameter=KEY>VALUE</parameter>``."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence

from localmoe.chat.calls.call import MOST_DEEP, MOST_KEY, Call, escaped
from localmoe.chat.calls.format import ANY, KEY, NAME, CallFormat
from localmoe.chat.calls.text import NoCall, Pattern, Sink, Waiting
from localmoe.chat.calls.values import (
    from_text,
    is_text,
    item_schema,
    joined,
    property_schema,
    types_of,
)


class TaggedReader:
    """NAME, then key and value of each argument between marks."""

    def __init__(
        self, format_: CallFormat, mark: Callable[[str], str], call_end: Sequence[Pattern]
    ) -> None:
        self._name_end = Pattern(mark(format_.name_end.replace(NAME, ANY)))
        self._key_start = Pattern(mark(format_.key_start))
        self._key_end = Pattern(mark(format_.key_end))
        self._value_end = mark(format_.value_end)
        self._text_word = format_.text_word
        self._item_key = format_.item_key
        self._call_end = call_end[:1]

    def read(self, call: Call) -> Waiting[None]:
        text = call.text
        name_end = [self._name_end] if self._name_end else []
        name = yield from call.name([*name_end, self._key_start, *self._call_end])
        yield from text.skip_space()
        if self._name_end:
            yield from text.meets(self._name_end)
        call.begin(name)
        seen: set[str] = set()
        call.say("{")
        while (yield from self._another(call, self._call_end)):
            key, word = yield from self._key(call)
            if property_schema(call.schema, key, call.schema) is None:
                key = html.unescape(key)  # Kimi K3 writes keys as attributes
            if key in seen:
                raise NoCall
            call.say((", " if seen else "") + json.dumps(key, ensure_ascii=False) + ": ")
            seen.add(key)
            schema = property_schema(call.schema, key, call.schema)
            if self._item_key:
                call.say((yield from self._nested(call, key, schema, 0)))
            else:
                yield from self._value(call, key, word, schema)
        call.say("}")

    def _another(self, call: Call, ends: Sequence[Pattern]) -> Waiting[bool]:
        """Whether one more key follows; the mark before it may begin as an end does."""
        for end in ends:
            if (yield from call.text.stands(end)):
                return False
        return (yield from call.text.stands(self._key_start))

    def _key(self, call: Call) -> Waiting[tuple[str, str]]:
        """A key with its marks, and the word in the last one."""
        text = call.text
        yield from text.demand(self._key_start)
        key = (yield from text.until([self._key_end], MOST_KEY)).strip()
        return key, (yield from text.demand(self._key_end))

    def _value(self, call: Call, key: str, word: str, schema: object) -> Waiting[None]:
        given = self._text_word
        textual = word == given if given else is_text(schema, call.schema)
        pieces: list[str] = []
        if textual:
            call.say('"')
            sink: Sink = lambda part: call.say(escaped(call.spelled(part)))  # noqa: E731
            yield from self._until_end(call, key, sink)
            call.say('"')
            return
        yield from self._until_end(call, key, pieces.append)
        raw = call.spelled("".join(pieces))
        call.say(from_text(raw, None if given else schema, call.schema))

    def _nested(self, call: Call, key: str, schema: object, depth: int) -> Waiting[str]:
        """The JSON of a value whose objects and lists are tags within tags, and its end mark.

        Which of them an element without any is, its schema tells.
        """
        text = call.text
        end = Pattern(self._value_end.replace(KEY, ANY if depth else key))
        if depth > MOST_DEEP:
            raise NoCall
        types = types_of(schema, call.schema)
        members: list[tuple[str, str]] = []
        if (yield from self._another(call, [end])):
            while (yield from self._another(call, [end])):
                inner, _ = yield from self._key(call)
                listed = inner == self._item_key and types != {"object"}
                part = item_schema if listed else property_schema
                below = part(schema, inner, call.schema)
                members.append((inner, (yield from self._nested(call, inner, below, depth + 1))))
            yield from text.demand(end)
            listed = types != {"object"} and all(name == self._item_key for name, _ in members)
            return joined(members, as_list=listed)
        pieces: list[str] = []
        yield from self._until_end(call, ANY if depth else key, pieces.append)
        raw = call.spelled("".join(pieces))
        if not raw.strip() and types & {"object", "array"} and "string" not in types:
            return "{}" if "object" in types else "[]"
        return from_text(raw, schema, call.schema)

    def _until_end(self, call: Call, key: str, sink: Sink) -> Waiting[None]:
        """The text of a value to ``sink``, up to the mark after it, which is read.

        A mark that is a token ends it; one that is text does where what may follow follows.
        """
        text = call.text
        end = Pattern(self._value_end.replace(KEY, key))
        follows = [self._key_start, *self._call_end]
        while True:
            char = yield from text.peek()
            if not char:
                raise NoCall
            at = text.at
            if end.lead and text.text.startswith(end.lead[:1], at):
                while len(text.text) - at < len(end.lead) and not text.final:
                    yield
                text.skip(end.lead)
                if (yield from _ends(call, end, follows)):
                    return
                text.at = at
            if (yield from _ends(call, end, follows)):
                return
            text.at = at + 1
            sink(char)


def _ends(call: Call, end: Pattern, follows: Sequence[Pattern]) -> Waiting[bool]:
    """Read the mark after a value if it stands here and is one."""
    met, _ = yield from call.text.meets(end)
    if not met or end.is_token:
        return met
    for mark in follows:
        if (yield from call.text.stands(mark)):
            return True
    return False
